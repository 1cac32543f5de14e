"""The fault matrix: what becomes of saves and loads when something goes wrong between the client and S3.

A cell is one fault, as often as its column's group says, during one operation. Whatever comes of it must keep the promises that
`run` asserts; which outcome it is stands in ``docs/faults.md``, and `python -m workers.fault_matrix` writes that table.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torch.distributed.checkpoint.api import CheckpointException

from s3dcp import NotFound, S3ClientConfig, S3DcpError, testing
from workers import jobs
from workers.states import assert_same, blank, values
from workers.store import Store, boto_client

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
DEADLINE_SECONDS = 10
CONFIG = S3ClientConfig(
    force_path_style=True,
    part_size=5 << 20,
    max_attempts=3,
    deadline=DEADLINE_SECONDS,
    connect_timeout=2,
    read_timeout=0.4,
)

FAULTS = {
    "error:SlowDown": "`503 SlowDown`",
    "error:InternalError": "`500 InternalError`",
    "error-in-200:InternalError": "an error in the body of a `200`",
    "error:ExpiredToken": "expired credentials",
    "error:RequestTimeTooSkewed": "clock skew",
    "error:AccessDenied": "access denied",
    "drop": "connection closed before the request takes effect",
    "reset-request:1000": "connection reset 1,000 bytes into the request",
    "silence": "request never answered",
    "flip-request": "one bit of the request's body flipped",
    "lose": "answer lost after the request took effect",
    "reset:500": "connection reset 500 bytes into the answer",
    "cut:500": "connection closed 500 bytes into the answer",
    "stall:500": "answer stalls after 500 bytes",
    "truncate:500": "answer of 500 bytes that claims to be whole",
    "flip": "one bit of the answer's body flipped",
    "delay:150ms": "answer begins 150 ms late",
}

OPERATIONS = [
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
]

# How often, and on what: the rules that follow the fault.
SCOPES: dict[str, list[str]] = {
    "once": [f"on={operation} times=1" for operation in OPERATIONS],
    "shard files": ["key=*.distcp"],
    "index": ["key=*.metadata"],
}

ACTIONS = ("first save", "overwrite", "load")


@dataclass(frozen=True)
class Cell:
    """One fault, its scope and the operation it strikes."""

    fault: str
    scope: str
    action: str

    def __str__(self) -> str:
        return f"{self.fault}-{self.scope}-{self.action}"


def cells() -> Iterator[Cell]:
    """All cells, row by row."""
    for fault in FAULTS:
        for scope in SCOPES:
            for action in ACTIONS:
                yield Cell(fault, scope, action)


def state(number: int) -> dict[str, Any]:
    """Three parts in one shard file, a small tensor and a number, different for every `number`."""
    return {"large": values((3, 1 << 20), number), "small": values((7, 3), number + 1), "step": number}


OLD, NEW = state(1), state(2)


def run(server: testing.Server, bucket: str, cell: Cell) -> str:
    """The outcome of a cell, in an empty bucket of its own.

    Raises:
        AssertionError: A save that reported success does not load, a load gave wrong values, an old checkpoint is lost, an
            upload is left, or it took longer than it may.
    """
    store = Store(bucket, boto_client(server.endpoint_url))
    if cell.action != "first save":
        jobs.save(OLD, store.uri, s3client_config=CONFIG)
    for rule in SCOPES[cell.scope]:
        server.inject(f"{cell.fault} {rule}")
    began = time.monotonic()
    try:
        outcome = _load(store) if cell.action == "load" else _save(store)
    finally:
        elapsed = time.monotonic() - began
        server.clear_faults()
    assert elapsed < 2 * DEADLINE_SECONDS, f"{cell} took {elapsed:.1f} s"
    if cell.action != "load":
        found = _what_loads(store)
        before = "nothing" if cell.action == "first save" else "old"
        if outcome == "saved":
            assert found == "new", f"{cell}: a save reported success, and {found} loads"
        else:
            assert found in (before, "new"), f"{cell}: {outcome}, and {found} loads"
            outcome = f"{outcome}; {found}" if found == "new" else outcome
        if cell.scope != "shard files":
            assert store.uploads() == [], f"{cell}: uploads are left"
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
        assert _kind(error) == NotFound.kind, f"the path does not load: {error!r}"
        return "nothing"
    found = "old" if loaded["step"] == OLD["step"] else "new"
    assert_same(loaded, OLD if found == "old" else NEW)
    return found


def read_table() -> dict[Cell, str]:
    """The outcomes that ``docs/faults.md`` promises."""
    titles = {title: fault for fault, title in FAULTS.items()}
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    columns = [(scope, action) for scope in SCOPES for action in ACTIONS]
    found = {}
    for title, *outcomes in rows:
        if title in titles:
            for (scope, action), outcome in zip(columns, outcomes, strict=True):
                found[Cell(titles[title], scope, action)] = outcome
    return found


def table(outcome: Callable[[Cell], str]) -> str:
    """The matrix as Markdown."""
    columns = [(scope, action) for scope in SCOPES for action in ACTIONS]
    often = {"once": "once on every kind of request", "shard files": "always, on shard files", "index": "always, on the index"}
    lines = [
        "| fault | " + " | ".join(f"{often[scope]}: {action}" for scope, action in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for fault, title in FAULTS.items():
        lines.append(f"| {title} | " + " | ".join(outcome(Cell(fault, *column)) for column in columns) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every cell and print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    outcomes = {}
    for number, cell in enumerate(cells()):
        with testing.server([f"cell-{number}"]) as server:
            try:
                outcomes[cell] = run(server, f"cell-{number}", cell)
            except AssertionError as error:
                outcomes[cell] = f"BROKEN {error}"
    print(table(outcomes.__getitem__))


if __name__ == "__main__":
    main()
