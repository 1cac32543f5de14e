"""Groups of ranks: sharded and resharded states, FSDP2, DDP, no collectives, cached plans, broken ranks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from s3dcp import (
    AlreadyExists,
    ConfigError,
    Conflict,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
)
from support import group_jobs, jobs
from support.ranks import Alone
from support.states import assert_same, training_state, values
from support.store import Store
from support.torch_versions import needs, needs_groups_without_rank_0

pytestmark = pytest.mark.distributed


@pytest.fixture
def four(groups) -> Any:
    return groups(4)


@pytest.fixture
def two(groups) -> Any:
    return groups(2)


# -- sharding


@pytest.mark.parametrize("saved", [0, 1, None], ids=["by-rows", "by-columns", "replicated"])
def test_a_sharded_state_loads_in_any_sharding_and_any_number_of_ranks(store: Store, two, four, saved) -> None:
    for group in (two, four):
        uri = f"{store.uri}/{group.count}"
        group.run(group_jobs.save_sharded, uri, saved, thread_count=2)
        group_jobs.check_whole(uri)
        for readers in (two, four):
            for dim in (0, 1, 2, None):
                readers.run(group_jobs.check_sharded, uri, dim)


def test_a_state_saved_whole_loads_sharded(store: Store, two, four) -> None:
    group_jobs.save_whole(store.uri)
    for readers in (two, four):
        for dim in (0, 1, None):
            readers.run(group_jobs.check_sharded, store.uri, dim)


def test_a_state_on_a_two_dimensional_mesh_comes_back(store: Store, four) -> None:
    four.run(group_jobs.save_grid, store.uri)
    four.run(group_jobs.check_grid, store.uri)
    group_jobs.check_grid_whole(store.uri)


def test_local_shards_that_are_views_come_back(store: Store, four) -> None:
    four.run(group_jobs.save_misfit, store.uri)
    four.run(group_jobs.check_misfit, store.uri)


@pytest.mark.parametrize("wrap", ["fsdp", "ddp"])
def test_models_and_optimizers_come_back(store: Store, four, wrap: str) -> None:
    saved = four.run(group_jobs.save_model, store.uri, wrap)
    loaded = four.run(group_jobs.load_model, store.uri, wrap)
    for rank in range(4):
        assert_same(loaded[rank], saved[0])


def test_a_model_saved_under_fsdp_by_four_ranks_resumes_on_two_and_on_one(store: Store, two, four) -> None:
    saved = four.run(group_jobs.save_model, store.uri, "fsdp")
    for loaded in two.run(group_jobs.load_model, store.uri, "fsdp"):
        assert_same(loaded, saved[0])
    (alone,) = Alone().run(group_jobs.load_model, store.uri, "plain")
    assert_same(alone, saved[0])


def test_a_model_saved_plain_resumes_under_fsdp(store: Store, four) -> None:
    (saved,) = Alone().run(group_jobs.save_model, store.uri, "plain")
    for loaded in four.run(group_jobs.load_model, store.uri, "fsdp"):
        assert_same(loaded, saved)


# -- names and strategies


def test_a_strategy_made_before_the_group_spreads_over_all_ranks(store: Store, four) -> None:
    strategy = HexPrefixStrategy()
    assert strategy.prefix_count == 1
    four.run(group_jobs.save_with_strategy, store.uri, strategy)
    assert {name.split("/")[0] for name in store.shards()} == {f"{rank}000000000" for rank in range(4)}
    four.run(jobs.check_training_state, store.uri)


def test_a_strategy_with_a_count_of_its_own_keeps_it(store: Store, four) -> None:
    four.run(group_jobs.save_with_strategy, store.uri, HexPrefixStrategy(prefix_count=2))
    assert {name.split("/")[0] for name in store.shards()} == {"0000000000", "1000000000"}


def test_every_rank_names_its_own_files_by_its_own_save_id(store: Store, four) -> None:
    strategy = RoundRobinPrefixStrategy(["p1", "p2"])
    four.run(group_jobs.save_with_strategy, store.uri, strategy, thread_count=2)
    names = [re.fullmatch(r"p([12])/__(\d)_([01])-([0-9a-f]{16})\.distcp", name) for name in store.shards()]
    assert all(names)
    places = {(match[1], match[2]) for match in names if match}
    assert places == {("1", "0"), ("2", "1"), ("1", "2"), ("2", "3")}
    ids = {(match[2], match[4]) for match in names if match}
    assert len(ids) == len({save_id for _, save_id in ids}) == 4


def test_ranks_that_share_a_prefix_do_not_share_files(store: Store, four) -> None:
    four.run(group_jobs.save_with_strategy, store.uri, group_jobs.same_place)
    assert len(store.shards()) == 4
    four.run(jobs.check_training_state, store.uri)


def test_overwriting_by_fewer_ranks_leaves_no_file_of_the_others(store: Store, two, four) -> None:
    four.run(jobs.save_training_state, store.uri)
    before = set(store.shards())
    two.run(jobs.save_training_state, store.uri, seed=1)
    assert not before & set(store.shards())
    assert len(store.shards()) == 2
    four.run(jobs.check_training_state, store.uri, seed=1)


@pytest.mark.parametrize("one_writer", [True, False], ids=["one-writer", "a-writer-each"])
def test_cached_plans_never_write_one_epoch_over_another(store: Store, four, one_writer: bool) -> None:
    epochs = [1, 2, 3]
    four.run(group_jobs.save_epochs_with_cached_plan, store.uri, epochs, one_writer)
    for epoch in epochs:
        four.run(jobs.check_training_state, f"{store.uri}/epoch_{epoch}", seed=epoch)
        jobs.check(f"{store.uri}/epoch_{epoch}", training_state(epoch))
    assert len(store.shards()) == 12
    assert {name.split("/")[0] for name in store.shards()} == {f"{rank}000000000" for rank in range(4)}


# -- parts of a group


@pytest.mark.parametrize(
    ("savers", "loaders"), [([0, 2], [0, 1, 3]), pytest.param([1, 3], [2, 3], marks=needs_groups_without_rank_0)]
)
def test_a_process_group_of_some_ranks_saves_and_loads(store: Store, four, savers: Any, loaders: Any) -> None:
    four.run(group_jobs.save_in_subgroup, store.uri, savers)
    assert all(re.match(r"__[01]_0-", name) for name in store.shards())
    four.run(group_jobs.check_in_subgroup, store.uri, loaders)
    jobs.check(store.uri, {"x": values((6, 2), 4), "step": 9})


@needs("no_dist")
def test_one_rank_saves_alone_with_no_dist(store: Store, four) -> None:
    four.run(group_jobs.save_alone_on_rank_1, store.uri)
    assert len(store.shards()) == 1


# -- without collectives


def test_without_collectives_every_rank_gets_its_own_values_back(store: Store, four) -> None:
    four.run(group_jobs.save_own, store.uri)
    indexes = [name for name in store.names() if name.endswith(".metadata")]
    assert indexes == [f"__{rank}.metadata" for rank in range(4)]
    assert len(store.shards()) == 4
    assert {name.split("/")[0] for name in store.shards()} == {f"{rank}000000000" for rank in range(4)}
    four.run(group_jobs.check_own, store.uri)


def test_without_collectives_a_second_save_replaces_the_first(store: Store, four) -> None:
    for seed in (1, 2):
        four.run(group_jobs.save_own, store.uri, seed=seed, thread_count=2)
    four.run(group_jobs.check_own, store.uri, seed=2)
    assert len(store.shards()) == 8


def test_without_collectives_every_epoch_stays_loadable(store: Store, four) -> None:
    for epoch in (1, 2):
        four.run(group_jobs.save_own, store.uri, seed=epoch, epoch=epoch)
    for epoch in (1, 2):
        four.run(group_jobs.check_own, f"{store.uri}/epoch_{epoch}", seed=epoch)


def test_without_collectives_another_number_of_ranks_is_refused(store: Store, failure, two, four) -> None:
    four.run(group_jobs.save_own, f"{store.uri}/4")
    two.run(group_jobs.save_own, f"{store.uri}/2")
    error = failure(two.run, group_jobs.load_own, f"{store.uri}/4")
    assert isinstance(error, ConfigError)
    assert "4 ranks" in str(error)
    assert isinstance(failure(jobs.load, {"x": torch.zeros(8, 4)}, f"{store.uri}/4"), ConfigError)
    error = failure(four.run, group_jobs.load_own, f"{store.uri}/2", rank=3)
    assert isinstance(error, ConfigError)


def test_a_checkpoint_with_collectives_is_not_overwritten_without(store: Store, failure, two) -> None:
    two.run(jobs.save_training_state, store.uri)
    before = store.listing()
    error = failure(two.run, group_jobs.save_own, store.uri)
    assert isinstance(error, AlreadyExists)
    assert store.listing() == before


def test_rank_indexes_are_not_overwritten_with_collectives(store: Store, failure, two) -> None:
    two.run(group_jobs.save_own, store.uri)
    before = store.listing()
    error = failure(two.run, jobs.save_training_state, store.uri)
    assert isinstance(error, AlreadyExists)
    assert store.listing() == before


# -- a checkpoint that changes underneath


def test_ranks_that_read_different_indexes_are_told(store: Store, failure, two) -> None:
    jobs.save({"x": torch.full((4,), 1.0)}, store.uri, ("Hex", {"epoch_num": 1}))
    error = failure(two.run, group_jobs.load_while_it_is_replaced, store.uri)
    assert isinstance(error, Conflict)
    assert error.retryable
    assert store.uri in str(error)
