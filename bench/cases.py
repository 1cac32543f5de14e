"""What is measured: each case is a list of rows, and each row one candidate doing one operation on one state."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from candidates import SLOW

US, PEER, FLOOR = "s3dcp", "s3torchconnector", "floor"
ALL = (US, FLOOR, PEER, *SLOW)
TRANSFER_CONNECTIONS = 64


@dataclass(frozen=True)
class Options:
    """Sizes of the states; cases take fractions and multiples of them."""

    gib: float = 2.0
    slow_gib: float = 0.5
    count: int = 100_000
    candidates: tuple[str, ...] = ALL


@dataclass(frozen=True)
class Row:
    """One line of a result: `spec` is what the measured process is told, `note` what sets it apart from others."""

    candidate: str
    operation: str
    spec: dict[str, Any]
    note: str = ""
    ranks: int = 1
    # The server is one of its own that answers SlowDown: writes per second of a partition, and how many there are.
    budget: tuple[float, int] | None = None
    # The save that has to come before a load: what differs from `spec`. None: nothing has to.
    before: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        return f"{self.candidate}, {self.note}" if self.note else self.candidate


@dataclass(frozen=True)
class Case:
    """A list of rows measured in turn against servers of one kind."""

    title: str
    rows: Callable[[Options], Iterator[Row]]
    server: dict[str, Any] = field(default_factory=dict)
    # A case's own bounds: it measures no more than this.
    max_runs: int | None = None


def _both(candidate: str, spec: dict[str, Any], note: str = "") -> Iterator[Row]:
    yield Row(candidate, "save", spec, note)
    yield Row(candidate, "load", spec, note, before=None if candidate in (FLOOR, "nothing") else {})


def _gib(candidate: str, options: Options) -> float:
    return min(options.gib, options.slow_gib) if candidate in SLOW else options.gib


def large(options: Options) -> Iterator[Row]:
    for candidate in options.candidates:
        yield from _both(candidate, {"gib": _gib(candidate, options)})
        if candidate in (US, PEER):
            yield from _both(candidate, {"gib": options.gib, "files": 2}, "2 files")


def tiny(options: Options) -> Iterator[Row]:
    fast = bool(importlib.util.find_spec("s3dcp.planner"))
    for candidate in ("nothing", *(name for name in options.candidates if name != FLOOR)):
        # Those that open a stream per tensor get fewer; their figures are per tensor.
        count = min(options.count, 10_000) if candidate in SLOW else options.count
        yield from _both(candidate, {"count": count})
        if fast and candidate in ("nothing", US):
            yield from _both(candidate, {"count": count, "fast_planner": True}, "s3dcp.planner")


def reshard(options: Options) -> Iterator[Row]:
    for candidate in options.candidates:
        if candidate != FLOOR:
            spec = {"gib": _gib(candidate, options), "view": "rows"}
            yield Row(candidate, "load", spec, ranks=2, before={"ranks": 8})


def quarter(options: Options) -> Iterator[Row]:
    for candidate in options.candidates:
        if candidate == FLOOR:
            yield Row(FLOOR, "load", {"gib": options.gib / 4})
            continue
        for view in ("rows", "columns"):
            spec = {"gib": _gib(candidate, options), "view": view, "pretend_ranks": 4}
            yield Row(candidate, "load", spec, view, before={"view": None, "pretend_ranks": None})


def throttled(options: Options) -> Iterator[Row]:
    """Few writes a second for few ranks, as AWS has 3,500 for thousands of them: what they send fits this machine."""
    gib = min(options.gib, 2.0)
    for part_mib, writes_per_second, partitions in ((8, 20, 1), (8, 20, 8), (64, 20, 1), (8, 8, 1)):
        where = f"{partitions} partition{'s' if partitions > 1 else ''} of {writes_per_second} a second"
        spec = {"gib": gib, "view": "rows", "part_mib": part_mib, "hex": partitions > 1}
        for candidate in (name for name in options.candidates if name in (US, PEER)):
            note = f"{part_mib} MiB parts, {where}"
            yield Row(candidate, "save", spec, note, ranks=8, budget=(writes_per_second, partitions))


def replicas(options: Options) -> Iterator[Row]:
    """Ranks that all load the same, each over a few connections of its own."""
    gib = min(options.gib, 0.5)
    for ranks in (4, 8):
        for share in (False, True):
            spec = {"gib": gib, "connections": RANK_CONNECTIONS, "share": share}
            note = "shared" if share else "not shared"
            before = {"ranks": 1, "connections": None, "share": None}
            yield Row(US, "load", spec, f"{ranks} ranks, {note}", ranks=ranks, before=before)


def training(options: Options) -> Iterator[Row]:
    """Asynchronous saves beside a loop of training steps on the CPU."""
    spec = {"gib": options.gib}
    rows = [("nothing", {}), (US, {}), (US, {"manager": True}), (PEER, {}), ("FileSystemWriter", {})]
    for candidate, how in rows:
        if candidate not in (US, PEER) or candidate in options.candidates:
            yield Row(candidate, "train", {**spec, **how}, "CheckpointManager" if how else "")


def everyday(options: Options) -> Iterator[Row]:
    """One save and one load of the large state by each candidate."""
    for candidate in options.candidates:
        yield from _both(candidate, {"gib": _gib(candidate, options)})


def transfer(options: Options) -> Iterator[Row]:
    """The engine alone, without torch, long enough for the transfer to be all that counts."""
    spec = {"gib": 4 * options.gib, "connections": TRANSFER_CONNECTIONS}
    for candidate in ("s3dcp engine", FLOOR):
        for operation in ("save", "load"):
            yield Row(candidate, operation, spec)


def sizes(options: Options) -> Iterator[Row]:
    for part in (0.25, 0.5, 1, 3):
        yield from _both(US, {"gib": part * options.gib}, f"{part * options.gib:g} GiB")


def files(options: Options) -> Iterator[Row]:
    for count in (1, 2, 4, 8):
        yield from _both(US, {"gib": options.gib / 2, "files": count}, f"{count} files" if count > 1 else "1 file")


def tensors(options: Options) -> Iterator[Row]:
    for part in (100, 10, 2, 1):
        count = max(1, options.count // part)
        yield from _both(US, {"count": count}, f"{count:,} tensors")
        yield from _both("nothing", {"count": count}, f"{count:,} tensors")


def imports(options: Options) -> Iterator[Row]:
    for module, after in (
        ("torch", "sys"),
        ("s3dcp", "torch"),
        ("torch.distributed.checkpoint", "torch"),
        ("s3dcp.storage_writer", "torch.distributed.checkpoint"),
    ):
        yield Row("import", "import", {"module": module, "after": after}, f"{module} after {after}")


RANK_NETWORK = {"latency_ms": 20, "connection_rate": 50_000_000}
RANK_CONNECTIONS = 4
SLOW_NETWORK = {"latency_ms": 20, "connection_rate": 90_000_000}
CASES = {
    "large": Case("Large tensors", large),
    "tiny": Case("Many small tensors", tiny, max_runs=3),
    "reshard": Case("A checkpoint of 8 ranks loaded on 2", reshard, max_runs=3),
    "quarter": Case("One quarter of the state", quarter, max_runs=3),
    "https": Case("HTTPS", everyday, server={"tls": True}, max_runs=3),
    "emulated": Case("20 ms to the first byte, 90 MB/s per connection", everyday, SLOW_NETWORK, max_runs=3),
    "replicas": Case("Ranks that load the same, 200 MB/s each", replicas, RANK_NETWORK, max_runs=3),
    "throttled": Case("A server that asks for fewer requests, 8 ranks", throttled, max_runs=3),
    "training": Case("Training while a save goes up", training, SLOW_NETWORK, max_runs=3),
    "transfer": Case("The engine alone over the same slow connections", transfer, SLOW_NETWORK, max_runs=3),
    "sizes": Case("Cost by the size of the state", sizes, max_runs=3),
    "files": Case("Cost by the number of files", files, max_runs=3),
    "tensors": Case("Cost by the number of tensors", tensors, max_runs=3),
    "import": Case("What importing costs", imports),
}
