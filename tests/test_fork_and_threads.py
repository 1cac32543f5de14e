"""Forks and threads: children that use what they took over, forks in the middle of saves, workers of data loaders."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.utils.data import DataLoader, IterableDataset

import s3dcp._client
from s3dcp import Interrupted, S3ClientConfig, S3FileSystem, S3StorageReader, S3StorageWriter, testing
from s3dcp._gc import GcPause
from support import jobs
from support.children import Child, raised_by
from support.loads import first_bytes
from support.states import assert_same, blank, training_state, values
from support.store import REGION, Store
from support.wire import Between, Request

MIB = 1024 * 1024


def state() -> dict[str, Any]:
    """Plain tensors, a view that is staged, and an object."""
    return {"x": values((40, 3), 1), "view": values((30, 20), 2).t(), "step": 3}


class Held:
    """A rule for `Between`: requests with a part or range of data wait until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, request: Request) -> None:
        if holds_data(request):
            self.go_on.wait(60)


def holds_data(request: Request) -> bool:
    return ".distcp" in request.target and request.method in ("PUT", "GET")


# -- what a child took over


def use_all(uri: str, fs: S3FileSystem, writer: S3StorageWriter, reader: S3StorageReader) -> list[str]:
    """Everything once with objects of the parent."""
    assert fs.exists(f"{uri}/.metadata")
    with fs.create_stream(f"{uri}/note", "wb") as stream:
        stream.write(b"from the child")
    loaded = blank(state())
    dcp.load(loaded, storage_reader=reader)
    assert_same(loaded, state())
    dcp.save(state(), storage_writer=writer, checkpoint_id=f"{uri}/child")
    jobs.check(f"{uri}/child", state())
    return sorted(fs.ls(f"{uri}/child"))


@pytest.mark.parametrize("used", [True, False], ids=["used before", "new"])
def test_a_child_saves_and_loads_with_what_the_parent_made(store: Store, used: bool) -> None:
    jobs.save(state(), store.uri)
    fs = S3FileSystem(REGION)
    writer, reader = S3StorageWriter(REGION, f"{store.uri}/mine"), S3StorageReader(REGION, store.uri)
    if used:
        assert fs.exists(f"{store.uri}/.metadata")
        dcp.save(state(), storage_writer=writer)
        dcp.load(blank(state()), storage_reader=reader)
    names = Child(use_all, store.uri, fs, writer, reader).result()
    assert len(names) == 2
    # And the parent goes on with the same objects.
    assert fs.exists(f"{store.uri}/child/.metadata")
    dcp.save(state(), storage_writer=writer, checkpoint_id=f"{store.uri}/after")
    dcp.load(blank(state()), storage_reader=reader)
    jobs.check(f"{store.uri}/after", state())
    assert store.read("note") == b"from the child"


def test_a_fork_leaves_the_parents_connections_as_they_are(store: Store) -> None:
    """A child that closed them would take them out of the event queue that it shares: the parent would hear nothing."""
    config = S3ClientConfig(read_timeout=5)
    fs = S3FileSystem(REGION, s3client_config=config)
    store.write("object", b"body")

    def read() -> None:
        with fs.create_stream(f"{store.uri}/object", "rb") as stream:
            assert stream.read() == b"body"

    read()
    assert Child(gc.collect).result() >= 0
    read()
    assert fs.client.stats().retries == 0


def try_stream(stream: Any) -> list[str]:
    """What a child can do with a stream that its parent writes."""
    errors = [raised_by(stream.write, bytes(2 * MIB)), raised_by(stream.abort), raised_by(stream.close)]
    del stream
    gc.collect()
    return [type(error).__name__ for error in errors]


def test_a_stream_that_is_open_at_a_fork_stays_the_parents(store: Store) -> None:
    fs = S3FileSystem(REGION, s3client_config=S3ClientConfig(part_size=5 * MIB))
    with fs.create_stream(f"{store.uri}/stream", "wb") as stream:
        stream.write(b"a" * (12 * MIB))
        assert Child(try_stream, stream).result() == ["Interrupted", "NoneType", "NoneType"]
        stream.write(b"b" * MIB)
    assert store.read("stream") == b"a" * (12 * MIB) + b"b" * MIB


def try_download(load: Any, download: Any) -> list[str]:
    """What a child can do with a download of its parent."""
    another = partial(load.start, [], None)
    return [type(raised_by(call)).__name__ for call in (download.wait, another, load.close)]


def test_a_download_under_way_at_a_fork_stays_the_parents(store: Store, s3dcp_server: testing.Server) -> None:
    store.write("object.distcp", bytes(range(100)))
    held = Held()
    target = torch.zeros(100, dtype=torch.uint8)
    with Between(s3dcp_server.endpoint_url, held) as between:
        client = S3FileSystem(REGION, endpoint_url=between.url).client
        load = client.load(store.bucket, store.path, False)
        download = load.start([(first_bytes(load, "object.distcp", 100), target.data_ptr())], target)
        between.wait_for(holds_data)
        assert Child(try_download, load, download).result() == ["Interrupted", "Interrupted", "NoneType"]
        held.go_on.set()
        download.wait()
    assert target.tolist() == list(range(100))
    assert issubclass(Interrupted, s3dcp.S3DcpError)


# -- forks in the middle


def save_and_load(uri: str) -> None:
    """A save and a load of a child."""
    jobs.save(state(), uri)
    jobs.check(uri, state())


def test_a_lock_that_is_held_at_a_fork_is_free_in_the_child(store: Store) -> None:
    with s3dcp._client._lock:
        child = Child(save_and_load, store.uri)
    child.result()


def collector_after(work: Any) -> tuple[bool, bool, bool]:
    """Whether the collector runs in a child: at once, in a pause of its own, and after it."""
    at_once = gc.isenabled()
    with GcPause():
        paused = gc.isenabled()
    work()
    return at_once, paused, gc.isenabled()


def test_a_child_that_is_forked_during_a_plan_collects_garbage() -> None:
    inside, leave = threading.Event(), threading.Event()

    def plan() -> None:
        with GcPause():
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as thread:
        planning = thread.submit(plan)
        inside.wait(60)
        assert not gc.isenabled()
        try:
            assert Child(collector_after, gc.collect).result() == (True, False, True)
        finally:
            leave.set()
        planning.result()
    assert gc.isenabled()


def test_a_fork_inside_a_pause_of_the_collector_keeps_the_count() -> None:
    def leave_and_pause_again(pause: Any) -> tuple[bool, bool, bool]:
        pause.__exit__(None, None, None)
        return collector_after(gc.collect)

    pause = GcPause()
    pause.__enter__()
    try:
        assert Child(leave_and_pause_again, pause).result() == (True, False, True)
    finally:
        pause.__exit__(None, None, None)
    assert gc.isenabled()


def test_many_forks_during_busy_saves_and_loads_all_end(store: Store) -> None:
    """Whatever a thread of the parent holds at the fork, the child loads with a client of its own and ends."""
    jobs.save(state(), store.uri)
    busy_state = {"x": values((2 * MIB,), 1), "views": [values((500, 300), 2).t(), values((300, 500), 3).t()]}
    stop = threading.Event()
    failures: list[BaseException] = []
    turns = [0, 0]

    def busy(number: int) -> None:
        uri = f"{store.uri}/busy-{number}"
        try:
            while not stop.is_set():
                jobs.save(busy_state, uri, thread_count=2)
                jobs.check(uri, busy_state)
                turns[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            for child in [Child(jobs.check, store.uri, state()) for _ in range(3)]:
                child.result()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert min(turns) >= 1


# -- data loaders


class Plain(IterableDataset):  # type: ignore[type-arg]
    """Numbers, without anything of ours."""

    def __iter__(self) -> Iterator[int]:
        yield from range(5)


class Stored(IterableDataset):  # type: ignore[type-arg]
    """The bytes of objects, read in the workers with a file system and a reader of the parent."""

    def __init__(self, store: Store) -> None:
        self.uri = store.uri
        self.fs = S3FileSystem(REGION)
        self.reader = S3StorageReader(REGION, store.uri)
        assert self.fs.exists(f"{self.uri}/a")  # used before the fork

    def __iter__(self) -> Iterator[Any]:
        with self.fs.create_stream(f"{self.uri}/a", "rb") as stream:
            yield stream.read()
        loaded = blank(state())
        dcp.load(loaded, storage_reader=self.reader)
        yield loaded["x"]


@pytest.mark.parametrize("dataset", [Plain, Stored])
def test_workers_of_a_data_loader_are_forked_while_a_save_runs(
    store: Store, s3dcp_server: testing.Server, dataset: type
) -> None:
    jobs.save(state(), store.uri)
    store.write("a", b"bytes of a")
    held = Held()
    with Between(s3dcp_server.endpoint_url, held) as between:
        writer = S3StorageWriter(REGION, f"{store.uri}/async", endpoint_url=between.url)
        saving = dcp.async_save(state(), storage_writer=writer)
        between.wait_for(holds_data)
        source = Plain() if dataset is Plain else Stored(store)
        loader = DataLoader(source, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        items = list(loader)
        assert not saving.done()
        held.go_on.set()
        saving.result()
    if dataset is Plain:
        assert sorted(items) == sorted([*range(5), *range(5)])
    else:
        tensors = [item for item in items if isinstance(item, torch.Tensor)]
        assert [item for item in items if isinstance(item, bytes)] == [b"bytes of a"] * 2
        assert len(tensors) == 2
        for tensor in tensors:
            assert_same(tensor, state()["x"])
    jobs.check(f"{store.uri}/async", state())


# -- spawn


def save_in_spawned_child(pickled: bytes, uri: str) -> None:
    """A save and a load with a writer and a reader that came as bytes."""
    writer, reader = pickle.loads(pickled)
    dcp.save(state(), storage_writer=writer)
    loaded = blank(state())
    dcp.load(loaded, storage_reader=reader)
    assert_same(loaded, state())
    S3FileSystem(REGION).rm_file(f"{uri}/.metadata")
    os._exit(7)


@pytest.mark.distributed
def test_a_spawned_child_uses_a_pickled_writer_and_reader(store: Store) -> None:
    writer, reader = S3StorageWriter(REGION, store.uri), S3StorageReader(REGION, store.uri)
    dcp.save(state(), storage_writer=writer)
    pickled = pickle.dumps((writer, reader))
    child = multiprocessing.get_context("spawn").Process(target=save_in_spawned_child, args=(pickled, store.uri))
    child.start()
    child.join(120)
    assert child.exitcode == 7
    assert len(store.shards()) == 1
    assert ".metadata" not in store.names()


# -- threads


def test_writers_of_many_threads_share_a_client_and_do_not_mix(store: Store) -> None:
    states = [training_state(10 * number) for number in range(8)]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait(60)
        jobs.save(states[number], f"{store.uri}/{number}", thread_count=2)
        jobs.check(f"{store.uri}/{number}", states[number])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert store.uploads() == []
