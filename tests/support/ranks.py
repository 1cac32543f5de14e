"""A group of ranks in processes of its own, which runs one function after another.

Starting a process with torch takes seconds, a function in it milliseconds, so one group serves many tests.
A call sends the function by name with its arguments and the ``AWS_*`` environment of the caller, runs it on
every rank at once and gives the results in the order of the ranks. An exception of any rank is raised in the
caller. A group in which a rank died or hung is stopped and must be made anew.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120
# For the start of all processes, each of which imports torch.
START_SECONDS = 400


class RankFailed(AssertionError):
    """A function failed on a rank; `error` is what it raised, also the cause."""

    def __init__(self, rank: int, error: BaseException, trace: str) -> None:
        super().__init__(f"rank {rank} failed: {trace}")
        self.rank = rank
        self.error = error


class Ranks:
    """`count` processes that are ranks of one gloo group."""

    def __init__(self, count: int) -> None:
        self.count = count
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name) / "store"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, str(store), theirs))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self.alive = True
        self._has_begun = False

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call ``function(*args, **kwargs)`` on every rank; its results by rank."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        for pipe in self._pipes:
            pipe.send((function, args, kwargs, environment))
        try:
            if not self._has_begun:
                self._has_begun = len(self._answers(START_SECONDS)) == self.count
            answers = self._answers(TIMEOUT_SECONDS) if self._has_begun else {}
        except BaseException:
            self.stop()
            raise
        silent = self.count - len(answers)
        if silent:
            self.stop()
        for rank, (error, trace, _) in answers.items():  # what others may have waited for in vain
            if error is not None:
                raise RankFailed(rank, error, trace) from error
        if silent:
            raise RuntimeError(f"{silent} of {self.count} ranks did not answer")
        return [result for _, _, result in answers.values()]

    def _answers(self, seconds: float) -> dict[int, Any]:
        """The next answer of each rank that gives one in time."""
        end = time.monotonic() + seconds
        answered = (item for item in enumerate(self._pipes) if item[1].poll(max(end - time.monotonic(), 0)))
        return {rank: pipe.recv() for rank, pipe in answered}

    def stop(self) -> None:
        """End the processes."""
        self.alive = False
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()


class Alone:
    """The same interface for one process without a group: functions run in the caller's own."""

    count = 1

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Call ``function(*args, **kwargs)``; its result in a list."""
        return [function(*args, **kwargs)]


def _serve(rank: int, count: int, store: str, pipe: Connection) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    import torch
    import torch.distributed as dist

    from support import torch_versions  # noqa: F401 - an older torch takes what tests say

    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT_SECONDS + 20)  # who waits so long is stopped before
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timeout)
    pipe.send(None)  # it has begun
    while True:
        try:
            function, args, kwargs, environment = pipe.recv()
        except EOFError:
            break
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(environment)
        try:
            answer = (None, "", function(*args, **kwargs))
        except BaseException as error:
            answer = (error, traceback.format_exc(), None)
        try:
            pipe.send(answer)
        except Exception as error:
            pipe.send((RuntimeError(f"the answer does not pickle: {error!r}"), f"{answer[1]}{error!r}", None))
    with contextlib.suppress(Exception):
        dist.destroy_process_group()
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(0)  # an orderly end of the interpreter takes seconds
