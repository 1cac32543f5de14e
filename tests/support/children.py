"""Forked children of the process that runs the tests, and what they do there."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import select
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException

TIMEOUT_SECONDS = 60


class Child:
    """A forked child that runs a function, reports what it returned, and ends without any farewell."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._pipe, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _run(theirs, function, args)
        os.close(theirs)

    def result(self) -> Any:
        """What the function returned; fails when it raised, died or hung."""
        body = b""
        while select.select([self._pipe], [], [], TIMEOUT_SECONDS)[0]:
            if not (piece := os.read(self._pipe, 65536)):
                break
            body += piece
        else:
            os.kill(self.pid, signal.SIGABRT)  # which prints where it hangs
            self.status()
            pytest.fail(f"a forked child hung for {TIMEOUT_SECONDS} s")
        status = self.status()
        assert body, f"a forked child ended with {status} and said nothing"
        kind, value = pickle.loads(body)
        assert kind == "returned", value
        return value

    def status(self) -> int:
        """How it ended, when it has: the exit code, or the negative number of the signal."""
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(pipe: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable()  # a thread of the parent may hold the lock of the file that pytest logs to
    try:
        try:
            answer = ("returned", function(*args))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        with contextlib.suppress(OSError):
            os.write(pipe, pickle.dumps(answer))
    finally:
        os._exit(0)


def raised_by(function: Callable[..., Any], *args: Any, **kwargs: Any) -> BaseException | None:
    """What a call raises, out of torch's CheckpointException where it is in one."""
    try:
        function(*args, **kwargs)
    except CheckpointException as error:
        ((cause, _),) = error.failures.values()
        return cause
    except BaseException as error:
        return error
    return None


def names_of_threads() -> set[str]:
    """Names of Python's threads and of the kernel's of this process."""
    tasks = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    return {thread.name for thread in threading.enumerate()} | (tasks - {Path("/proc/self/comm").read_text().strip()})
