"""The fault matrix: what becomes of saves and loads when something goes wrong between the client and S3.

A cell is one fault, as often as its column says, during one operation. Whatever comes of it must keep the promises
that `strike` asserts; which outcome it is stands in ``docs/faults.md``, whose table is printed by
``python -m support.fault_matrix``.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from s3dcp import NotFound, S3ClientConfig, S3DcpError, testing
from support import jobs
from support.states import assert_same, blank, values
from support.store import Store, boto_client

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
DEADLINE_SECONDS = 3
CONFIG = S3ClientConfig(
    force_path_style=True,
    part_size=5 << 20,
    max_attempts=3,
    deadline=DEADLINE_SECONDS,
    connect_timeout=2,
    read_timeout=0.4,
)

OPERATIONS = (
    "AbortMultipartUpload",
    "CompleteMultipartUpload",
    "CreateMultipartUpload",
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "PutObject",
    "UploadPart",
)
# Those whose answer's body is not an object's bytes, or none.
WITHOUT_OBJECT = tuple(operation for operation in OPERATIONS if operation not in ("GetObject", "HeadObject"))


@dataclass(frozen=True)
class Fault:
    """What goes wrong, as the server's rules and as people say it, and with which operations."""

    rule: str
    title: str
    operations: tuple[str, ...] = OPERATIONS


FAULTS = [
    Fault("error:SlowDown", "`503 SlowDown`"),
    Fault("error:InternalError", "`500 InternalError`"),
    Fault("error-in-200:InternalError", "an error in the body of a `200`", WITHOUT_OBJECT),
    Fault("error:ExpiredToken", "expired credentials"),
    Fault("error:RequestTimeTooSkewed", "clock skew"),
    Fault("error:AccessDenied", "access denied"),
    Fault("drop", "connection closed before the request takes effect"),
    Fault("reset-request:1000", "connection reset 1,000 bytes into the request"),
    Fault("silence", "request never answered"),
    Fault("flip-request", "one bit of the request's body flipped", ("PutObject", "UploadPart")),
    Fault("lose", "answer lost after the request took effect"),
    Fault("reset:500", "connection reset 500 bytes into the answer"),
    Fault("cut:500", "connection closed 500 bytes into the answer"),
    Fault("stall:500", "answer stalls after 500 bytes"),
    Fault("truncate:500", "answer of 500 bytes that claims to be whole", ("GetObject",)),
    Fault("flip", "one bit of the answer's body flipped", ("GetObject",)),
    Fault("delay:150ms", "answer begins 150 ms late"),
]

# How often, and on what: one column of the table for each.
COLUMNS = {
    ("once", "first save"): "first save, once on every kind of request",
    ("once", "overwrite"): "overwrite, once on every kind",
    ("once", "load"): "load, once on every kind",
    ("shard files", "overwrite"): "overwrite, always on shard files",
    ("shard files", "load"): "load, always on shard files",
    ("index", "overwrite"): "overwrite, always on the index",
    ("index", "load"): "load, always on the index",
    ("commit", "first save"): "first save, always on the index's PUT",
    ("commit", "overwrite"): "overwrite, always on the index's PUT",
}


@dataclass(frozen=True)
class Cell:
    """One fault, its scope and the operation it strikes."""

    fault: Fault
    scope: str
    action: str

    def __str__(self) -> str:
        return f"{self.fault.rule}-{self.scope}-{self.action}"

    @property
    def rules(self) -> list[str]:
        """What the server is told."""
        operations = self.fault.operations
        if self.scope == "once":
            return [f"{self.fault.rule} on={operation} times=1" for operation in operations]
        if self.scope == "commit":
            return [f"{self.fault.rule} on=PutObject key=*.metadata"] if "PutObject" in operations else []
        pattern = "*.distcp" if self.scope == "shard files" else "*.metadata"
        return [f"{self.fault.rule} on={','.join(operations)} key={pattern}"]


def cells() -> list[Cell]:
    """All cells, row by row; those whose fault cannot strike are left out."""
    every = [Cell(fault, scope, action) for fault in FAULTS for scope, action in COLUMNS]
    return [cell for cell in every if cell.rules]


def state(number: int) -> dict[str, Any]:
    """Three parts in one shard file, a small tensor and a number, different for every `number`."""
    return {"large": values((3, 1 << 20), number), "small": values((7, 3), number + 1), "step": number}


OLD, NEW = state(1), state(2)


def run(server: testing.Server, bucket: str, cell: Cell) -> str:
    """The outcome of a cell, in an empty bucket of its own."""
    # An upload may begin without its writer learning its id, and an abort may fail as everything else.
    uploads_may_stay = cell.fault.rule == "lose" or cell.scope == "shard files"
    return strike(server, bucket, cell.action, cell.rules, uploads_may_stay=uploads_may_stay)


def strike(server: testing.Server, bucket: str, action: str, rules: list[str], *, uploads_may_stay: bool) -> str:
    """The outcome of `action` while `rules` are in force, in an empty bucket.

    Raises:
        AssertionError: A save that reported success does not load, a load gave wrong values, an old checkpoint is lost,
            an upload is left, or it took longer than it may.
    """
    store = Store(bucket, boto_client(server.endpoint_url))
    if action != "first save":
        jobs.save(OLD, store.uri, s3client_config=CONFIG)
    for rule in rules:
        server.inject(rule)
    began = time.monotonic()
    try:
        outcome = _load(store) if action == "load" else _save(store)
    finally:
        elapsed = time.monotonic() - began
        server.clear_faults()
    # A deadline is for one request; after a SlowDown the next ones wait for their turns as well.
    assert elapsed < 2 * DEADLINE_SECONDS, f"it took {elapsed:.1f} s"
    if action == "load":
        return outcome
    found = _what_loads(store)
    if outcome == "saved":
        assert found == "new", f"a save reported success, and {found} loads"
    else:
        assert found in ("nothing" if action == "first save" else "old", "new"), f"{outcome}, and {found} loads"
        outcome = f"{outcome}, new" if found == "new" else outcome
    assert uploads_may_stay or store.uploads() == [], "uploads are left"
    return outcome


def _save(store: Store) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jobs.save(NEW, store.uri, s3client_config=CONFIG)
    except (Exception, CheckpointException) as error:
        return _kind(error)
    return "saved"


def _load(store: Store) -> str:
    loaded = blank(OLD)
    try:
        jobs.load(loaded, store.uri, s3client_config=CONFIG)
    except (Exception, CheckpointException) as error:
        return _kind(error)
    assert_same(loaded, OLD)
    return "loaded"


def _kind(error: BaseException) -> str:
    failures = getattr(error, "failures", None)
    if failures:
        error = failures[0][0]
    assert isinstance(error, S3DcpError), f"not an error of ours: {error!r}"
    assert "panic" not in str(error)
    return error.kind


def _what_loads(store: Store) -> str:
    loaded = blank(OLD)
    try:
        jobs.load(loaded, store.uri, s3client_config=CONFIG)
    except (Exception, CheckpointException) as error:
        if _kind(error) == NotFound.kind:
            return "nothing"
        raise AssertionError("the path does not load") from error
    found = "old" if loaded["step"] == OLD["step"] else "new"
    assert_same(loaded, OLD if found == "old" else NEW)
    return found


def read_table() -> dict[Cell, str]:
    """The outcomes that ``docs/faults.md`` promises."""
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    promised = {title: outcomes for title, *outcomes in rows}
    found = {}
    for fault in FAULTS:
        for (scope, action), outcome in zip(COLUMNS, promised[fault.title], strict=True):
            if outcome != "–":
                found[Cell(fault, scope, action)] = outcome
    return found


def table(outcomes: dict[Cell, str]) -> str:
    """The matrix as Markdown."""
    lines = ["| fault | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for fault in FAULTS:
        row = [outcomes.get(Cell(fault, *column), "–") for column in COLUMNS]
        lines.append(f"| {fault.title} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every cell and print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcomes = {}
    for number, cell in enumerate(cells()):
        with testing.server([f"cell-{number}"]) as server:
            outcomes[cell] = run(server, f"cell-{number}", cell)
    print(table(outcomes))


if __name__ == "__main__":
    main()
