"""``s3dcp verify`` finds every kind of damage, in whatever wrote the checkpoint, and reads no more than it must."""

from __future__ import annotations

import copy
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from s3dcp._compat import SerializationFormat
from support import chance, hostile, jobs, saved
from support.command import run, told
from support.indexes import sealed
from support.states import DTYPES, values
from support.store import Store
from support.torch_versions import needs_rank_indexes

MIB = 1 << 20


def state() -> dict[str, Any]:
    return {
        "big": values((1500, 2000), 3),
        "small": values((7, 5), 1, torch.bfloat16),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "object": {"text": ["x" * 3000, 1, 2]},
    }


class Damaged:
    """The shard files of a checkpoint, in a bucket or a folder, to read and to overwrite."""

    def __init__(self, uri: str, store: Store) -> None:
        self.uri = uri
        self.store = store

    def read(self, file: str) -> bytes:
        if file.startswith("/"):
            return Path(file).read_bytes()
        bucket, _, key = file.removeprefix("s3://").partition("/")
        body: bytes = self.store.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def write(self, file: str, body: bytes) -> None:
        if file.startswith("/"):
            Path(file).write_bytes(body)
        else:
            bucket, _, key = file.removeprefix("s3://").partition("/")
            self.store.client.put_object(Bucket=bucket, Key=key, Body=body)

    def delete(self, file: str) -> None:
        if file.startswith("/"):
            Path(file).unlink()
        else:
            bucket, _, key = file.removeprefix("s3://").partition("/")
            self.store.client.delete_object(Bucket=bucket, Key=key)


def items(uri: str) -> dict[str, dict[str, Any]]:
    """Where each item lies, by name; of a tensor, its first chunk."""
    found = told("inspect", uri)
    places = {tensor["name"]: tensor["chunks"][0] for tensor in found["tensors"] if tensor["chunks"]}
    return places | {item["name"]: item for item in found["objects"]}


@pytest.mark.parametrize("writer", saved.WRITERS)
def test_a_flipped_byte_is_found_in_every_kind_of_item(writer: str, store: Store, tmp_path: Path) -> None:
    uri = saved.save(writer, state(), store, tmp_path)
    good = told("verify", uri)
    assert good["good"]
    assert good["faults"] == []
    assert good["by"]["index" if writer.startswith("ours") else "archive"] == good["items"] >= 4
    assert run("verify", uri).stdout.startswith("good ")
    files = Damaged(uri, store)
    marks = {
        "big": values((1500, 2000), 3).numpy().tobytes()[5 * MIB :][:64],
        "small": values((7, 5), 1, torch.bfloat16).view(torch.uint8).numpy().tobytes()[:20],
        "scalar": b"\0\0\0\0\0\0\x0c\x40",
        "object.text": b"x" * 50,
    }
    for name, place in items(uri).items():
        # torch gives a tensor without elements an item too, of a head alone.
        if name == "empty":
            continue
        body = files.read(place["file"])
        at = body.index(marks[name], place["offset"])
        files.write(place["file"], body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        found = told("verify", uri, code=1)
        assert not found["good"]
        assert [fault["name"] for fault in found["faults"]] == [name]
        assert found["faults"][0]["file"] == place["file"]
        assert f"bad {name}" in run("verify", uri, code=1).stdout
        files.write(place["file"], body)
    assert told("verify", uri)["good"]


@pytest.mark.parametrize("writer", ["ours", "torch's, local", "theirs"])
def test_every_bad_item_is_listed_not_the_first_alone(writer: str, store: Store, tmp_path: Path) -> None:
    tensors = {f"t{number:02}": values((50, 40), number) for number in range(60)}
    uri = saved.save(writer, tensors, store, tmp_path)
    files = Damaged(uri, store)
    places = items(uri)
    bad = ["t03", "t04", "t31", "t59"]
    body = bytearray(files.read(places["t03"]["file"]))
    for name in bad:
        body[body.index(tensors[name].numpy().tobytes()) + 77] ^= 4
    files.write(places["t03"]["file"], bytes(body))
    assert [fault["name"] for fault in told("verify", uri, code=1)["faults"]] == bad


@pytest.mark.parametrize("writer", saved.WRITERS)
def test_files_that_are_missing_cut_or_exchanged_are_found(writer: str, store: Store, tmp_path: Path) -> None:
    uri = saved.save(writer, state(), store, tmp_path)
    other = saved.save(writer, {**state(), "big": values((1500, 2000), 4)}, store, tmp_path, "other")
    files, places = Damaged(uri, store), items(uri)
    file = places["big"]["file"]
    body = files.read(file)
    for quick in ((), ("--quick",)):
        files.delete(file)
        (fault,) = told("verify", uri, *quick, code=1)["faults"]
        assert fault["file"] == file
        assert "missing" in fault["what"]
        last = max((place for place in places.values() if place["file"] == file), key=lambda place: place["offset"])
        files.write(file, body[: last["offset"] + last["length"] - 1])
        names = [fault["name"] for fault in told("verify", uri, *quick, code=1)["faults"]]
        assert names
        assert set(names) <= set(places)
        files.write(file, body)
        assert told("verify", uri, *quick)["good"]
    files.write(file, files.read(items(other)["big"]["file"]))
    if writer.startswith("ours"):
        assert "big" in {fault["name"] for fault in told("verify", uri, code=1)["faults"]}
    else:
        assert told("verify", uri)["good"], "nothing vouches for what another save of torch's wrote"


def test_files_of_two_ranks_that_were_exchanged_are_found(store: Store, groups: Any) -> None:
    groups(4).run(jobs.save_training_state, store.uri, ("Hex", {}))
    assert told("verify", store.uri)["good"]
    assert told("verify", store.uri, "--quick")["by"]["size"] == 0
    one, other = store.shards()[:2]
    first, second = store.read(one), store.read(other)
    store.write(one, second)
    store.write(other, first)
    assert len(told("verify", store.uri, code=1)["faults"]) >= 2


def test_items_that_the_index_exchanges_or_doubles_are_found(store: Store) -> None:
    jobs.save({"a": values((30, 20)), "b": values((20, 30), 1), "c": values((4,), 2)}, store.uri)
    metadata = pickle.loads(store.read(".metadata"))
    (a, of_a), (b, of_b), (c, _) = sorted(metadata.storage_data.items(), key=lambda item: item[0].fqn)
    exchanged = copy.deepcopy(metadata)
    exchanged.storage_data.update({a: of_b, b: of_a})
    store.write(".metadata", sealed(exchanged))
    found = told("verify", store.uri, code=1)["faults"]
    assert [fault["name"] for fault in found] == ["a", "b"]
    assert all("no tensor of the dtype and shape" in fault["what"] for fault in found)
    doubled = copy.deepcopy(metadata)
    doubled.storage_data[b] = of_a
    doubled.state_dict_metadata["b"] = doubled.state_dict_metadata["a"]
    store.write(".metadata", sealed(doubled))
    for options in ((), ("--quick",)):
        (fault,) = told("verify", store.uri, *options, code=1)["faults"]
        assert fault["name"] == "b"
        assert "bytes of a too" in fault["what"]
    holes = copy.deepcopy(metadata)
    holes.state_dict_metadata["a"].size = torch.Size((31, 20))
    del holes.storage_data[c]
    store.write(".metadata", sealed(holes))
    what = {fault["name"]: fault["what"] for fault in told("verify", store.uri, code=1)["faults"]}
    assert "leave elements out" in what["a"]
    assert "does not say where" in what["c"]


@pytest.mark.parametrize("writer", ["ours", "torch's, local"])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_every_dtype_and_layout_is_good(writer: str, store: Store, tmp_path: Path) -> None:
    tensors = {f"{dtype}": values((13, 7), 5, dtype) for dtype in DTYPES}
    tensors |= {name: tensor for name, tensor in jobs.kinds("layouts").items() if isinstance(tensor, torch.Tensor)}
    uri = saved.save(writer, tensors, store, tmp_path)
    assert told("verify", uri)["faults"] == []


def test_safetensors_of_torch_are_compared_by_their_headers(store: Store, tmp_path: Path) -> None:
    jobs.save_with_torch(tmp_path / "st", objects=False, serialization_format=SerializationFormat.SAFETENSORS)
    found = told("verify", str(tmp_path / "st"))
    assert found["good"]
    assert found["by"]["head"] == found["items"] > 0
    for path in (tmp_path / "st").glob("*.distcp"):
        path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"').replace(b'"shape":[', b'"shape":[ ')[:-1])
    assert told("verify", str(tmp_path / "st"), code=1)["faults"]


@needs_rank_indexes
def test_the_indexes_of_all_ranks_are_verified_together(store: Store, groups: Any) -> None:
    groups(4).run(jobs.save_training_state, store.uri, ("Hex", {}), use_collectives=False)
    found = told("verify", store.uri)
    assert found["good"], found["faults"]
    assert found["files"] >= 4
    assert told("verify", f"{store.uri}/__1.metadata")["good"]
    store.delete("__3.metadata")
    found = told("verify", store.uri, code=1)
    assert any("4 ranks saved it, but there are indexes of 3" in fault["what"] for fault in found["faults"])


def test_quick_compares_with_what_the_store_keeps_and_reads_nothing(store: Store, tmp_path: Path) -> None:
    uri = saved.save("ours", state(), store, tmp_path)
    found = told("verify", uri, "--quick")
    assert (found["good"], found["read_bytes"], found["by"]["storage"]) == (True, 0, found["items"])
    place = items(uri)["small"]
    files = Damaged(uri, store)
    body = bytearray(files.read(place["file"]))
    body[place["offset"] + place["length"] // 2] ^= 1
    store.client.put_object(
        Bucket=store.bucket, Key=place["file"].split("/", 3)[3], Body=bytes(body), ChecksumAlgorithm="CRC32"
    )
    (fault,) = told("verify", uri, "--quick", code=1)["faults"]
    assert fault["file"] == place["file"]


def test_quick_counts_the_headers_of_safetensors_too(store: Store, tmp_path: Path) -> None:
    safe = saved.save("ours, as safetensors", state(), store, tmp_path, "safe")
    assert told("verify", safe, "--quick")["by"]["size"] == 0


def test_a_run_that_was_killed_goes_on_where_it_ended(tmp_path: Path, store: Store, s3dcp_server: Any) -> None:
    uri = saved.save("ours", {f"t{number}": values((4 * MIB,), number) for number in range(8)}, store, tmp_path)
    file = tmp_path / "verified"
    shards = "on=GetObject key=*.distcp"
    # Three ranges come late enough to be noted, the others never.
    s3dcp_server.inject(f"delay:1200ms {shards} times=3")
    s3dcp_server.inject(f"silence {shards} skip=3")
    try:
        process = subprocess.Popen([sys.executable, "-m", "s3dcp", "verify", uri, "--resume", str(file)])
        until = time.monotonic() + 30
        while time.monotonic() < until and not (file.exists() and '"ranges":{"' in file.read_text()):
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    finally:
        s3dcp_server.clear_faults()
    noted = json.loads(file.read_text())
    known = sum(end - int(start) for entry in noted["files"].values() for start, end in entry["ranges"].items())
    assert known >= 4 * MIB
    found = told("verify", uri, "--resume", str(file))
    assert found["good"]
    assert found["resumed_bytes"] == known
    assert found["read_bytes"] + found["resumed_bytes"] == found["bytes"]
    assert not file.exists(), "it has nothing more to say"


@pytest.mark.parametrize("writer", ["ours", "ours, as safetensors", "torch's", "torch's, as safetensors", "theirs"])
def test_a_bit_that_flips_on_the_way_is_no_damage(writer: str, tmp_path: Path, store: Store, s3dcp_server: Any) -> None:
    tensors = {name: value for name, value in state().items() if isinstance(value, torch.Tensor)}
    uri = saved.save(writer, tensors if writer == "torch's, as safetensors" else state(), store, tmp_path)
    whole = told("verify", uri)["read_bytes"]
    struck = 0
    for number in range(chance.how_many("FLIPS", 40)):
        # In one of the reads: ends of archives, heads of their records, values.
        s3dcp_server.inject(f"flip on=GetObject key=*.distcp skip={number % 20} times=1")
        try:
            found = told("verify", uri)
            struck += sum(count for _, count in s3dcp_server.faults())
        finally:
            s3dcp_server.clear_faults()
        assert (found["good"], found["read_bytes"]) == (True, whole), found["faults"]
    assert struck >= 2


def partly(uri: str) -> dict[str, Any]:
    """What such a file holds when the first item is verified."""
    found = told("inspect", uri)
    place = items(uri)["t0"]
    from support.store import boto_client

    client = boto_client()

    def head(uri: str) -> tuple[str, Any]:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return key, client.head_object(Bucket=bucket, Key=key)

    index, of_index = head(found["indexes"][0]["uri"])
    key, of_file = head(place["file"])
    ranges = {str(place["offset"]): place["offset"] + place["length"]}
    return {
        "s3dcp_verify": found["uri"],
        "indexes": {index: of_index["ETag"]},
        "files": {key: {"size": of_file["ContentLength"], "etag": of_file["ETag"], "ranges": ranges}},
    }


def test_what_was_verified_counts_for_the_same_bytes_alone(tmp_path: Path, store: Store) -> None:
    uri = saved.save("ours", {f"t{number}": values((MIB,), number) for number in range(3)}, store, tmp_path)
    file = tmp_path / "verified"
    file.write_text(json.dumps(partly(uri)))
    assert told("verify", uri, "--resume", str(file))["resumed_bytes"] > 4 * MIB
    noted = partly(uri)
    place = items(uri)["t0"]
    files = Damaged(uri, store)
    body = bytearray(files.read(place["file"]))
    body[place["offset"] + place["length"] // 2] ^= 1
    files.write(place["file"], bytes(body))
    file.write_text(json.dumps(noted))
    found = told("verify", uri, "--resume", str(file), code=1)
    assert (found["resumed_bytes"], [fault["name"] for fault in found["faults"]]) == (0, ["t0"])
    for text, says in [("{}", "something else"), ("no JSON", "something else")]:
        file.write_text(text)
        assert says in run("verify", uri, "--resume", str(file), code=2).stderr
        assert file.read_text() == text
    file.write_text(json.dumps({**noted, "s3dcp_verify": "s3://other/run"}))
    assert "another checkpoint, s3://other/run" in run("verify", uri, "--resume", str(file), code=2).stderr


def test_an_index_that_was_cut_or_changed_is_refused(store: Store) -> None:
    jobs.save({"a": values((3,))}, store.uri)
    index = store.read(".metadata")
    for body in (index[:-1], index[:-20], index[:50], index[:100] + bytes([index[100] ^ 1]) + index[101:]):
        store.write(".metadata", body)
        assert run("verify", store.uri, code=1).stderr.startswith("error: ")


@pytest.mark.parametrize("group", ["refused", "refused by the walk"])
def test_hostile_indexes_are_refused(group: str, tmp_path: Path) -> None:
    index = tmp_path / ".metadata"
    for name, body in hostile.some(group, 9):
        index.write_bytes(body)
        for options in ((), ("--quick",)):
            assert run("verify", str(tmp_path), *options, code=1).stderr.startswith("error: "), name


def test_what_cannot_be_found_out_has_a_code_of_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("verify", store.uri, code=1).stderr.startswith("error: there is no checkpoint at")
    assert run("verify", "s3:/x", code=2).stderr.startswith("error: ")
    jobs.save({"a": values((3,))}, store.uri)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "error: " in run("verify", store.uri, code=3).stderr
