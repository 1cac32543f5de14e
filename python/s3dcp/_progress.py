"""Progress: a bar on standard error, or the caller's own function; of a save or load at its end, a line in the log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from . import _native
from ._usage import UsageMeter
from .errors import ConfigError

ProgressCallback = Callable[[int, int], None]
INTERVAL_SECONDS = 0.1

logger = logging.getLogger("s3dcp")


def checked_progress(progress: bool | ProgressCallback) -> bool | ProgressCallback:
    """
    Raises:
        ConfigError: `progress` is neither a bool nor callable.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise ConfigError(f"progress={progress!r}: must be a bool, or a callable (bytes_done, bytes_total)")
    return progress


@contextmanager
def reporting(progress: bool | ProgressCallback, label: str, draws: bool = True) -> Iterator[ProgressCallback | None]:
    """What to call with the bytes done and their total.

    Args:
        progress: False for nothing, True for a bar, else the callable itself.
        label: what is going on, such as ``"save"``.
        draws: whether this process draws a bar.
    """
    checked_progress(progress)
    if not isinstance(progress, bool):
        yield progress
    elif progress and draws:
        bar = _Bar(label)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield None


@contextmanager
def transfer_progress(
    progress: bool | ProgressCallback,
    label: str,
    path: str,
    client: _native.Client,
    counter: str,
    total: int,
    rank: int,
) -> Iterator[None]:
    """Report bytes moved by `client` meanwhile, by a thread of its own, and log them at the end.

    Args:
        progress: as for `reporting`.
        label: what is going on: ``"save"`` or ``"load"``.
        path: the checkpoint.
        client: what moves them.
        counter: the client's statistic to follow, ``"bytes_sent"`` or ``"bytes_received"``.
        total: bytes expected.
        rank: only rank 0 draws a bar.
    """
    meter = UsageMeter(client)
    with (
        reporting(progress, label, rank == 0) as report,
        nullcontext() if report is None else _watching(report, lambda: meter.count(counter), total),
    ):
        yield
        _log(meter, label, path, counter, rank)


@contextmanager
def _watching(report: ProgressCallback, done: Callable[[], int], total: int) -> Iterator[None]:
    """Call `report` again and again in a thread, and with the whole at the end; what it raised is raised then."""
    over = threading.Event()
    failures: list[BaseException] = []

    def watch() -> None:
        try:
            while not over.wait(INTERVAL_SECONDS):
                report(min(done(), total), total)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=watch, name="s3dcp-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]
    report(total, total)


def _log(meter: UsageMeter, label: str, path: str, counter: str, rank: int) -> None:
    used = meter.read()
    gib = getattr(used, counter) / 2**30
    logger.info(
        "%s of %s, rank %d: %.2f GiB in %.2f s (%.2f GiB/s), %d requests, %d retries, %d SlowDowns",
        *(label, path, rank),
        *(gib, used.seconds, gib / max(used.seconds, 1e-9), used.requests, used.retries, used.slow_downs),
    )


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
