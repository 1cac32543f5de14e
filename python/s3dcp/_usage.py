"""What a client did in some time: the figures of the log, of reports and of telemetry."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import NamedTuple

from . import _native


class Latency(NamedTuple):
    """Seconds until the answers to some requests began; NaN where there were none.

    It counts from the first byte of a request that sends a body, and from the end of every other. Two digits are right.

    Attributes:
        p50: what half of the answers did not exceed.
        p90: what 90 of 100 did not exceed.
        p99: what 99 of 100 did not exceed.
        max: the longest.
    """

    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, used: _native.Stats) -> Latency:
        """Those of the requests that these statistics count."""
        found = (used.latency(part) for part in (0.5, 0.9, 0.99, 1.0))
        return cls(*(math.nan if seconds is None else seconds for seconds in found))

    def __str__(self) -> str:
        return f"median {self.p50:.3f} s, 99 % {self.p99:.3f} s"


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a client did, whoever asked for it."""

    seconds: float
    bytes_sent: int
    bytes_received: int
    requests: int
    retries: int
    slow_downs: int
    latency: Latency


class UsageMeter:
    """Measures what `client` does from now on."""

    def __init__(self, client: _native.Client) -> None:
        self._client = client
        self._began, self._before = time.perf_counter(), client.stats()

    def count(self, counter: str) -> int:
        """One of its statistics so far, such as ``"bytes_sent"``."""
        return int(getattr(self._client.stats().since(self._before), counter))

    def read(self) -> Usage:
        """What it did so far."""
        used = self._client.stats().since(self._before)
        return Usage(
            seconds=time.perf_counter() - self._began,
            bytes_sent=used.bytes_sent,
            bytes_received=used.bytes_received,
            requests=used.requests,
            retries=used.retries,
            slow_downs=used.throttled,
            latency=Latency.of(used),
        )
