"""What many ranks want leaves S3 once, whatever they load it into; what only one wants, as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from s3dcp import S3StorageReader
from s3dcp._load.exchange import is_worth
from support import group_jobs, share_jobs
from support.states import assert_same
from support.store import REGION, Store

pytestmark = pytest.mark.distributed

RANKS = 4
MIB = 1 << 20


@pytest.fixture
def four(groups: Callable[[int], Any]) -> Any:
    return groups(RANKS)


def test_ranks_that_load_the_same_get_it_from_s3_once(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    size = share_jobs.nbytes(share_jobs.replicated())
    alone = four.run(share_jobs.check, store.uri, share=False)
    shared = four.run(share_jobs.check, store.uri, share=True)
    assert sum(alone) >= RANKS * size
    assert sum(shared) <= 1.02 * size + RANKS * 64 * 1024  # each reads the index
    assert max(shared) <= 0.3 * size + 5 * MIB


def test_small_loads_are_not_shared_by_themselves(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    size = share_jobs.nbytes(share_jobs.replicated())
    assert sum(four.run(share_jobs.check, store.uri)) >= RANKS * size


def test_large_ones_are_within_little_memory(store: Store, four: Any) -> None:
    share_jobs.save_large(store.uri)
    grown = four.run(share_jobs.memory_of, store.uri)
    assert max(grown) <= 96, grown


def test_bytes_go_into_tensors_of_every_kind(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    four.run(share_jobs.check_odd_targets, store.uri)


def test_replicas_of_shards_get_each_once(store: Store, four: Any) -> None:
    four.run(share_jobs.save_grid, store.uri)
    alone = sum(four.run(share_jobs.check_grid, store.uri, False))
    shared = sum(four.run(share_jobs.check_grid, store.uri, True))
    assert shared <= 0.65 * alone


@pytest.mark.parametrize("dim", [0, 1])
def test_shards_that_nobody_else_wants_are_fetched_as_before(store: Store, four: Any, dim: int) -> None:
    four.run(group_jobs.save_sharded, store.uri, 0)
    alone = four.run(share_jobs.check_sharded, store.uri, dim, False)
    assert four.run(share_jobs.check_sharded, store.uri, dim, True) == pytest.approx(alone, abs=4096)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_models_come_back(store: Store, four: Any, wrap: str) -> None:
    saved = four.run(group_jobs.save_model, store.uri, wrap)
    for loaded, parameters in zip(four.run(share_jobs.load_model, store.uri, wrap), saved, strict=True):
        assert_same(loaded, parameters)


@pytest.mark.parametrize("told", [True, False])
def test_only_the_group_that_the_reader_was_told_of_shares(store: Store, four: Any, told: bool) -> None:
    share_jobs.save(store.uri)
    size = share_jobs.nbytes(share_jobs.replicated())
    got = sum(four.run(share_jobs.check_subgroup, store.uri, [0, 2], told))
    assert (got <= 1.02 * size + 2 * 64 * 1024) if told else (got >= 2 * size)


def test_ranks_that_load_by_themselves_share_nothing(store: Store, four: Any) -> None:
    share_jobs.save(store.uri)
    got = four.run(share_jobs.check_no_dist, store.uri)
    assert min(got) >= share_jobs.nbytes(share_jobs.replicated())


def test_what_torch_saved_comes_back(store: Store, four: Any, tmp_path: Any) -> None:
    dcp.save(share_jobs.replicated(), storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    store.upload(tmp_path)
    four.run(share_jobs.check, store.uri, share=True)


@pytest.mark.parametrize("worth", [True, False])
def test_ranks_measure_both_ways_and_all_go_the_same(store: Store, four: Any, worth: bool) -> None:
    share_jobs.save(store.uri)
    size = share_jobs.nbytes(share_jobs.replicated())
    got, told = zip(*four.run(share_jobs.check_by_itself, store.uri, worth), strict=True)
    assert [each == told[0] for each in told] == [True] * RANKS
    assert min(len(measured) for measured in told[0]) == RANKS
    trial = (RANKS - 1) * 8 * MIB  # what each fetches for itself on the way
    assert sum(got) <= 1.05 * size + trial if worth else sum(got) >= RANKS * (size - 10 * MIB)


@pytest.mark.parametrize(
    ("told", "worth"),
    [
        ([(1.0, 2.0), (1.5, 0.1)], True),
        ([(1.0, 2.0), (2.5, 0.1)], False),
        ([(1.0, 0.0), (1.0, 0.0)], True),
        ([(0.0, 0.0), (0.0, 3.0)], True),
        ([(2.0, 2.0), (0.0, 0.0)], True),
    ],
)
def test_the_slowest_rank_decides(told: list[tuple[float, float]], worth: bool) -> None:
    assert is_worth(told) == worth


@pytest.mark.parametrize("share", [None, 1, "yes", "AUTO", 0])
def test_another_value_of_share_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="share="):
        S3StorageReader(REGION, "s3://bucket/x", share=share)


@pytest.mark.parametrize("group", [1, "world", object()])
def test_what_is_no_process_group_is_refused(group: Any) -> None:
    with pytest.raises(ValueError, match="process_group="):
        S3StorageReader(REGION, "s3://bucket/x", process_group=group)
