"""Ranks to be killed, forked from one warm process.

Four processes with torch take seconds to start; four forks of one in which torch has saved and loaded before take
a fraction of one. The warm process never makes a thread, a connection or a client: each fork makes its own.

A function gets everything ready and gives what is then called on all ranks at once. Every rank is killed in the
end: at the instant that was asked for, or when it has told how it went.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

TIMEOUT_SECONDS = 60


@dataclass
class Kill:
    """`ranks` die `seconds` after the start; the others have until `grace` seconds later."""

    ranks: list[int]
    seconds: float
    grace: float


@dataclass
class Ended:
    """How a function ended on a rank: with a result, or with an error's text."""

    result: Any
    error: str
    seconds: float


class Zygote:
    """The warm process."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def run(self, count: int, kill: Kill | None, function: Callable[..., Any], *args: Any) -> list[Ended | None]:
        """What ``function(*args)`` gives is called on `count` ranks; how it ended on each, None where it was killed."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        self._pipe.send((count, kill, function, args, environment))
        ended, trouble = self._pipe.recv()
        if trouble:
            raise RuntimeError(trouble)
        return ended  # type: ignore[no-any-return]

    def results(self, count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The same where nobody is killed and nothing may fail; the results by rank."""
        ended = self.run(count, None, function, *args)
        assert all(each is not None and not each.error for each in ended), ended
        return [each.result for each in ended if each is not None]

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    _warm_up()
    while True:
        try:
            count, kill, function, args, environment = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            threads = os.listdir("/proc/self/task")
            assert len(threads) == 1, f"a fork would lose {len(threads) - 1} threads"
            answer = (_run(count, kill, (function, args, environment)), "")
        except BaseException:
            answer = ([], traceback.format_exc())
        pipe.send(answer)


def _warm_up() -> None:
    """Import all that ranks import."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from support import torch_versions  # noqa: F401 - an older torch takes what tests say
    from support.states import blank, training_state

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(training_state(), storage_writer=dcp.FileSystemWriter(folder), no_dist=True)
        dcp.load(blank(training_state()), storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    training_state()
    dist.destroy_process_group()
    gc.freeze()


def _run(count: int, kill: Kill | None, job: tuple[Any, ...]) -> list[Ended | None]:
    ranks: list[tuple[Connection, BaseProcess]] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                ranks.append(_fork(rank, count, f"{folder}/store", job))
            for pipe, _ in ranks:
                if trouble := pipe.recv():
                    raise RuntimeError(trouble)
            start = time.monotonic()
            for pipe, _ in ranks:
                pipe.send("go")
            end = start + TIMEOUT_SECONDS
            if kill is not None:
                time.sleep(max(start + kill.seconds - time.monotonic(), 0))
                for rank in kill.ranks:
                    ranks[rank][1].kill()
                end = time.monotonic() + kill.grace
            return [_ended(pipe, end) for pipe, _ in ranks]
        finally:
            for _, process in ranks:
                process.kill()
            for pipe, process in ranks:
                process.join()
                pipe.close()


def _fork(rank: int, count: int, store: str, job: tuple[Any, ...]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_rank, args=(rank, count, store, theirs, job))
    process.start()
    theirs.close()
    return ours, process


def _ended(pipe: Connection, end: float) -> Ended | None:
    try:
        return pipe.recv() if pipe.poll(max(end - time.monotonic(), 0)) else None
    except (EOFError, ConnectionError):
        return None


def _rank(rank: int, count: int, store: str, pipe: Connection, job: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    function, args, environment = job
    os.environ.update(environment)
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout)
        action = function(*args)
        dist.barrier()
    except BaseException:
        pipe.send(traceback.format_exc())
        raise
    pipe.send("")
    pipe.recv()
    start = time.monotonic()
    try:
        ended = Ended(action(), "", 0)
    except BaseException as error:
        ended = Ended(None, repr(error), 0)
    ended.seconds = time.monotonic() - start
    pipe.send(ended)
    pipe.recv()  # until killed: an end of its own would close connections that others still read from
