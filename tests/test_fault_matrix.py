"""Every cell of the table in docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3dcp import testing
from workers import fault_matrix
from workers.fault_matrix import Cell

CELLS = list(fault_matrix.cells())
PROMISED = fault_matrix.read_table()


@pytest.fixture(scope="module")
def plain() -> Iterator[testing.Server]:
    with testing.server([]) as running:
        yield running


@pytest.fixture(scope="module")
def encrypted() -> Iterator[testing.Server]:
    with testing.server([], tls=True) as running:
        yield running


def outcome(server: testing.Server, cell: Cell) -> str:
    bucket = f"cell-{CELLS.index(cell)}"
    server.create_bucket(bucket)
    try:
        return fault_matrix.run(server, bucket, cell)
    finally:
        server.clear_faults()
        server.delete_bucket(bucket)


def test_the_table_has_every_cell() -> None:
    assert list(PROMISED) == CELLS


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault_has_the_outcome_that_the_table_promises(plain: testing.Server, cell: Cell) -> None:
    assert outcome(plain, cell) == PROMISED[cell]


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.scope == "once"], ids=str)
def test_over_https_the_outcome_is_the_same(encrypted: testing.Server, cell: Cell) -> None:
    assert outcome(encrypted, cell) == PROMISED[cell]
