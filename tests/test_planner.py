"""Our planners make the plans that torch's make, of every state, and refuse what torch's refuse."""

from __future__ import annotations

import dataclasses
import gc
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, default_planner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from s3dcp import FastLoadPlanner, FastSavePlanner
from s3dcp._gc import GcPause
from s3dcp.planner import _check, _flatten, _save_plan
from support import jobs, planning, torch_versions
from support.planning import assert_identical, both_load, both_save, outcome, plan, whole
from support.states import DTYPES, assert_same, blank, layouts, training_state, values
from support.store import Store

# -- the same plans


# What an older torch does in another way, and s3dcp leaves to it.
UNFIT = ["dedup_save_plans"] if "no_dist" in torch_versions.LACKING else []


@pytest.mark.skipif(bool(UNFIT), reason="the planners of torch before 2.8 have other methods")
def test_every_helper_of_this_torch_has_its_faster_one() -> None:
    faster, unfit = _check.replacements()
    assert unfit == []
    for planner, methods in (
        (FastSavePlanner.__base__, {"set_up_planner", "create_local_plan", "_dedup_save_plans", "_create_global_plan"}),
        (FastLoadPlanner, {"set_up_planner", "create_local_plan"}),
    ):
        own = {name for name, value in vars(planner).items() if hasattr(value, "__code__")}
        assert own == methods
        for method in methods:
            assert vars(planner)[method].__code__ is getattr(planner.__base__, method).__code__
    assert len(faster) == 9


@pytest.mark.parametrize("block", range(8))
def test_random_states_are_planned_as_torch_plans_them(block: int) -> None:
    planning.compare_saves(range(block * 100, block * 100 + 100))


@pytest.mark.distributed
@pytest.mark.parametrize("count", [2, 4])
def test_random_states_of_groups_are_planned_as_torch_plans_them(groups, count: int) -> None:
    groups(count).run(planning.compare_saves, range(1000, 1060))


@pytest.mark.parametrize("block", range(8))
def test_random_loads_are_planned_and_refused_as_torch_does(block: int) -> None:
    assert planning.compare_loads(range(block * 40, block * 40 + 40)) > 80


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_every_dtype_and_layout_is_planned_as_torch_plans_it() -> None:
    state = {f"{dtype} {shape}": values(shape, 1, dtype) for dtype in DTYPES for shape in ((7, 5), (), (0, 2))}
    state |= layouts()
    _, _, metadata = both_save(state)
    plan = both_load(state, metadata)
    assert len(plan.items) == sum(tensor.numel() > 0 for tensor in state.values())


def test_tied_tensors_and_parameters_of_a_model_are_planned_as_torch_plans_them() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    state: dict[str, Any] = {"model": model.state_dict(), "kept": dict(model.named_parameters())}
    state["tied"] = state["model"]["0.weight"]
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 7)).sum().backward()
    optimizer.step()
    state["optimizer"] = optimizer.state_dict()
    _, _, metadata = both_save(state)
    both_load(state, metadata)
    del state["optimizer"]
    both_load(state, metadata)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_what_is_not_strided_gets_the_same_answer() -> None:
    both_save({"sparse": torch.eye(3).to_sparse(), "plain": torch.ones(2)})
    both_save({"mkldnn": torch.ones(3).to_mkldnn()} if torch.backends.mkldnn.is_available() else {})
    both_save({"meta": torch.empty(3, device="meta")})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_and_pinned_ones_are_planned_as_torch_plans_them() -> None:
    state = {"gpu": torch.ones(3, 2, device="cuda"), "pinned": torch.ones(4).pin_memory(), "cpu": torch.ones(2)}
    final, _, metadata = both_save(state)
    assert [item.tensor_data.properties.pin_memory for item in final.items] == [False, True, False]
    both_load(state, metadata)


def test_a_tensor_that_says_it_is_a_shard_is_planned_as_one() -> None:
    pytest.importorskip("torch.distributed.checkpoint.protocol")
    shard = torch.zeros(2, 3)
    shard.global_shape = (4, 3)  # type: ignore[attr-defined]
    shard.global_offsets = ((2, 0),)  # type: ignore[attr-defined]
    shard.local_offsets = ((0, 0),)  # type: ignore[attr-defined]
    shard.local_sizes = ((2, 3),)  # type: ignore[attr-defined]
    final, _, metadata = both_save({"shard": shard, "plain": torch.zeros(2)})
    assert final.items[0].type is WriteItemType.SHARD
    both_load({"shard": shard, "plain": torch.zeros(2)}, metadata)


class Custom(torch.Tensor):
    """Plans itself, by torch's protocol for tensor classes."""

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        items = default_planner._create_write_items(fqn, self.as_subclass(torch.Tensor))
        return [dataclasses.replace(item, type=WriteItemType.SHARD) for item in items]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size([0]), self.size())]


def test_a_class_that_plans_itself_does() -> None:
    state = {"custom": torch.zeros(3).as_subclass(Custom)}
    final, _, metadata = both_save(state)
    assert [item.type for item in final.items] == [WriteItemType.SHARD]
    both_load(state, metadata)


def test_names_that_fall_together_are_refused_with_torchs_words() -> None:
    for state in (
        {"a.b": torch.ones(1), "a": {"b": torch.ones(1)}},
        {"a": [torch.ones(1)], "a.0": 1},
        {"a.0": 1, "a": [torch.ones(1)]},
        {"x": {0: torch.ones(1), "0": torch.ones(2)}},
    ):
        assert both_save(state)[:2] == ("raised", "ValueError")


def test_a_tensor_after_an_empty_dictionary_in_a_list_is_flattened_as_torch_does() -> None:
    state = {"list": [{}, torch.ones(2)], "empty": {}, "deep": {"er": {"est": {}}}}
    _, _, metadata = both_save(state)
    both_load(state, metadata, allow_partial_load=True)


def test_names_of_an_old_torch_are_found_as_torch_finds_them() -> None:
    """Before 2.4, torch kept dictionaries without tensors whole: a load falls back to their names."""
    state = {"config": {"depth": 2}, "weight": torch.zeros(2), "deep": {"t": torch.zeros(1), "o": {"n": 1}}}
    item = default_planner.create_default_local_save_plan
    old = {"config": {"depth": 2}, "weight": torch.zeros(2), "deep.t": torch.zeros(1), "deep.o": {"n": 1}}
    _, metadata = default_planner.create_default_global_save_plan([item(old, True)])
    plan = both_load(state, metadata)
    assert sorted(item.dest_index.fqn for item in plan.items) == sorted(old)


# -- global plans


def shards(fqn: str, size: tuple[int, ...], blocks: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[WriteItem]:
    """Write items for `blocks`, each its offsets and sizes, of one tensor."""
    (item,) = default_planner.create_default_local_save_plan({fqn: torch.zeros(size)}, True).items
    return [
        WriteItem(
            MetadataIndex(fqn, torch.Size(offsets)),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                item.tensor_data.properties,
                torch.Size(size),
            ),
        )
        for offsets, sizes in blocks
    ]


GRID = [((row, column), (2, 3)) for row in (0, 2) for column in (0, 3, 6)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("size", "blocks", "valid"),
    [
        ((8,), [((0,), (4,)), ((4,), (4,))], True),
        ((8,), [((4,), (4,)), ((0,), (4,)), ((8,), (0,))], True),
        ((8,), [((0,), (4,)), ((3,), (5,))], False),
        ((8,), [((0,), (4,)), ((5,), (3,))], False),
        ((8,), [((0,), (4,)), ((4,), (5,))], False),
        ((8,), [((-1,), (9,)), ((4,), (4,))], False),
        ((8,), [((0,), (4,))], False),
        ((4, 9), GRID, True),
        ((4, 9), GRID[::-1], True),
        ((4, 9), GRID[:-1], False),
        ((4, 9), [*GRID[:-1], GRID[0]], False),
        ((4, 9), [*GRID[:-1], ((2, 6), (2, 2)), ((2, 8), (2, 1))], True),
        ((4, 4), [((0, 0), (4, 2)), ((0, 2), (2, 2)), ((2, 2), (2, 2))], True),
        ((4, 4), [((0, 0), (2, 4)), ((1, 0), (2, 4))], False),
        ((), [((), ())], True),
        ((0, 3), [((0, 0), (0, 3))], True),
    ],
    ids=str,
)
def test_chunks_are_accepted_and_refused_as_torch_does(size, blocks, valid: bool) -> None:
    items = shards("x", size, blocks)
    plans = [SavePlan(items[::2], planner_data={}), SavePlan(items[1::2], planner_data={})]
    results = [outcome(planner().create_global_plan, plans) for planner in (FastSavePlanner, DefaultSavePlanner)]
    assert_identical(*results)
    assert (results[0][0] != "raised") is valid


@pytest.mark.parametrize("count", [3, 9, 40])
@pytest.mark.parametrize("to_lowest", [False, True])
def test_copies_are_spread_over_many_ranks_as_torch_spreads_them(count: int, to_lowest: bool) -> None:
    local = plan(DefaultSavePlanner(), {f"t{number}": torch.zeros(number % 7) for number in range(60)})
    plans = [
        dataclasses.replace(local, items=[item for number, item in enumerate(local.items) if number % (rank + 1) < 3])
        for rank in range(count)
    ]
    both = [
        planner(dedup_save_to_lowest_rank=to_lowest).create_global_plan(pickle.loads(pickle.dumps(plans)))
        for planner in (FastSavePlanner, DefaultSavePlanner)
    ]
    assert_identical(*both)


def test_plans_that_cannot_be_merged_are_refused_as_torch_does() -> None:
    (tensor,) = plan(DefaultSavePlanner(), {"x": torch.ones(2)}).items
    thing = WriteItem(MetadataIndex("x"), WriteItemType.BYTE_IO)
    bare = WriteItem(MetadataIndex("x", torch.Size([0])), WriteItemType.SHARD)
    for items in (
        [tensor, tensor],
        [tensor, thing],
        [thing, thing],
        [thing, *shards("x", (2,), [((0,), (2,))])],
        [bare],
    ):
        for split in range(len(items) + 1):
            plans = [SavePlan(items[:split], planner_data={}), SavePlan(items[split:], planner_data={})]
            assert_identical(
                outcome(FastSavePlanner().create_global_plan, plans),
                outcome(DefaultSavePlanner().create_global_plan, plans),
            )
    unflattened = [SavePlan([tensor]), SavePlan([])]
    assert_identical(
        outcome(FastSavePlanner().create_global_plan, unflattened),
        outcome(DefaultSavePlanner().create_global_plan, unflattened),
    )


@dataclasses.dataclass(frozen=True)
class NotedItem(WriteItem):
    """An item of a subclass."""

    note: str = ""


def test_items_of_a_subclass_stay_what_they_are() -> None:
    local = plan(DefaultSavePlanner(), {"x": torch.ones(2), "y": 1})
    items = [NotedItem(**vars(item), note="n") for item in local.items]
    for plans in ([SavePlan(items, planner_data={})], [SavePlan(items, planner_data={})] * 2):
        both = [planner().create_global_plan(plans) for planner in (FastSavePlanner, DefaultSavePlanner)]
        assert_identical(*both)
        assert all(item.note == "n" for plan in both[0][0] for item in plan.items)


def test_local_plans_are_left_as_they_were() -> None:
    planner = FastSavePlanner()
    local = plan(planner, {"x": torch.ones(2), "y": {"z": torch.ones(3)}})
    before = pickle.dumps(local)
    final, _, _ = whole(planner, local)
    assert pickle.dumps(local) == before
    assert [item.index.index for item in local.items] == [None, None]
    assert [item.index.index for item in final.items] == [0, 0]


@pytest.mark.usefixtures("fresh_plan_cache")
def test_cached_plans_are_reused_and_renewed_as_torch_does() -> None:
    states = [training_state(1), training_state(1), training_state(1) | {"new": torch.ones(3)}, training_state(1)]
    for state in states:
        both_save(state, enable_plan_caching=True)
    empty = plan(FastSavePlanner(enable_plan_caching=True), training_state(1))
    assert (empty.items, empty.usable) == ([], False)


def test_plans_pickle_smaller_than_torchs_and_come_back_the_same() -> None:
    state = {f"layer{number}.weight": torch.zeros(16, 16) for number in range(1000)}
    ours, torchs = plan(FastSavePlanner(), state), plan(DefaultSavePlanner(), state)
    assert_identical(pickle.loads(pickle.dumps(ours)), pickle.loads(pickle.dumps(torchs)))
    assert len(pickle.dumps(ours)) < len(pickle.dumps(torchs))


# -- subclasses


class Half:
    """Saves floating tensors as float16: plan and data in tandem, as torch's documentation shows it."""

    def create_local_plan(self) -> Any:
        plan = super().create_local_plan()  # type: ignore[misc]
        for item in plan.items:
            if item.tensor_data is not None and item.tensor_data.properties.dtype is torch.float32:
                item.tensor_data.properties.dtype = torch.float16
        return plan

    def transform_object(self, write_item: Any, object: Any) -> Any:
        object = super().transform_object(write_item, object)  # type: ignore[misc]
        return object if isinstance(object, io.BytesIO) or object.dtype is not torch.float32 else object.half()


class Renamed:
    """Saves and loads under names with a prefix, and looks tensors up itself."""

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        renamed = {f"my {key}": value for key, value in state_dict.items()}
        super().set_up_planner(renamed, storage_meta, is_coordinator)  # type: ignore[misc]
        self.looked_up = 0

    def lookup_object(self, index: Any) -> Any:
        self.looked_up += 1
        return super().lookup_object(index)  # type: ignore[misc]

    def lookup_tensor(self, index: Any) -> Any:
        self.looked_up += 1
        return super().lookup_tensor(index)  # type: ignore[misc]


class FastHalf(Half, FastSavePlanner):
    """`Half` on our planner."""


class TorchHalf(Half, DefaultSavePlanner):
    """`Half` on torch's planner."""


class FastRenamed(Renamed, FastSavePlanner):
    """`Renamed` on our planner."""


class TorchRenamed(Renamed, DefaultSavePlanner):
    """`Renamed` on torch's planner."""


class FastRenamedLoad(Renamed, FastLoadPlanner):
    """`Renamed` on our planner."""


class TorchRenamedLoad(Renamed, DefaultLoadPlanner):
    """`Renamed` on torch's planner."""


def test_subclasses_that_override_hooks_work_as_on_torchs_planner(store: Store) -> None:
    state = {"weight": values((4, 3)), "count": values((3,), 1, torch.int64), "text": "x"}
    both_save(state, FastHalf, TorchHalf)
    _, _, metadata = both_save(state, FastRenamed, TorchRenamed)
    both_load(state, metadata, FastRenamedLoad, TorchRenamedLoad)

    jobs.save(state, f"{store.uri}/half", planner=FastHalf())
    halved = {"weight": torch.zeros(4, 3, dtype=torch.float16), "count": torch.zeros(3, dtype=torch.int64), "text": ""}
    jobs.load(halved, f"{store.uri}/half", planner=FastLoadPlanner())
    assert_same(halved, state | {"weight": state["weight"].half()})

    saver, loader = FastRenamed(), FastRenamedLoad()
    tensors = {key: state[key] for key in ("weight", "count")}
    jobs.save(tensors, f"{store.uri}/renamed", planner=saver)
    loaded = jobs.load(blank(tensors), f"{store.uri}/renamed", planner=loader)
    assert_same(loaded, tensors)
    assert saver.looked_up >= 2
    assert loader.looked_up >= 2


# -- saves and loads


def test_a_state_comes_back_through_our_planners(store: Store) -> None:
    state = training_state() | {"layouts": layouts()}
    jobs.save(state, store.uri, planner=FastSavePlanner())
    assert_same(jobs.load(blank(state), store.uri, planner=FastLoadPlanner()), state)
    assert_same(jobs.load(blank(state), store.uri), state)


@pytest.mark.distributed
@pytest.mark.parametrize("first_is_ours", [True, False], ids=["ours-coordinates", "torch-coordinates"])
def test_ranks_may_mix_our_planner_with_torchs(store: Store, groups, first_is_ours: bool) -> None:
    groups(4).run(planning.save_with_mixed_planners, store.uri, first_is_ours)


@pytest.mark.distributed
def test_tensors_on_the_meta_device_get_memory(store: Store, groups) -> None:
    groups(2).run(planning.load_onto_meta, store.uri)


def test_a_planner_pickles() -> None:
    for planner in (FastSavePlanner(dedup_save_to_lowest_rank=True), FastLoadPlanner(allow_partial_load=True)):
        assert vars(pickle.loads(pickle.dumps(planner))) == vars(planner)


# -- another torch


def test_a_helper_that_gives_something_new_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    known = default_planner.create_default_global_save_plan

    def versioned(all_plans: Any, rewrite_index_hints: bool = True) -> Any:
        plans, metadata = known(all_plans, rewrite_index_hints)
        return plans, dataclasses.replace(metadata, planner_data="more")

    monkeypatch.setattr(default_planner, "create_default_global_save_plan", versioned)
    faster, unfit = _check.replacements()
    assert unfit == [*UNFIT, "create_default_global_save_plan"]
    assert "create_default_global_save_plan" not in faster


def test_a_helper_with_other_arguments_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    known = default_planner.create_default_local_load_plan

    def stricter(state_dict: Any, metadata: Metadata, strict: bool = True, shapes: bool = True) -> Any:
        return known(state_dict, metadata, strict)

    monkeypatch.setattr(default_planner, "create_default_local_load_plan", stricter)
    assert _check.replacements()[1] == [*UNFIT, "create_default_local_load_plan"]


def test_a_helper_that_is_gone_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(default_planner, "_validate_global_plan")
    assert _check.replacements()[1] == [*UNFIT, "_validate_global_plan"]


# -- the garbage collector


def test_collections_resume_when_the_last_is_done() -> None:
    assert gc.isenabled()
    with GcPause():
        with GcPause():
            assert not gc.isenabled()
        assert not gc.isenabled()
        inside, leave = threading.Event(), threading.Event()

        def other() -> None:
            with GcPause():
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_collections_resume_after_an_error_and_stay_off_where_they_were() -> None:
    assert isinstance(outcome(_flatten.flatten_state_dict, {"a.b": 1, "a": {"b": 1}}), tuple)
    assert gc.isenabled()
    gc.disable()
    try:
        _save_plan.dedup_save_plans([])
        assert not gc.isenabled()
    finally:
        gc.enable()
