"""Progress of a save or load: a bar on standard error, or the caller's own function; at its end, a line in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from . import _native
from ._usage import UsageMeter

ProgressCallback = Callable[[int, int], None]
INTERVAL_SECONDS = 0.1

logger = logging.getLogger("s3dcp")


class Progress:
    """Context manager that reports bytes moved by `client` until it is left, by a thread of its own, and logs them.

    Args:
        target: False for nothing, True for a bar, else a callable ``(bytes_done, bytes_total)``.
        label: what is going on: ``"save"`` or ``"load"``.
        path: the checkpoint.
        counter: the client's statistic to follow, ``"bytes_sent"`` or ``"bytes_received"``.
        total: bytes expected.
        rank: only rank 0 draws a bar.
    """

    def __init__(
        self,
        target: bool | ProgressCallback,
        label: str,
        path: str,
        client: _native.Client,
        counter: str,
        total: int,
        rank: int,
    ) -> None:
        self._what = (label, path, rank)
        self._client = client
        self._counter = counter
        self._total = total
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._report: Callable[[int, int], None] | None = None
        if target is True:
            self._report = _Bar(label) if rank == 0 else None
        elif callable(target):
            self._report = target
        self._failure: BaseException | None = None

    def __enter__(self) -> Progress:
        self._meter, self._before = UsageMeter(self._client), self._client.stats()
        if self._report is not None:
            self._thread = threading.Thread(target=self._run, name="s3dcp-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._log()
        if self._thread is None or self._report is None:
            return
        self._done.set()
        self._thread.join()
        if error is None:
            if self._failure is not None:
                raise self._failure
            self._report(self._total, self._total)
        if isinstance(self._report, _Bar):
            self._report.close()

    def _moved(self, after: _native.Stats) -> int:
        return int(getattr(after.since(self._before), self._counter))

    def _log(self) -> None:
        used = self._meter.read()
        gib = getattr(used, self._counter) / 2**30
        logger.info(
            "%s of %s, rank %d: %.2f GiB in %.2f s (%.2f GiB/s), %d requests, %d retries, %d SlowDowns",
            *self._what,
            *(gib, used.seconds, gib / max(used.seconds, 1e-9), used.requests, used.retries, used.slow_downs),
        )

    def _run(self) -> None:
        assert self._report is not None
        try:
            while not self._done.wait(INTERVAL_SECONDS):
                self._report(min(self._moved(self._client.stats()), self._total), self._total)
        except BaseException as failure:
            self._failure = failure


class _Bar:
    """One line on standard error, redrawn in place; on a file, only its last state is written."""

    WIDTH = 24

    def __init__(self, label: str) -> None:
        self._label = label
        self._began = time.perf_counter()
        self._line = ""

    def __call__(self, done: int, total: int) -> None:
        seconds = max(time.perf_counter() - self._began, 1e-9)
        share = done / total if total else 1.0
        filled = "█" * round(share * self.WIDTH)
        self._line = (
            f"{self._label} {filled:·<{self.WIDTH}} {share:4.0%}  "
            f"{done / 2**20:,.1f} of {total / 2**20:,.1f} MiB  {done / 2**30 / seconds:.2f} GiB/s"
        )
        if sys.stderr.isatty():
            print(f"\r{self._line}\x1b[K", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._line:
            print(f"\r{self._line}" if sys.stderr.isatty() else self._line, file=sys.stderr, flush=True)
