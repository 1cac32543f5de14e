"""The ranks of a node have one copy of a large index, which one of them fetches."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3dcp import S3StorageReader, S3StorageWriter, testing
from s3dcp.errors import Denied
from support import node_jobs
from support.children import Child
from support.node_jobs import TENSORS, on_a_node
from support.store import REGION, Store, boto_client

pytestmark = pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no shared memory as a folder")

BUCKET = "checkpoints"
URI = f"s3://{BUCKET}/run"
RANKS = 8


@pytest.fixture
def server() -> Any:
    """A server of the test's own, whose requests it counts; a checkpoint with a large index is there."""
    with testing.server([BUCKET]) as running:
        node_jobs.save(URI)
        yield running


def gets(server: testing.Server, work: Callable[[], object]) -> int:
    """GETs while `work` is done."""
    before = server.stats().requests.get("GetObject", 0)
    work()
    return server.stats().requests["GetObject"] - before


def left_in(memory: Path) -> list[str]:
    return sorted(path.name for folder in memory.iterdir() for path in folder.iterdir())


def hold(uri: str, memory: Path) -> S3StorageReader:
    """A reader that has read the index."""
    with on_a_node(str(memory), 2):
        reader = S3StorageReader(REGION, uri)
        assert len(reader.read_metadata().state_dict_metadata) == TENSORS
    return reader


def die_holding(uri: str, memory: Path) -> None:
    reader = hold(uri, memory)
    os.kill(os.getpid(), signal.SIGKILL)
    del reader


@pytest.mark.distributed
def test_one_of_eight_ranks_fetches_the_index_and_nothing_is_left(
    server: testing.Server, groups: Callable[[int], Any], tmp_path: Path
) -> None:
    group = groups(RANKS)
    assert gets(server, lambda: group.run(node_jobs.read, URI, str(tmp_path), RANKS)) == 1
    group.run(node_jobs.check, URI, str(tmp_path), RANKS)
    assert left_in(tmp_path) == []


@pytest.mark.distributed
def test_ranks_that_are_alone_on_their_node_fetch_it_each(
    server: testing.Server, groups: Callable[[int], Any], tmp_path: Path
) -> None:
    assert gets(server, lambda: groups(2).run(node_jobs.read, URI, str(tmp_path), 1)) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_new_index_is_fetched_beside_one_in_use(server: testing.Server, tmp_path: Path) -> None:
    old = hold(URI, tmp_path)
    node_jobs.save(URI, 1)
    assert gets(server, lambda: node_jobs.check(URI, str(tmp_path), 2, seed=1)) > 1
    assert len(left_in(tmp_path)) == 1
    del old
    assert left_in(tmp_path) == []


def test_an_index_replaced_between_head_and_get_is_not_shared(server: testing.Server, tmp_path: Path) -> None:
    def replace() -> None:
        time.sleep(0.3)
        node_jobs.save(URI, 1)

    server.inject("delay:1000ms on=HeadObject key=*.metadata times=1")
    child = Child(replace)
    reader = hold(URI, tmp_path)
    child.result()
    etag = boto_client(server.endpoint_url).head_object(Bucket=BUCKET, Key="run/.metadata")["ETag"]
    # What is in use and what is shared is one and the same, whichever of the two came first.
    assert reader._etag == etag or left_in(tmp_path) != []
    node_jobs.check(URI, str(tmp_path), 2, seed=1)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_not_used(server: testing.Server, tmp_path: Path, damage: str) -> None:
    Child(die_holding, URI, tmp_path).status()
    (name,) = left_in(tmp_path)
    (folder,) = tmp_path.iterdir()
    file = folder / name
    body = bytearray(file.read_bytes())
    body[1000] ^= 1
    file.write_bytes({"truncated": body[: len(body) // 2], "flipped": body, "empty": b""}[damage])
    assert gets(server, lambda: node_jobs.read(URI, str(tmp_path), 2)) == 1
    assert gets(server, lambda: node_jobs.read(URI, str(tmp_path), 2)) == 1
    assert left_in(tmp_path) == []


def test_what_a_killed_process_left_is_used_and_then_deleted(server: testing.Server, tmp_path: Path) -> None:
    Child(die_holding, URI, tmp_path).status()
    assert len(left_in(tmp_path)) == 1
    assert gets(server, lambda: node_jobs.read(URI, str(tmp_path), 2)) == 0
    assert left_in(tmp_path) == []


def test_a_process_killed_while_it_fetches_leaves_it_to_the_next(server: testing.Server, tmp_path: Path) -> None:
    server.inject("stall:1000 on=GetObject key=*.metadata times=1")
    before = server.stats().requests.get("GetObject", 0)
    fetching = Child(lambda: hold(URI, tmp_path))
    while not server.faults()[0][1]:
        time.sleep(0.01)
    waiting = Child(node_jobs.read, URI, str(tmp_path), 2)
    os.kill(fetching.pid, signal.SIGKILL)
    fetching.status()
    assert waiting.result() == TENSORS
    assert server.stats().requests["GetObject"] - before == 2
    assert left_in(tmp_path) == []


def test_a_failed_fetch_is_told_and_leaves_nothing(server: testing.Server, tmp_path: Path) -> None:
    server.inject("error:AccessDenied on=GetObject key=*.metadata times=1")
    with on_a_node(str(tmp_path), 2):
        reader = S3StorageReader(REGION, URI)
        with pytest.raises(Denied):
            reader.read_metadata()
    assert left_in(tmp_path) == []
    node_jobs.check(URI, str(tmp_path), 2)


def test_a_folder_of_others_is_not_used(server: testing.Server, tmp_path: Path) -> None:
    folder = tmp_path / f"s3dcp-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    assert gets(server, lambda: node_jobs.read(URI, str(tmp_path), 2)) == 1
    assert left_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_belongs_to_another_user_is_not_used(server: testing.Server, tmp_path: Path) -> None:
    folder = tmp_path / f"s3dcp-{os.geteuid()}"
    folder.mkdir(0o700)
    os.chown(folder, 12345, 12345)
    assert gets(server, lambda: node_jobs.read(URI, str(tmp_path), 2)) == 1
    assert left_in(tmp_path) == []


def test_without_shared_memory_every_rank_fetches(server: testing.Server, tmp_path: Path) -> None:
    assert gets(server, lambda: node_jobs.check(URI, str(tmp_path / "none"), 2)) > 1


def test_a_small_index_is_fetched_by_everyone(store: Store, tmp_path: Path) -> None:
    dcp.save({"x": torch.ones(3)}, storage_writer=S3StorageWriter(REGION, store.uri), no_dist=True)
    with on_a_node(str(tmp_path), 2):
        S3StorageReader(REGION, store.uri).read_metadata()
    assert list(tmp_path.iterdir()) == []
