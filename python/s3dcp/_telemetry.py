"""Spans and metrics of saves and loads, by OpenTelemetry where its API is installed.

An `Operation` notes what happens and when. It is told once, when it has ended, with the times that things had: so
nothing is open meanwhile in a thread or process that may not come to its end, and what telemetry does can neither slow
a save or load down nor fail it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from . import _native
from ._usage import Usage, UsageMeter

__all__ = ["Operation", "Staged"]

logger = logging.getLogger(__name__)

# Seconds: a save may take milliseconds or an hour.
_DURATIONS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Staged:
    """That the caller of an asynchronous save staged its state: since when it waits, and in which of its spans.

    Whatever saves it, in another thread or process, takes this along; then the span is known by its name alone.
    """

    def __init__(self, began: int) -> None:
        self.began, self.ended = began, time.time_ns()
        self._caller = (os.getpid(), threading.get_ident())
        self._context: Any = _current_context()
        self._carrier: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_context": None, "_carrier": _carried(self._context)}

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is not the thread that staged, so that an asynchronous save goes on in it."""
        return self._caller != (os.getpid(), threading.get_ident())

    @property
    def context(self) -> Any:
        """The context of the caller."""
        return _context_of(self._carrier) if self._context is None else self._context


@dataclass
class _Phase:
    name: str
    began: int
    ended: int | None = None
    error: BaseException | None = None


class Unfinished(Exception):
    """A save or load that nobody went on with."""

    kind = "Unfinished"


class Operation:
    """One save or load on this rank, from its begin to `end`.

    Args:
        kind: what it is.
        path: the checkpoint.
        bucket: its bucket.
        staged: of an asynchronous save, that its state was staged.
    """

    def __init__(self, kind: Literal["save", "load"], path: str, bucket: str, staged: Staged | None = None) -> None:
        self.kind = kind
        self.staged = staged
        self.attributes: dict[str, Any] = {"aws.s3.bucket": bucket, "s3dcp.path": path}
        self.usage: Usage | None = None
        self.began = time.time_ns()
        self.ended = 0
        self.phases: list[_Phase] = []
        if staged is not None:
            self.began = staged.began
            self.phases.append(_Phase("stage", staged.began, staged.ended))
        self.parent = _current_context() if staged is None else staged.context
        self._meter: UsageMeter | None = None
        self.is_over = False

    @classmethod
    def of_save(cls, path: str, bucket: str, staged: Staged | None) -> Operation:
        """A save that begins in this thread; `staged` is the writer's latest."""
        return cls("save", path, bucket, staged if staged is not None and staged.is_elsewhere else None)

    def use(self, client: _native.Client) -> None:
        """Measure what `client` does from now on."""
        self._meter = UsageMeter(client)

    def note(self, **attributes: str | int | None) -> None:
        """Facts that are not None."""
        self.attributes.update({f"s3dcp.{name}": value for name, value in attributes.items() if value is not None})

    @contextmanager
    def phase(self, name: str, *, goes_on: bool = False) -> Iterator[None]:
        """A step of it, whose failure is its own.

        Args:
            name: what the step is called; one that goes on under this name is the same.
            goes_on: what comes until the next phase, between two calls of torch, belongs to this one.
        """
        if self.is_over:  # it has been told
            yield
            return
        _begin(self)
        phase = self._enter(name)
        try:
            yield
        except BaseException as error:
            phase.error = error
            self.end(error)
            raise
        if not goes_on:
            phase.ended = time.time_ns()

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """A step that may fail, or come to nothing, while the operation may go on or never begin."""
        phase = self._enter(name)
        try:
            yield
        finally:
            phase.ended = time.time_ns()

    def _enter(self, name: str) -> _Phase:
        last = self.phases[-1] if self.phases else None
        if last is not None and last.ended is None:
            if last.name == name:
                return last
            last.ended = time.time_ns()
        phase = _Phase(name, time.time_ns())
        self.phases.append(phase)
        return phase

    def end(self, error: BaseException | None = None) -> None:
        """It is over; a second call does nothing."""
        if self.is_over:
            return
        self.is_over = True
        if _open.get(threading.current_thread()) is self:
            del _open[threading.current_thread()]
        self.ended = time.time_ns()
        if self._meter is not None:
            self.usage, self._meter = self._meter.read(), None
        _tell(self, error)
        self.phases = []  # a traceback would keep alive what its frames hold

    def give_up(self) -> None:
        """Tell of it as one that nobody went on with, until where it came."""
        last = max([self.began, *(phase.ended or phase.began for phase in self.phases)])
        self.ended, self.is_over, self._meter = last, True, None
        _tell(self, Unfinished(f"the {self.kind} ended elsewhere: another rank failed, or the job ended"))
        self.phases = []


# What each thread works at. torch does not tell a rank whose own part went well that the whole failed.
_open: dict[threading.Thread, Operation] = {}


def _begin(operation: Operation) -> None:
    """Let `operation` be what this thread works at; what it worked at before, and dead threads did, came to nothing."""
    this = threading.current_thread()
    if _open.get(this) is operation or _api() is None:
        return
    _give_up(lambda thread: thread is this or not thread.is_alive())
    _open[this] = operation


def _give_up(which: Any = lambda thread: True) -> None:
    for thread in [thread for thread in list(_open) if which(thread)]:
        operation = _open.pop(thread, None)
        if operation is not None:
            operation.give_up()


os.register_at_fork(after_in_child=_open.clear)


# -- OpenTelemetry: whatever it raises goes to the log


@functools.cache
def _api() -> Any:
    """The module that has ``trace``, ``metrics`` and ``context``; None where it is not installed."""
    try:
        import opentelemetry
        import opentelemetry.context
        import opentelemetry.metrics
        import opentelemetry.trace.propagation.tracecontext
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError):
            logger.warning("OpenTelemetry cannot be imported: %r", error)
        return None
    atexit.register(_give_up)  # after the user's SDK is there, and so before it ends
    return opentelemetry


def _current_context() -> Any:
    """The context of the caller; None where there is none."""
    if (api := _api()) is None:
        return None
    try:
        return api.context.get_current()
    except Exception as error:
        logger.warning("the current span cannot be told: %r", error)
        return None


def _carried(context: Any) -> dict[str, str]:
    """What names the span of `context` in another process."""
    carrier: dict[str, str] = {}
    if context is not None and (api := _api()) is not None:
        try:
            api.trace.propagation.tracecontext.TraceContextTextMapPropagator().inject(carrier, context)
        except Exception as error:
            logger.warning("the current span cannot be told to another process: %r", error)
    return carrier


def _context_of(carrier: Mapping[str, str]) -> Any:
    if (api := _api()) is None:
        return None
    try:
        return api.trace.propagation.tracecontext.TraceContextTextMapPropagator().extract(
            carrier, api.context.Context()
        )
    except Exception as error:
        logger.warning("the span of another process cannot be told: %r", error)
        return None


def _tell(operation: Operation, error: BaseException | None) -> None:
    """Give the spans and metrics of `operation`, which has ended, to OpenTelemetry."""
    api = _api()
    if api is None:
        return
    attributes = dict(operation.attributes)
    for tell in (_tell_spans, _tell_metrics):
        try:
            tell(api, operation, attributes, error)
        except Exception as failed:
            logger.warning("telemetry of the %s of %s failed: %r", operation.kind, attributes["s3dcp.path"], failed)


def _tell_spans(api: Any, operation: Operation, attributes: dict[str, Any], error: BaseException | None) -> None:
    if (used := operation.usage) is not None:
        counted = {name: getattr(used, name) for name in _COUNTED}
        percentiles = {f"request.latency.{name}": value for name, value in used.latency._asdict().items()}
        attributes |= {
            f"s3dcp.{name}": value for name, value in {**counted, **percentiles}.items() if not math.isnan(value)
        }
    trace = api.trace
    tracer = trace.get_tracer("s3dcp", _native.__version__)

    def span(name: str, context: Any, began: int, ended: int, error: BaseException | None, **more: Any) -> Any:
        made = tracer.start_span(name, context=context, start_time=began, **more)
        if error is not None:
            made.set_status(trace.Status(trace.StatusCode.ERROR, f"{_kind(error)}: {error}"))
            made.set_attribute("error.type", _kind(error))
            if (request_id := getattr(error, "request_id", None)) is not None:
                made.set_attribute("aws.request_id", request_id)
            made.record_exception(error, timestamp=ended)
        return made

    whole = span(
        f"s3dcp.{operation.kind}",
        *(operation.parent, operation.began, operation.ended, error),
        attributes=attributes,
    )
    try:
        within = trace.set_span_in_context(whole, operation.parent)
        for phase in operation.phases:
            ended = phase.ended or operation.ended
            span(f"s3dcp.{phase.name}", within, phase.began, ended, phase.error).end(ended)
    finally:
        whole.end(operation.ended)


def _tell_metrics(api: Any, operation: Operation, attributes: dict[str, Any], error: BaseException | None) -> None:
    instruments = _instruments()
    of = {"s3dcp.operation": operation.kind, "aws.s3.bucket": attributes["aws.s3.bucket"]}
    failed = {} if error is None else {"error.type": _kind(error)}
    instruments[f"{operation.kind}s"].add(1, {"aws.s3.bucket": of["aws.s3.bucket"]})
    if failed:
        instruments["failures"].add(1, {**of, **failed})
    instruments["duration"].record((operation.ended - operation.began) / 1e9, {**of, **failed})
    if (staged := operation.staged) is not None:
        instruments["stall.duration"].record((staged.ended - staged.began) / 1e9, of)
    if (used := operation.usage) is None:
        return
    for name in _COUNTED:
        instruments[name].add(getattr(used, name), of)
    for percentile, seconds in zip(("50", "90", "99", "100"), used.latency, strict=True):
        if not math.isnan(seconds):
            instruments["request.latency"].record(seconds, {**of, "s3dcp.percentile": percentile})


# What `Usage` counts, with units.
_COUNTED = {
    "bytes_sent": ("By", "Body bytes that were sent, repeated ones included"),
    "bytes_received": ("By", "Body bytes that were received"),
    "requests": ("{request}", "Requests that were sent"),
    "retries": ("{request}", "Requests that repeated a failed one"),
    "slow_downs": ("{response}", "Answers that asked for fewer requests"),
}


@functools.cache
def _instruments() -> dict[str, Any]:
    meter = _api().metrics.get_meter("s3dcp", _native.__version__)

    def histogram(name: str, description: str, boundaries: tuple[float, ...]) -> Any:
        return meter.create_histogram(
            f"s3dcp.{name}", unit="s", description=description, explicit_bucket_boundaries_advisory=boundaries
        )

    counters = {
        "saves": ("{save}", "Saves that ended on a rank"),
        "loads": ("{load}", "Loads that ended on a rank"),
        "failures": ("{failure}", "Saves and loads of these that failed"),
        **_COUNTED,
    }
    return {
        **{
            name: meter.create_counter(f"s3dcp.{name}", unit=unit, description=description)
            for name, (unit, description) in counters.items()
        },
        "duration": histogram("duration", "Time of a save or load on a rank", _DURATIONS),
        "stall.duration": histogram(
            "stall.duration", "Time that a caller waited for its state to be staged", _DURATIONS
        ),
        "request.latency": histogram("request.latency", "Percentiles of each save and load", _LATENCIES),
    }


def _kind(error: BaseException) -> str:
    """The kind of one of our errors, else the name of its class."""
    kind = getattr(error, "kind", None)
    return kind if isinstance(kind, str) else type(error).__qualname__
