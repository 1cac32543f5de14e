"""One file with a whole state: torch's own functions on our streams, and the peer's beside them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from s3dcp import ConfigError, NotFound, S3Checkpoint
from support.store import Store

STATE = {"weight": torch.arange(3_000_000, dtype=torch.float32), "step": 7, "view": torch.arange(12.0).view(3, 4).T}


def same(loaded: dict[str, Any]) -> bool:
    return (
        loaded["step"] == 7
        and torch.equal(loaded["weight"], STATE["weight"])
        and torch.equal(loaded["view"], STATE["view"])
    )


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_torch_saves_torch_loads(store: Store, options: dict[str, bool]) -> None:
    checkpoint, uri = S3Checkpoint(None), f"s3://{store.bucket}/model.pt"
    with checkpoint.writer(uri) as writer:
        torch.save(STATE, writer, **options)
    with checkpoint.reader(uri) as reader:
        assert same(torch.load(reader))


def test_the_peer_reads_ours_and_its_file_is_read_here(store: Store, s3dcp_server: Any) -> None:
    peer = pytest.importorskip("s3torchconnector")
    config = peer.S3ClientConfig(force_path_style=True)
    theirs = peer.S3Checkpoint(s3dcp_server.region, endpoint=s3dcp_server.endpoint_url, s3client_config=config)
    ours = S3Checkpoint(s3dcp_server.region, s3dcp_server.endpoint_url, config)
    for number, (writes, reads) in enumerate(((ours, theirs), (theirs, ours))):
        uri = f"s3://{store.bucket}/{number}.pt"
        with writes.writer(uri) as writer:
            torch.save(STATE, writer)
        with reads.reader(uri) as reader:
            assert same(torch.load(reader))


def test_a_stream_that_an_exception_leaves_changes_nothing(store: Store) -> None:
    checkpoint, uri = S3Checkpoint(None), f"s3://{store.bucket}/model.pt"
    with checkpoint.writer(uri) as writer:
        writer.write(b"before")

    def write_half() -> None:
        with checkpoint.writer(uri) as writer:
            writer.write(bytes(12 << 20))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_half()
    with checkpoint.reader(uri) as reader:
        assert reader.read() == b"before"
    assert store.uploads() == []


def test_bytes_are_those_written_whatever_the_sizes(store: Store) -> None:
    checkpoint, uri = S3Checkpoint(None), f"s3://{store.bucket}/bytes"
    whole = bytearray()
    with checkpoint.writer(uri) as writer:
        for number, size in enumerate((0, 1, 1 << 20, 3, (1 << 20) - 1, 6 << 20, 5)):
            whole += bytes([number]) * size
            assert writer.write(memoryview(bytes([number]) * size)) == size
            assert writer.tell() == len(whole)
    with checkpoint.reader(uri) as reader:
        assert reader.read() == whole
        reader.seek(-3, 2)
        assert reader.read() == whole[-3:]


@pytest.mark.s3("embedded")
@pytest.mark.parametrize("answers", ["at once", "late"])
def test_a_file_larger_than_the_memory_that_is_left_is_written_and_read(
    store: Store, s3dcp_server: Any, answers: str
) -> None:
    if answers == "late":
        s3dcp_server.inject("delay:300ms on=UploadPart times=200")
    script = """
import resource, sys
from s3dcp import S3Checkpoint
checkpoint, uri = S3Checkpoint(None), sys.argv[1]
block = bytes(8 << 20)
with checkpoint.writer(uri) as writer:
    writer.write(block)
with checkpoint.reader(uri) as reader:
    reader.read(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with checkpoint.writer(uri) as writer:
    for _ in range(96):
        writer.write(block)
with checkpoint.reader(uri) as reader:
    while reader.read(8 << 20):
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", script, f"s3://{store.bucket}/large"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    finally:
        s3dcp_server.clear_faults()
    assert int(done.stdout) < 256 * 1024, "KiB, of 768 MiB"


def test_what_is_not_there_or_no_uri_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match="nothing"):
        S3Checkpoint(None).reader(f"s3://{store.bucket}/nothing")
    for open_it in (S3Checkpoint(None).reader, S3Checkpoint(None).writer):
        with pytest.raises(ConfigError, match="s3_uri"):
            open_it("bucket/key")
