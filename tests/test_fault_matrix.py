"""Every cell of the table in docs/faults.md, and faults at random."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from s3dcp import testing
from support import fault_matrix
from support.fault_matrix import Cell

CELLS = fault_matrix.cells()
PROMISED = fault_matrix.read_table()


@pytest.fixture(scope="module")
def plain() -> Iterator[testing.Server]:
    with testing.server([]) as running:
        yield running


@pytest.fixture(scope="module")
def encrypted() -> Iterator[testing.Server]:
    with testing.server([], tls=True) as running:
        yield running


def outcome(server: testing.Server, cell: Cell, suffix: str = "") -> str:
    bucket = f"cell-{CELLS.index(cell)}{suffix}"
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
def test_in_a_directory_bucket_the_outcome_is_the_same(plain: testing.Server, cell: Cell) -> None:
    assert outcome(plain, cell, "--use1-az4--x-s3") == PROMISED[cell]


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.scope == "once"], ids=str)
def test_over_https_the_outcome_is_the_same(encrypted: testing.Server, cell: Cell) -> None:
    assert outcome(encrypted, cell) == PROMISED[cell]


RANDOM = [
    "error:SlowDown",
    "error:InternalError",
    "error-in-200:InternalError",
    "drop",
    "lose",
    "reset-request:5000",
    "flip-request",
    "reset:300",
    "cut:200000",
    "truncate:300",
    "flip",
    "delay:5ms",
]


@pytest.mark.parametrize("seed", range(12))
def test_random_faults_make_no_bad_save_and_no_wrong_value(seed: int) -> None:
    """Any operation may be struck; what comes of it is left open, the promises that every cell asserts are not."""
    chance = random.Random(seed)
    with testing.server([], fault_seed=seed) as server:
        for number, action in enumerate(["first save", "overwrite", "load"] * 3):
            rules = [f"{what} chance={chance.uniform(0.01, 0.15):.3f}" for what in chance.sample(RANDOM, 4)]
            bucket = f"seed-{seed}-{number}"
            server.create_bucket(bucket)
            fault_matrix.strike(server, bucket, action, rules, uploads_may_stay=True)
