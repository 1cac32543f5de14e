"""Interrupts at random instants of loads and saves: once one has reached the caller, nothing uses the caller's memory.

``S3DCP_INTERRUPTS=500`` interrupts more often.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from s3dcp import Interrupted, S3ClientConfig, S3FileSystem, _native, storage_writer, testing
from s3dcp._gc import without_gc
from s3dcp._load import transfer
from support import chance, jobs
from support.loads import first_bytes
from support.states import assert_same, blank, values
from support.store import REGION, Store

USUAL_INTERRUPTS = 15
MIB = 1024 * 1024
# How long memory is watched after an interrupt.
WATCHED_SECONDS = 0.1
SLOW = "delay:20ms on=GetObject,PutObject,UploadPart chance=0.3"
NOTHING = (0, 0)


@pytest.fixture(autouse=True)
def nothing_to_say_of_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that strikes a callback of the interpreter is swallowed there, and another may strike what tells of it."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _unraisable: None)


@pytest.fixture(autouse=True)
def no_logging() -> Iterator[None]:
    """One that strikes a handler of logging, between taking its lock and what gives it back, leaves it locked."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def state(seed: int) -> dict[str, Any]:
    """Tensors of all sizes, and the seed."""
    return {
        "large": values((3000, 1000), seed),
        "rows": [values((500, 500), seed + number) for number in range(4)],
        "small": {str(number): values((16,), seed + number) for number in range(500)},
        "seed": seed,
    }


def targets(like: dict[str, Any]) -> dict[str, Any]:
    """A state to load into: in place, in blocks, and through slots."""
    into: dict[str, Any] = blank(like)
    into["rows"][0] = torch.zeros(500, 500, dtype=torch.float64)
    into["rows"][1] = torch.zeros(500, 500).t()
    into["rows"][2] = torch.zeros(500, 900)[:, 100:600]
    return into


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of a state."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for each in value.values() for tensor in tensors(each))
    elif isinstance(value, list):
        yield from (tensor for each in value for tensor in tensors(each))


class Struck(KeyboardInterrupt):
    """An interrupt of these tests."""


def victim(call: Callable[[], Any]) -> None:
    """What is interrupted: no interrupt is raised but on top of this frame."""
    call()


def is_within_victim(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is victim.__code__:
            return True
        frame = frame.f_back
    return False


def by_signals(call: Callable[[], Any], delay: float, strikes: int) -> BaseException | None:
    """Run `call` with signals from `delay` seconds on, of which so many are raised; what reaches the caller."""

    def strike(_number: int, frame: types.FrameType | None) -> None:
        nonlocal strikes
        if strikes and is_within_victim(frame):
            strikes -= 1
            raise Struck

    before = signal.signal(signal.SIGALRM, strike)
    try:
        signal.setitimer(signal.ITIMER_REAL, delay, 0.0003)
        victim(call)
    except BaseException as raised:
        return raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


def from_outside(call: Callable[[], Any], delay: float, _strikes: int) -> BaseException | None:
    """Run `call` in a thread into which an exception is thrown after `delay` seconds; what reaches the thread."""
    lock, ended = threading.Lock(), False
    outcome: list[BaseException] = []

    def run() -> None:
        nonlocal ended
        try:
            try:
                victim(call)
            except BaseException as raised:
                outcome.append(raised)
            with lock:
                ended = True
            time.sleep(0)  # where one that was thrown just before is raised
        except BaseException as raised:
            outcome.append(raised)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(delay)
    with lock:
        if not ended:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Struck))
    thread.join()
    return outcome[0] if outcome else None


INTERRUPTS = {"signals": by_signals, "exceptions from other threads": from_outside}


class Interrupter:
    """Interrupts calls of one kind at random instants, and counts what came of it."""

    def __init__(self, means: str) -> None:
        self.interrupt = INTERRUPTS[means]
        self.random = random.Random(chance.new_seed())
        self.count = chance.how_many("INTERRUPTS", USUAL_INTERRUPTS)
        self.outcomes: Counter[str] = Counter()
        self.seconds = 0.0

    def time(self, call: Callable[[], Any]) -> None:
        """See how long a call takes that nobody interrupts."""
        began = time.perf_counter()
        call()
        self.seconds = time.perf_counter() - began

    def run(self, call: Callable[[], Any]) -> BaseException | None:
        """Run `call` and interrupt it, more than once at times; what reached the caller."""
        strikes = self.random.choice([1, 1, 1, 2, 3, 5])
        raised = self.interrupt(call, self.random.uniform(0.0001, 1.1 * self.seconds), strikes)
        assert gc.isenabled(), f"no garbage is collected any more after {raised!r}"
        self.outcomes["ended" if raised is None else type(raised).__name__] += 1
        return raised

    def tell(self) -> None:
        print(f"{self.count} interrupts within {1.1 * self.seconds:.3f} s: {dict(self.outcomes)}")


@pytest.fixture
def slow(s3dcp_server: testing.Server) -> Iterator[None]:
    """Some requests take their time."""
    s3dcp_server.inject(SLOW)
    yield
    s3dcp_server.clear_faults()


@pytest.mark.parametrize("means", INTERRUPTS)
def test_after_an_interrupted_load_nothing_is_written(store: Store, slow: None, means: str) -> None:
    saved = state(1)
    jobs.save(saved, store.uri)
    interrupter = Interrupter(means)
    interrupter.time(lambda: jobs.load(targets(saved), store.uri, no_dist=True))
    for number in range(interrupter.count):
        into = targets(saved)
        raised = interrupter.run(partial(jobs.load, into, store.uri, no_dist=True))
        in_use = _native.memory_in_use()
        then = [tensor.clone() for tensor in tensors(into)]
        assert in_use == NOTHING, f"interrupt {number}: {in_use} after {raised!r}"
        time.sleep(WATCHED_SECONDS if raised else 0)
        changed = [not torch.equal(*both) for both in zip(tensors(into), then, strict=True)]
        assert not any(changed), f"interrupt {number}: {sum(changed)} tensors changed after {raised!r}"
    interrupter.tell()
    jobs.check(store.uri, saved)


@pytest.mark.parametrize("means", INTERRUPTS)
def test_after_an_interrupted_save_nothing_is_read(store: Store, slow: None, means: str) -> None:
    jobs.save(state(0), store.uri)
    config = S3ClientConfig(part_size=5 * MIB)
    save = partial(jobs.save, no_dist=True, s3client_config=config, thread_count=2)
    interrupter = Interrupter(means)
    interrupter.time(lambda: save(state(0), store.uri))
    for number in range(1, interrupter.count + 1):
        memory = state(number)
        memory["rows"][0] = memory["rows"][0].t().contiguous().t()
        raised = interrupter.run(partial(save, memory, store.uri))
        in_use = _native.memory_in_use()
        for place in tensors(memory):
            place.zero_()
        assert in_use == NOTHING, f"interrupt {number}: {in_use} after {raised!r}"
        found = jobs.load(blank(memory), store.uri, no_dist=True)
        assert found["seed"] == number if raised is None else found["seed"] <= number
        assert_same(found, state(found["seed"]))
        store.sweep()
    interrupter.tell()


# -- at the instants that matter most


def test_a_download_whose_start_is_never_noted_is_stopped(store: Store, s3dcp_server, monkeypatch, failure) -> None:
    saved = state(1)
    jobs.save(saved, store.uri)

    def start(self: transfer.Transfer, wanted: Any, memory: object) -> None:
        self.load.start(wanted, memory)
        raise Struck

    monkeypatch.setattr(transfer.Transfer, "_download", start)
    s3dcp_server.inject("delay:50ms on=GetObject key=*.distcp")
    try:
        raised = failure(jobs.load, targets(saved), store.uri)
        assert _native.memory_in_use() == NOTHING
    finally:
        s3dcp_server.clear_faults()
    assert isinstance(raised, Struck)


def test_uploads_are_stopped_when_discarding_them_is_interrupted(
    store: Store, s3dcp_server, monkeypatch, failure
) -> None:
    def discard(*_arguments: Any) -> None:
        raise Struck

    class Refusing(jobs.DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if write_item.index.fqn == "b":
                assert _native.memory_in_use()[0] > 0, "nothing is on its way yet"
                raise ValueError("no")
            return super().resolve_data(write_item)

    monkeypatch.setattr(storage_writer, "discard", discard)
    s3dcp_server.inject("silence on=UploadPart")
    try:
        two = {"a": values((4000, 1000), 1), "b": values((3000, 1000), 2)}
        raised = failure(jobs.save, two, store.uri, planner=Refusing())
        assert _native.memory_in_use() == NOTHING
    finally:
        s3dcp_server.clear_faults()
    assert isinstance(raised, Struck)


def test_downloads_that_nobody_holds_any_more_are_stopped(store: Store, s3dcp_server) -> None:
    store.write("object.distcp", bytes(range(100)))
    target = torch.zeros(100, dtype=torch.uint8)
    s3dcp_server.inject("silence on=GetObject")
    try:
        load = S3FileSystem(REGION).client.load(store.bucket, store.path, False)
        load.start([(first_bytes(load, "object.distcp", 100), target.data_ptr())], target)
        assert _native.memory_in_use() != NOTHING
        del load
        assert _native.memory_in_use() == NOTHING
    finally:
        s3dcp_server.clear_faults()


def test_an_upload_that_nobody_holds_any_more_is_stopped(store: Store, s3dcp_server) -> None:
    tensor = torch.zeros(12 * MIB, dtype=torch.uint8)
    s3dcp_server.inject("silence on=PutObject,UploadPart,CreateMultipartUpload")
    try:
        client = S3FileSystem(REGION, s3client_config=S3ClientConfig(part_size=5 * MIB)).client
        save = _native.Save(client, store.bucket, store.path, None, None, None, "0123456789abcdef")
        writers = [save.shard("__0_", number, 0) for number in range(3)]
        for writer, nbytes in zip(writers, (100_000, 12 * MIB, 12 * MIB), strict=True):
            writer.raw_memory(tensor.data_ptr(), nbytes, tensor)
        for writer in writers[:2]:
            writer.start_finishing()
        assert _native.memory_in_use() != NOTHING
        del save, writer, writers
        assert _native.memory_in_use() == NOTHING
    finally:
        s3dcp_server.clear_faults()


@without_gc
def without_garbage() -> None:
    """A pause in a pause."""
    with _native.GcPause(old_at_once=True):
        sorted(range(10))


@pytest.mark.parametrize("means", INTERRUPTS)
def test_the_garbage_collector_runs_after_an_interrupted_pause(means: str) -> None:
    def pause_often() -> None:
        for _ in range(3000):
            without_garbage()

    interrupter = Interrupter(means)
    interrupter.count *= 10
    interrupter.time(pause_often)
    for _ in range(interrupter.count):
        interrupter.run(pause_often)  # looks at the collector
    interrupter.tell()


def test_a_pause_of_the_garbage_collector_that_nobody_ends_ends_with_its_object() -> None:
    pause = _native.GcPause()
    pause.__enter__()
    assert not gc.isenabled()
    del pause
    assert gc.isenabled()


def test_none_can_be_started_once_a_load_has_ended(store: Store) -> None:
    load = S3FileSystem(REGION).client.load(store.bucket, store.path, False)
    with load:
        pass
    with pytest.raises(Interrupted):
        load.start([], None)
