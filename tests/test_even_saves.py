"""`split_replicated`: ranks that have all of a large tensor write as much each, and the checkpoint is plain DCP."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultSavePlanner, default_planner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItemType

from s3dcp import CheckpointManager, ConfigError, FastSavePlanner, _replicas
from s3dcp._compat import SerializationFormat
from s3dcp._save.files import item_nbytes
from s3dcp._save.resolve import Resolver
from support import even_jobs, planning
from support.even_jobs import FROM
from support.planning import assert_identical, both_save, plan
from support.states import assert_same, raw_bytes, training_state, values
from support.store import Store

# -- plans of ranks in one process


def planned(
    states: list[dict[str, Any]], nbytes: int = FROM, **options: Any
) -> tuple[list[Any], list[SavePlan], Metadata]:
    """The planners of ranks with `states`, their final plans, and the index."""
    planners = [even_jobs.planner(nbytes, **options) for _ in states]
    locals_ = [plan(one, state, number == 0) for number, (one, state) in enumerate(zip(planners, states, strict=True))]
    plans, metadata = planners[0].create_global_plan(pickle.loads(pickle.dumps(locals_)))
    plans = [one.finish_plan(own) for one, own in zip(planners, plans, strict=True)]
    assert_sound(plans, metadata)
    return planners, plans, metadata


def assert_sound(plans: list[SavePlan], metadata: Metadata) -> None:
    """torch's own check has nothing to say of the index, and it names what the plans have."""
    assert default_planner._validate_global_plan(plans, metadata) in ([], True)
    items = [(item.index.fqn, item.index.offset) for one in plans for item in one.items]
    assert len(items) == len(set(items))
    for one in plans:
        for item in one.items:
            if item.tensor_data is not None:
                entry: Any = metadata.state_dict_metadata[item.index.fqn]
                assert entry.size == item.tensor_data.size
                assert entry.chunks[item.index.index] == item.tensor_data.chunk


def written(plans: list[SavePlan]) -> list[int]:
    """The bytes of tensors in each rank's plan."""
    return [sum(map(item_nbytes, one.items)) for one in plans]


def flat(state: Any) -> dict[str, Any]:
    """Its leaves by name."""
    return default_planner.flatten_state_dict(state)[0]


@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_mixed_state_is_balanced_by_bytes(count: int, lowest: bool) -> None:
    _, plans, _ = planned([even_jobs.mixed()] * count, dedup_save_to_lowest_rank=lowest)
    even = sum(written(plans)) / count
    assert max(written(plans)) <= 1.05 * even
    assert min(written(plans)) >= 0.95 * even


def test_what_is_small_or_has_no_rows_is_left_as_torch_plans_it() -> None:
    _, plans, metadata = planned([even_jobs.mixed()] * 4)
    for fqn, entry in metadata.state_dict_metadata.items():
        tensor = flat(even_jobs.mixed()).get(fqn)
        if isinstance(tensor, torch.Tensor) and (tensor.nbytes < FROM or tensor.dim() == 0 or tensor.size(0) < 2):
            assert len(entry.chunks) == 1, fqn  # type: ignore[union-attr]
    kinds = {item.index.fqn: item.type for one in plans for item in one.items}
    assert kinds["model.scalar"] is kinds["model.empty"] is kinds["model.one row"] is WriteItemType.TENSOR
    assert kinds["model.large"] is WriteItemType.SHARD
    _, plans, metadata = planned([{"scalar": torch.ones(())}] * 4, 1)
    assert metadata.state_dict_metadata["scalar"].chunks[0].sizes == ()  # type: ignore[union-attr]


def test_a_tensor_of_few_rows_is_written_by_few_ranks() -> None:
    _, plans, metadata = planned([{"few": values((3, 5000))}] * 8)
    assert [chunk.sizes[0] for chunk in metadata.state_dict_metadata["few"].chunks] == [1, 1, 1]  # type: ignore[union-attr]
    assert sorted(written(plans))[-3:] == [20_000] * 3


def test_many_tensors_are_cut_once_for_every_rank_at_most() -> None:
    state = {f"layer{number}": values((40, 40), number) for number in range(100)}
    _, plans, metadata = planned([state] * 8)
    chunks = sum(len(entry.chunks) for entry in metadata.state_dict_metadata.values())  # type: ignore[union-attr]
    assert chunks <= 100 + 7
    assert max(written(plans)) - min(written(plans)) <= 2 * 160


@pytest.mark.parametrize("tensor", [values((4001, 64)), values((70, 900)).t(), values((8, 9, 70))[:, ::2]])
def test_parts_are_the_memory_of_the_tensor(tensor: torch.Tensor) -> None:
    state = {"x": tensor}
    planners, plans, _ = planned([state] * 4)
    for one, own in zip(planners, plans, strict=True):
        resolver = Resolver(one)
        for item in own.items:
            assert item.tensor_data is not None
            first, rows = item.tensor_data.chunk.offsets[0], item.tensor_data.chunk.sizes[0]
            assert rows < tensor.size(0)
            for found in (one.resolve_data(item), resolver.tensor(item)):
                assert found.data_ptr() == tensor[first].data_ptr()
                assert found.stride() == tensor.stride()
                assert raw_bytes(found) == raw_bytes(tensor[first : first + rows])


@pytest.mark.parametrize("block", range(4))
def test_random_states_are_covered_and_as_even_as_rows_allow(block: int) -> None:
    for seed in range(block * 25, block * 25 + 25):
        random = Random(seed)
        count = random.randint(1, 9)
        common = {
            f"t{n}": torch.zeros(random.randint(1, 300), random.randint(1, 60)) for n in range(random.randint(0, 9))
        }
        states = [dict(common) for _ in range(count)]
        for number in range(random.randint(0, 4)):
            tensor = torch.zeros(random.randint(1, 50), random.randint(1, 60))
            for rank in random.sample(range(count), random.randint(1, count)):
                states[rank][f"of some {number}"] = tensor
        nbytes = random.choice([1, 500, 20_000, 10**9])
        planners, plans, metadata = planned(states, nbytes, dedup_save_to_lowest_rank=random.random() < 0.3)
        assert set(metadata.state_dict_metadata) == {name for state in states for name in state}
        for state, one, own in zip(states, planners, plans, strict=True):
            for item in own.items:
                assert one.resolve_data(item).shape == item.tensor_data.chunk.sizes  # type: ignore[union-attr]
                assert item.index.fqn in state
        if nbytes == 1 and all(len(state) == len(common) for state in states) and count > 1 and common:
            row = max(tensor.nbytes // tensor.size(0) for tensor in common.values())
            assert max(written(plans)) <= sum(written(plans)) / count + row + 1


def test_what_ranks_have_beside_counts() -> None:
    """A rank that writes more of its own takes less of what all have."""
    states = [even_jobs.large() | {f"own {rank}": values((rank * 200, 64), rank)} for rank in range(4)]
    _, plans, _ = planned(states)
    assert max(written(plans)) - min(written(plans)) <= 2 * 64 * 4


def test_copies_that_differ_are_left_to_torch() -> None:
    """Ranks with tensors of other shapes under one name are no ranks with the same tensor."""
    states = [{"x": values((1000, 10))}, {"x": values((1000, 11))}]
    assert_identical(
        even_jobs.planner().create_global_plan([plan(FastSavePlanner(), state) for state in states]),
        DefaultSavePlanner().create_global_plan([plan(DefaultSavePlanner(), state) for state in states]),
    )


@pytest.mark.parametrize("block", range(2))
def test_where_nothing_is_split_plans_are_torchs(block: int) -> None:
    on = functools.partial(FastSavePlanner, split_replicated=True)
    for seed in range(block * 50, block * 50 + 50):
        state = planning.state(Random(seed))
        both_save(state)
        both_save(state, on)  # type: ignore[arg-type]
        local = [planning.outcome(plan, DefaultSavePlanner(), copy.copy(state)) for _ in range(3)]
        if not isinstance(local[0], tuple):
            known = planning.outcome(DefaultSavePlanner().create_global_plan, local)
            for ours in (FastSavePlanner(), on()):
                assert_identical(planning.outcome(ours.create_global_plan, local), known)


def test_local_plans_are_left_as_they_were() -> None:
    local = [plan(even_jobs.planner(), even_jobs.mixed()) for _ in range(4)]
    before = pickle.dumps(local)
    even_jobs.planner().create_global_plan(local)
    assert pickle.dumps(local) == before


def test_other_plain_tensors_are_found_without_asking_the_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(planner: Any, index: Any) -> Any:
        raise AssertionError(f"the planner was asked for {index.fqn}")

    monkeypatch.setattr(DefaultSavePlanner, "lookup_object", asked)
    state = {"small": values((3, 4))}
    for planner in (FastSavePlanner(), even_jobs.planner()):
        (item,) = plan(planner, state).items
        assert Resolver(planner).tensor(item) is state["small"]


class Doubled(FastSavePlanner):
    """Looks tensors up and changes them, as torch's documentation shows it."""

    def lookup_object(self, index: Any) -> Any:
        self.looked_up = [*getattr(self, "looked_up", []), index.fqn]
        return super().lookup_object(index)

    def transform_object(self, write_item: Any, object: Any) -> Any:
        return super().transform_object(write_item, object) * 2


def test_hooks_of_a_subclass_are_asked_for_parts() -> None:
    state = even_jobs.large()
    planners = [Doubled(split_replicated=FROM) for _ in range(2)]
    plans, _ = planners[0].create_global_plan([plan(one, state) for one in planners])
    for one, own in zip(planners, plans, strict=True):
        (item,) = one.finish_plan(own).items
        first, rows = item.tensor_data.chunk.offsets[0], item.tensor_data.chunk.sizes[0]
        assert_same(Resolver(one).tensor(item), state["weight"][first : first + rows] * 2)
        assert one.looked_up == ["weight"]


@pytest.mark.parametrize("value", [0, -1, 1.5, "64 MiB", None])
def test_a_size_that_cannot_work_is_refused(value: Any) -> None:
    for made in (FastSavePlanner, functools.partial(CheckpointManager, "s3://bucket/run", region="us-east-1")):
        with pytest.raises(ConfigError, match="split_replicated="):
            made(split_replicated=value)


def test_true_is_the_size_that_is_told() -> None:
    assert _replicas.split_from(True) == _replicas.SPLIT_FROM == 64 << 20
    assert _replicas.split_from(False) is None


# -- saves of groups


def sent(store: Store, count: int) -> list[int]:
    """The bytes of each rank's shard files."""
    sizes = [0] * count
    for key, (size, _) in store.listing(f"{store.path}/").items():
        if match := re.search(r"__(\d+)_\d+[^/]*\.distcp$", key):
            sizes[int(match[1])] += size
    return sizes


@pytest.mark.distributed
def test_eight_ranks_write_one_large_tensor_alike_and_everyone_reads_it(store: Store, groups, tmp_path: Path) -> None:
    groups(8).run(even_jobs.save, even_jobs.large, store.uri)
    even = sum(sent(store, 8)) / 8
    assert all(abs(size - even) <= 0.05 * even for size in sent(store, 8))
    assert_sound([SavePlan([])] * 8, pickle.loads(store.read(".metadata")))
    even_jobs.check_with_torch(even_jobs.large, store.download(tmp_path))
    even_jobs.check(even_jobs.large, store.uri)
    even_jobs.check_with_peer(even_jobs.large, store.uri)
    for count in (2, 8):
        groups(count).run(even_jobs.check, even_jobs.large, store.uri)
        groups(count).run(even_jobs.check_by_rows, even_jobs.large, store.uri)


@pytest.mark.distributed
def test_one_rank_writes_it_where_it_is_not_split(store: Store, groups) -> None:
    groups(4).run(even_jobs.save, even_jobs.large, store.uri, {"nbytes": 10**9})
    assert sum(size > 0 for size in sent(store, 4)) == 1


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"flatten_sharded_tensors": False, "dedup_save_to_lowest_rank": True}, {"thread_count": 3}),
        ({}, {"single_file_per_rank": False}),
        ({}, {"serialization_format": SerializationFormat.SAFETENSORS}),
    ],
    ids=["plain", "lowest-rank", "file-per-item", "safetensors"],
)
def test_a_mixed_state_is_written_alike_and_comes_back(
    store: Store, groups, tmp_path: Path, options: dict[str, Any], arguments: dict[str, Any]
) -> None:
    groups(4).run(even_jobs.save, even_jobs.mixed, store.uri, options, **arguments)
    even = sum(sent(store, 4)) / 4
    assert all(abs(size - even) <= 0.05 * even for size in sent(store, 4))
    even_jobs.check(even_jobs.mixed, store.uri)
    groups(2).run(even_jobs.check, even_jobs.mixed, store.uri)
    if "serialization_format" not in arguments:  # torch's reader opens its own archives
        even_jobs.check_with_torch(even_jobs.mixed, store.download(tmp_path))


@pytest.mark.distributed
def test_a_state_that_is_not_flattened_is_split_too(store: Store, groups) -> None:
    groups(4).run(even_jobs.save, even_jobs.large, store.uri, {"flatten_state_dict": False})
    assert all(sent(store, 4))
    even_jobs.check(even_jobs.large, store.uri)


@pytest.mark.distributed
@pytest.mark.usefixtures("fresh_plan_cache")
def test_cached_plans_are_split_and_renewed(store: Store, groups) -> None:
    pytest.importorskip("torch.distributed.checkpoint._extension", reason="torch caches plans from 2.7 on")
    group = groups(4)
    group.run(even_jobs.save_with_cached_plans, store.uri, [1, 2])
    names = store.names()
    assert len([name for name in names if name.startswith("whole/") and name.endswith(".distcp")]) == 1
    for seed in (1, 2):
        assert len([name for name in names if name.startswith(f"{seed}/") and name.endswith(".distcp")]) == 4
        even_jobs.check(functools.partial(even_jobs.large, seed), f"{store.uri}/{seed}")


@pytest.mark.distributed
def test_an_asynchronous_save_writes_what_was_staged(store: Store, groups) -> None:
    groups(4).run(even_jobs.save_asynchronously, store.uri)
    even_jobs.check(functools.partial(even_jobs.mixed, 3), store.uri)
    assert all(sent(store, 4))


@pytest.mark.distributed
def test_an_asynchronous_save_in_a_process_is_split(store: Store, groups) -> None:
    groups(2).run(even_jobs.save_in_process, store.uri)
    even_jobs.check(functools.partial(even_jobs.large, 4), store.uri)
    assert all(sent(store, 2))


@pytest.mark.distributed
@pytest.mark.parametrize("async_", [False, True])
def test_a_manager_splits(store: Store, groups, async_: bool) -> None:
    for first, second in zip(*[iter(groups(4).run(even_jobs.save_by_manager, store.uri, async_))] * 2, strict=True):
        assert min(*first, *second) > even_jobs.large()["weight"].nbytes / 4 * 0.95


@pytest.mark.distributed
def test_torchs_own_writer_writes_parts(groups, tmp_path: Path) -> None:
    groups(4).run(even_jobs.save_with_torchs_writer, tmp_path)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.distcp")]
    assert len(sizes) == 4
    assert max(sizes) <= 1.05 * min(sizes)
    even_jobs.check_with_torch(even_jobs.mixed, tmp_path)


@pytest.mark.distributed
def test_what_some_ranks_have_is_divided_among_them(store: Store, groups) -> None:
    groups(4).run(even_jobs.save_some_have, store.uri)
    even = sum(sent(store, 4)) / 4
    assert all(abs(size - even) <= 0.05 * even for size in sent(store, 4))
    even_jobs.check(even_jobs.some_have, store.uri)


@pytest.mark.distributed
def test_replicas_of_shards_are_divided_among_the_ranks_that_have_them(store: Store, groups, tmp_path: Path) -> None:
    groups(4).run(even_jobs.save, even_jobs.hybrid, store.uri)
    even = sum(sent(store, 4)) / 4
    assert all(abs(size - even) <= 0.05 * even for size in sent(store, 4))
    metadata = pickle.loads(store.read(".metadata"))
    assert_sound([SavePlan([])] * 4, metadata)
    assert len(metadata.state_dict_metadata["none"].chunks) == 4
    groups(4).run(even_jobs.check, even_jobs.hybrid, store.uri)
    groups(2).run(even_jobs.check_by_rows, even_jobs.hybrid_whole, store.uri)
    even_jobs.check_with_torch(even_jobs.hybrid_whole, store.download(tmp_path))


@pytest.mark.distributed
def test_shards_that_one_rank_has_stay(store: Store, groups) -> None:
    groups(4).run(even_jobs.save, even_jobs.shards_of_fsdp, store.uri, {"nbytes": 1})
    groups(4).run(even_jobs.check, even_jobs.shards_of_fsdp, store.uri)
    even_jobs.check(even_jobs.whole_of_fsdp, store.uri)


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:.*loading this tensor runs code:UserWarning")
def test_tensors_of_another_class_are_stored_without_the_rest(store: Store, groups) -> None:
    groups(4).run(even_jobs.save, even_jobs.labelled, store.uri)
    assert sum(sent(store, 4)) < 1.1 * even_jobs.labelled()["labelled"].nbytes


@pytest.mark.distributed
def test_without_collectives_every_rank_writes_all(store: Store, groups) -> None:
    groups(2).run(even_jobs.save, even_jobs.large, store.uri, use_collectives=False)
    assert len(set(sent(store, 2))) == 1
    assert min(sent(store, 2)) > even_jobs.large()["weight"].nbytes


def test_one_process_without_a_group_writes_all(store: Store) -> None:
    even_jobs.save(training_state, store.uri, {"nbytes": 1})
    even_jobs.check(training_state, store.uri)
