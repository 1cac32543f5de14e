"""What ranks save in tests/test_pacing.py, watched while it runs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3dcp import S3StorageWriter
from support import strategies
from support.store import REGION
from support.strategies import Spec


@dataclass(frozen=True)
class Sample:
    """A rank's requests so far."""

    at: float
    sent: int
    refused: int

    @property
    def admitted(self) -> int:
        return self.sent - self.refused


def save_watched(uri: str, files: int, spec: Spec | None = None, **arguments: Any) -> list[Sample]:
    """Save as many small shard files; the rank's requests, from the begin to the end of its own ones."""
    if spec is not None:
        arguments["prefix_strategy"] = strategies.ours(spec)
    rank = dist.get_rank()
    state = {f"{rank}/{number}": torch.full((1024,), float(number)) for number in range(files)}
    writer = S3StorageWriter(REGION, uri, thread_count=files, **arguments)
    client = writer.fs.client
    samples: list[Sample] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            stats = client.stats()
            samples.append(Sample(time.monotonic(), stats.requests, stats.throttled))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        dcp.save(state, storage_writer=writer)
    finally:
        done.set()
        watching.join()
    last = samples[-1]
    # Afterwards the rank waits for the others.
    return [sample for sample in samples if sample.sent < last.sent]


def saved_knowing(uri: str) -> float | None:
    """Save two small shard files; the requests per second that the save began with knowing."""
    rank = dist.get_rank()
    writer = S3StorageWriter(REGION, uri, thread_count=2)
    dcp.save({f"{rank}/{number}": torch.full((8,), float(number)) for number in range(2)}, storage_writer=writer)
    assert writer._last_plan_data is not None
    return writer._last_plan_data.writes_per_second


class _Watched:
    """A store that tells whether it was added to; torch 2.6 has none with a `clone`."""

    def __init__(self, store: dist.Store, has_clone: bool) -> None:
        self._store = store
        self.is_used = False
        if has_clone:
            self.clone = lambda: self

    def add(self, key: str, amount: int) -> int:
        self.is_used = True
        return self._store.add(key, amount)


def share_of_a_throttled_save(uri: str, files: int, store_is: str) -> tuple[int, bool, int, int]:
    """Save on a store as it is: how often it was asked for, whether used, its counter, this rank's refused requests."""
    state = {f"{dist.get_rank()}/{number}": torch.full((1024,), float(number)) for number in range(files)}
    writer = S3StorageWriter(REGION, uri, thread_count=files)
    c10d = dist.distributed_c10d
    store, usual, asked = c10d._get_default_store(), c10d._get_default_store, 0

    watched = _Watched(store, store_is != "without clone")

    def ask() -> Any:
        nonlocal asked
        asked += threading.current_thread().name == "s3dcp-pace"
        if store_is == "broken":
            raise RuntimeError("the store is gone")
        return watched

    c10d._get_default_store = ask
    try:
        dcp.save(state, storage_writer=writer)
    finally:
        c10d._get_default_store = usual
    dist.barrier()
    assert "s3dcp-pace" not in {thread.name for thread in threading.enumerate()}
    bucket = uri.removeprefix("s3://").split("/")[0]
    counter = store.add(f"s3dcp/pace/writes/{bucket}", 0)
    return asked, watched.is_used, counter, writer.fs.client.stats().throttled
