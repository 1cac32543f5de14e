"""A panic in Rust is an `InternalError` in Python, whatever was called."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from s3dcp import InternalError, S3ClientConfig, S3DcpError, _native, testing
from s3dcp._client import client_for
from s3dcp._tensors import host_buffer
from support.loads import first_bytes, tensor_at

SOURCES = Path(__file__).parents[1] / "crates/python/src"
# The hook by which these tests make the others panic.
UNGUARDED = {"_rehearse_panic"}


def entries() -> set[str]:
    """All functions that Python can call, by the names that panics are reported under."""
    found = set()
    for path in SOURCES.glob("*.rs"):
        text = path.read_text()
        found |= set(re.findall(r"#\[pyfunction\](?:\s*#\[[^\]]*\])*\s*(?:pub\(crate\) )?fn (\w+)", text))
        for block in re.finditer(r"#\[pymethods\]\nimpl (\w+) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            methods = re.findall(r"^    (?:pub\(crate\) )?fn (\w+)", block.group(2), re.MULTILINE)
            found |= {f"{block.group(1)}.{method}" for method in methods}
    return found - UNGUARDED


def test_every_entry_point_stands_under_the_guard() -> None:
    for path in SOURCES.glob("*.rs"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if line in ("#[pymethods]", "#[pyfunction]") and path.name != "panics.rs":
                assert lines[number - 1] == "#[entry]", f"{path.name}:{number + 1}"


@contextlib.contextmanager
def panicking(entry: str) -> Iterator[None]:
    """Every call of this entry point panics."""
    _native._rehearse_panic(entry)
    try:
        yield
    finally:
        _native._rehearse_panic(None)


def calls(server: testing.Server, bucket: str) -> dict[str, Callable[[], Any]]:
    """A call of every entry point, with arguments that it takes."""
    client = client_for(None, server.endpoint_url)
    memory = torch.zeros(64, dtype=torch.uint8)
    owner, place = memory, memory.data_ptr()

    load = client.load(bucket, "path", False)

    def save() -> _native.Save:
        return _native.Save(client, bucket, "path", None, None, None, "0123456789abcdef")

    def writer() -> _native.ShardWriter:
        return client.object_writer(bucket, "file")

    def base() -> _native.Base:
        under_way = save()
        under_way.prepare(True, "off")
        return under_way.rely_on_base()

    nothing, hasher = base(), _native.TensorHasher("uint8", [1], False)
    pool = _native.StagingPool(host_buffer, 64)
    buffer = pool.take(64)
    part = first_bytes(load, "file", 0)
    download = load.start([(part, place)], memory)
    download.wait()
    share = client.share_pace(True, bucket, "path", 2)
    at_path = (client, f"s3://{bucket}/path")
    lease = _native.WriterLease(client, bucket, "leased", "a test")
    from torch.distributed.checkpoint.metadata import Metadata

    metadata = Metadata({}, None, {})
    stored = tensor_at(load, "file")
    index = _native.write_index(metadata, "id")
    stored_index = _native.StoredIndex(index.seal(""))
    stored_index.check_and_outline("x")
    partitions = _native.Partitions()
    layout = _native.Layout("a")
    view, stats, client_stats = server.partitions()[0], server.stats(), client.stats()
    return {
        "Client.new": lambda: _native.Client(None, None, S3ClientConfig()),
        "Client.get_object": lambda: client.get_object(bucket, "k"),
        "Client.get_index": lambda: client.get_index(bucket, "k"),
        "Client.head_object": lambda: client.head_object(bucket, "k"),
        "Client.list_folder": lambda: client.list_folder(bucket, "", 10),
        "Client.list_objects": lambda: client.list_objects(bucket, ""),
        "Client.remove": lambda: client.remove(bucket, "nothing"),
        "Client.copy_object": lambda: client.copy_object(bucket, "k", "l"),
        "Client.delete_objects": lambda: client.delete_objects(bucket, []),
        "Client.settings": lambda: client.settings(bucket),
        "Client.read_ranges": lambda: client.read_ranges(bucket, []),
        "Client.nearby_checkpoints": lambda: client.nearby_checkpoints(bucket, "path"),
        "Client.object_writer": writer,
        "Client.load": lambda: client.load(bucket, "path", False),
        "Load.find": lambda: load.find(metadata, [], {}),
        "Load.read_heads": lambda: load.read_heads([stored]),
        "Load.whole": lambda: load.whole(stored),
        "Load.start": lambda: load.start([], memory),
        "Load.__enter__": load.__enter__,
        "Load.__exit__": lambda: load.__exit__(None, None, None),
        "Load.close": load.close,
        "StoredItem.dtype": lambda: stored.dtype,
        "StoredItem.shape": lambda: stored.shape,
        "StoredItem.is_whole": lambda: stored.is_whole,
        "StoredItem.fits": lambda: stored.fits([1]),
        "StoredItem.parts": lambda: stored.parts(1024),
        "StoredItem.storage": stored.storage,
        "ItemPart.nbytes": lambda: part.nbytes,
        "ItemPart.elements": lambda: part.elements,
        "Save.new": save,
        "Save.prepare": lambda: save().prepare(True, "off"),
        "Save.rely_on_base": lambda: save().rely_on_base(),
        "Base.__bool__": lambda: bool(nothing),
        "Base.entries": lambda: nothing.entries([]),
        "hash_tensors": lambda: _native.hash_tensors([], False),
        "hash_object": lambda: _native.hash_object(b"x"),
        "TensorHasher.new": lambda: _native.TensorHasher("uint8", [1], False),
        "TensorHasher.update": lambda: hasher.update(buffer, 0, 1),
        "TensorHasher.finish": lambda: hasher.finish(),
        "Save.writes_per_second": lambda: save().writes_per_second,
        "Save.divide_budget": lambda: save().divide_budget(1, 1),
        "Save.shard": lambda: save().shard("__0_", 0, 0),
        "Save.commit": lambda: save().commit(index),
        "Save.discard": lambda: save().discard([]),
        "Save.__enter__": lambda: save().__enter__(),
        "Save.__exit__": lambda: save().__exit__(None, None, None),
        "WriterLease.new": lambda: _native.WriterLease(client, bucket, "lease", "a test"),
        "WriterLease.check": lease.check,
        "WriterLease.release": lease.release,
        "list_checkpoints": lambda: _native.list_checkpoints(client, f"s3://{bucket}/path"),
        "keep": lambda: _native.keep(client, f"s3://{bucket}/path", 1, None, [], None, [], False),
        "inspect": lambda: _native.inspect(client, f"s3://{bucket}/path", [], False),
        "verify": lambda: _native.verify(client, f"s3://{bucket}/path", False, None),
        "diff": lambda: _native.diff(at_path, at_path),
        "copy": lambda: _native.copy(at_path, at_path, [], False, None, False),
        "export": lambda: _native.export(at_path, at_path, "torch", [], {}, [], None, None, False),
        "import_model": lambda: _native.import_model(at_path, at_path, [], {}, [], False),
        "step_folder": lambda: _native.step_folder("step-{}", "a/step-1"),
        "spread": lambda: _native.spread([1], 1),
        "Client.share_pace": lambda: client.share_pace(True, bucket, "path", 2),
        "Client.stats": client.stats,
        "Download.wait": download.wait,
        "PaceShare.change": share.change,
        "PaceShare.agree": lambda: share.agree(0),
        "PaceShare.found": share.found,
        "PaceShare.leave": share.leave,
        "PaceShare.remainder": lambda: _native.PaceShare.remainder(0),
        "ShardWriter.tensors": lambda: writer().tensors([]),
        "ShardWriter.begin_tensor": lambda: writer().begin_tensor("float32", [1]),
        "ShardWriter.begin_raw": lambda: writer().begin_raw(),
        "ShardWriter.write": lambda: writer().write(b""),
        "ShardWriter.write_staged": lambda: writer().write_staged(buffer, 0, 1),
        "ShardWriter.end": lambda: writer().end(),
        "ShardWriter.raw": lambda: writer().raw(b"x"),
        "ShardWriter.raw_memory": lambda: writer().raw_memory(place, 1, owner),
        "ShardWriter.start_finishing": lambda: writer().start_finishing(),
        "ShardWriter.wait": lambda: writer().wait(),
        "ShardWriter.abort": lambda: writer().abort(),
        "StagingPool.new": lambda: _native.StagingPool(host_buffer, 64),
        "StagingPool.take": lambda: pool.take(64),
        "StagingBuffer.memory": lambda: buffer.memory,
        "Index.seal": lambda: index.seal(""),
        "write_index": lambda: _native.write_index(metadata, "id"),
        "StoredIndex.of": lambda: _native.StoredIndex(b""),
        "StoredIndex.body": lambda: stored_index.body(),
        "StoredIndex.__len__": lambda: len(stored_index),
        "StoredIndex.check": lambda: stored_index.check("x", []),
        "StoredIndex.check_and_outline": lambda: stored_index.check_and_outline("x"),
        "StoredIndex.count": lambda: stored_index.count(0),
        "StoredIndex.find": lambda: stored_index.find(0, "x"),
        "StoredIndex.entry": lambda: stored_index.entry(0, 0),
        "StoredIndex.value": lambda: stored_index.value(0),
        "StoredIndex.mappings": lambda: stored_index.mappings(0, 1),
        "StoredIndex.frame": lambda: stored_index.frame(),
        "default_globals": _native.default_globals,
        "dtype_names": _native.dtype_names,
        "join_key": lambda: _native.join_key("a", "b"),
        "memory_in_use": _native.memory_in_use,
        "GcPause.new": _native.GcPause,
        "GcPause.__enter__": _native.GcPause().__enter__,
        "GcPause.__exit__": lambda: _native.GcPause().__exit__(None, None, None),
        "end_gc_pauses": _native.end_gc_pauses,
        "chunks_hold": lambda: _native.chunks_hold(metadata, []),
        "Layout.new": lambda: _native.Layout("a"),
        "Layout.index_key": lambda: layout.index_key(None),
        "Layout.prefix_fault": lambda: layout.prefix_fault("b"),
        "Layout.resolve": lambda: layout.resolve("b"),
        "parse_s3_uri": lambda: _native.parse_s3_uri("s3://b/k", "path"),
        "simulate_prefixes": lambda: _native.simulate_prefixes(
            ["a"],
            1,
            files_per_rank=1,
            part_size=None,
            partitions=1,
            directory_bucket=False,
            load=False,
            network_gbps=1.0,
        ),
        "prefix": lambda: _native.prefix(("default", None, None), 1),
        "prefixes": lambda: _native.prefixes(("default", None, None), range(1)),
        "numeric_pattern": lambda: _native.numeric_pattern(10, 1, 1),
        "digits_needed": lambda: _native.digits_needed(10, 1),
        "check_integer": lambda: _native.check_integer("x", 1, 0, 1),
        "check_epoch": lambda: _native.check_epoch(1),
        "check_user_prefixes": lambda: _native.check_user_prefixes("x", ["a"], None),
        "Partitions.new": lambda: _native.Partitions(),
        "Partitions.__repr__": lambda: repr(partitions),
        "PartitionView.__repr__": lambda: repr(view),
        "Stats.since": lambda: client_stats.since(client_stats),
        "Stats.latency": lambda: client_stats.latency(0.5),
        "ServerStats.__repr__": lambda: repr(stats),
        "Server.new": lambda: _native.Server(),
        "Server.endpoint_url": lambda: server.endpoint_url,
        "Server.access_key": lambda: server.access_key,
        "Server.secret_key": lambda: server.secret_key,
        "Server.region": lambda: server.region,
        "Server.authority": lambda: server.authority,
        "Server.partitions": server.partitions,
        "Server.inject": lambda: server.inject("error:SlowDown"),
        "Server.clear_faults": server.clear_faults,
        "Server.faults": server.faults,
        "Server.stats": server.stats,
        "Server.create_bucket": lambda: server.create_bucket("other"),
        "Server.delete_bucket": lambda: server.delete_bucket("other"),
        "Server.stop": server.stop,
        "Server.__enter__": server.__enter__,
        "Server.__exit__": lambda: server.__exit__(None, None, None),
        "Server.__repr__": lambda: repr(server),
        "Server.__reduce__": lambda: server.__reduce__(),
        "main": lambda: _native.main(["s3dcp", "--version"]),
    }


def test_every_entry_point_turns_a_panic_into_an_error() -> None:
    with testing.server(buckets=["bkt"], partitions=_native.Partitions()) as server:
        known = calls(server, "bkt")
        assert set(known) == entries()
        for entry, call in known.items():
            with panicking(entry), pytest.raises(InternalError, match=f"{re.escape(entry)}.*rehearsed") as caught:
                call()
            assert isinstance(caught.value, S3DcpError)
            assert caught.value.kind == "Internal"
        # Nothing is worse for it: the same client goes on.
        client_for(None, server.endpoint_url).list_objects("bkt", "")
