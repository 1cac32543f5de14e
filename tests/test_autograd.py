"""After a load a tensor looks to torch as after ``copy_``: autograd, inference mode and clones see a write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3dcp import Corrupt, testing
from s3dcp._compat import SerializationFormat
from support import jobs
from support.states import values
from support.store import Store

SHAPE = (300, 40)
SAVED = values(SHAPE, 1)

# How a target is made, and the tensor whose memory it is part of.
TARGETS: dict[str, Callable[[], torch.Tensor]] = {
    "in place": lambda: torch.zeros(SHAPE),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(SHAPE)),
    "a frozen parameter": lambda: torch.nn.Parameter(torch.zeros(SHAPE), requires_grad=False),
    "a detached parameter": lambda: torch.nn.Parameter(torch.zeros(SHAPE)).detach(),
    "rows of a larger tensor": lambda: torch.zeros(400, 40)[50:350],
    "columns of a larger tensor": lambda: torch.zeros(300, 100)[:, 10:50],
    "every other row": lambda: torch.zeros(600, 40)[::2],
    "another dtype": lambda: torch.zeros(SHAPE, dtype=torch.float64),
    "transposed": lambda: torch.zeros(40, 300).t(),
    "a strided parameter": lambda: torch.nn.Parameter(torch.zeros(40, 300).t()),
    "every other column": lambda: torch.zeros(300, 80)[:, ::2],
    "lazily negated": lambda: torch.zeros(SHAPE, dtype=torch.complex64).conj().imag,
    "overlapping": lambda: torch.zeros(300 * 40 + 1).as_strided(SHAPE, (40, 1), 1),
}


def wrong_gradients(target: torch.Tensor) -> torch.Tensor:
    """The end of a graph whose backward pass needs the values of `target` as they are now."""
    factor = torch.ones(SHAPE, dtype=target.dtype, requires_grad=True)
    return (factor * target).sum()


def refused(end: torch.Tensor) -> bool:
    """Whether torch refuses the backward pass because a tensor that it needs was written."""
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        end.backward()
    return True


@pytest.fixture(params=["torch_save", "safetensors", "written by torch"])
def saved(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> str:
    """Where a checkpoint is with `SAVED` in it, in each format."""
    state = {"x": SAVED, "none": torch.zeros(0, 3), "other": values((7,), 2)}
    if request.param == "written by torch":
        dcp.save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
        for file in tmp_path.iterdir():
            store.write(file.name, file.read_bytes())
    else:
        jobs.save(state, store.uri, serialization_format=SerializationFormat(request.param))
    return store.uri


@pytest.mark.parametrize("kind", TARGETS)
def test_a_backward_pass_across_a_load_is_refused(saved: str, kind: str) -> None:
    target = TARGETS[kind]()
    base = target if target._base is None else target._base
    of_target, of_base = wrong_gradients(target), base * torch.ones_like(base, requires_grad=True)
    version = target._version
    jobs.load({"x": target}, saved)
    assert torch.equal(target.detach(), SAVED.to(target.dtype))
    assert target._version > version
    assert base._version == target._version
    assert refused(of_target)
    assert refused(of_base.abs().sum())


class Elsewhere(DefaultLoadPlanner):
    """Has what is loaded go into tensors of its own, and into the state when it is there."""

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        target = super().resolve_tensor(read_item)
        self.own = getattr(self, "own", {})
        return self.own.setdefault(read_item.dest_index.fqn, torch.zeros_like(target))

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        super().resolve_tensor(read_item).detach().copy_(tensor)


def test_targets_of_other_planners_are_seen_to_be_written(saved: str) -> None:
    planner = Elsewhere()
    target = torch.zeros(SHAPE)
    end = wrong_gradients(target)
    jobs.load({"x": target}, saved, planner=planner)
    assert torch.equal(target, SAVED)
    assert refused(end)
    assert planner.own["x"]._version > 0


def test_what_is_not_loaded_keeps_its_version(saved: str) -> None:
    target, other = torch.zeros(SHAPE), torch.zeros(7)
    end = wrong_gradients(other.sum() * torch.ones(SHAPE))
    jobs.load({"x": target}, saved)
    assert other._version == 0
    end.backward()


class AskingForNothing(DefaultLoadPlanner):
    """Also plans to read tensors without elements, which torch's planners leave out."""

    def create_local_plan(self) -> LoadPlan:
        plan = super().create_local_plan()
        index, nothing = MetadataIndex("none", torch.Size([0, 0])), torch.Size([0, 0])
        return replace(
            plan, items=[*plan.items, ReadItem(LoadItemType.TENSOR, index, nothing, index, nothing, torch.Size([0, 3]))]
        )


@pytest.mark.parametrize("planner", [DefaultLoadPlanner, AskingForNothing])
def test_tensors_without_elements_count_a_load_as_torch_does(
    saved: str, tmp_path: Path, planner: type[DefaultLoadPlanner]
) -> None:
    folder = tmp_path / "torch"
    dcp.save({"none": torch.zeros(0, 3)}, storage_writer=FileSystemWriter(folder), no_dist=True)
    ours, torchs = torch.zeros(0, 3), torch.zeros(0, 3)
    jobs.load({"none": ours}, saved, planner=planner())
    dcp.load({"none": torchs}, storage_reader=FileSystemReader(folder), planner=planner(), no_dist=True)
    assert ours._version == torchs._version
    assert ours._version == (planner is not DefaultLoadPlanner)


def test_a_load_that_fails_half_way_is_seen_as_well(store: Store, s3dcp_server: testing.Server, failure) -> None:
    jobs.save({"x": SAVED}, store.uri)
    target = torch.zeros(SHAPE)
    end = wrong_gradients(target)
    s3dcp_server.inject("flip on=GetObject key=*.distcp")
    try:
        assert isinstance(failure(jobs.load, {"x": target}, store.uri), Corrupt)
    finally:
        s3dcp_server.clear_faults()
    assert target.any(), "nothing was written before the load failed"
    assert refused(end)


@pytest.mark.parametrize("shape", [(1, 40), (300, 1), ()])
def test_a_tensor_that_repeats_its_elements_is_refused_as_torch_does(saved: str, failure, shape: tuple[int]) -> None:
    few = torch.zeros(shape)
    error = failure(jobs.load, {"x": few.expand(SHAPE)}, saved)
    assert isinstance(error, RuntimeError)
    assert "single memory location" in str(error)
    assert not few.any()


def test_rows_that_repeat_are_refused_also_where_each_is_fetched_alone(store: Store, failure) -> None:
    jobs.save({"x": values((3, 2_000_000), 1)}, store.uri)
    row = torch.zeros(1, 2_000_000)
    error = failure(jobs.load, {"x": row.expand(3, 2_000_000)}, store.uri)
    assert isinstance(error, RuntimeError)
    assert not row.any()


def test_overlapping_rows_hold_what_torchs_reader_leaves_there(saved: str, tmp_path: Path) -> None:
    dcp.save({"x": SAVED}, storage_writer=FileSystemWriter(tmp_path / "torch"), no_dist=True)
    ours, torchs = (torch.zeros(12_000).as_strided(SHAPE, (20, 1)) for _ in range(2))
    jobs.load({"x": ours}, saved)
    dcp.load({"x": torchs}, storage_reader=FileSystemReader(tmp_path / "torch"), no_dist=True)
    assert torch.equal(ours, torchs)


@pytest.mark.parametrize("view", [False, True], ids=["whole", "columns"])
def test_a_load_does_not_reach_the_other_holder_of_a_lazy_clone(saved: str, view: bool) -> None:
    first = torch.zeros(300, 100) if view else torch.zeros(SHAPE)
    second = torch._lazy_clone(first)
    jobs.load({"x": second[:, 10:50] if view else second}, saved)
    assert torch.equal(second[:, 10:50] if view else second, SAVED)
    assert not first.any()


def test_a_tensor_that_wraps_another_is_loaded_through_torch(saved: str) -> None:
    inner = torch.zeros(SHAPE)
    wrapper = torch._to_functional_tensor(inner)
    jobs.load({"x": wrapper}, saved)
    torch._sync(wrapper)
    assert torch.equal(torch._from_functional_tensor(wrapper), SAVED)


INFERENCE = {kind: make for kind, make in TARGETS.items() if kind != "a parameter" and kind != "a strided parameter"}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("kind", INFERENCE)
def test_inference_tensors_are_loaded(saved: str, kind: str, inside: bool) -> None:
    with torch.inference_mode():
        target, none = INFERENCE[kind](), torch.zeros(0, 3)
    assert target.is_inference()
    with torch.inference_mode(inside):
        jobs.load({"x": target, "none": none}, saved)
    assert torch.equal(target.clone(), SAVED.to(target.dtype))


@pytest.mark.parametrize("kind", TARGETS)
def test_a_load_under_inference_mode_is_seen_by_tensors_from_outside(saved: str, kind: str) -> None:
    target = TARGETS[kind]()
    end = wrong_gradients(target)
    with torch.inference_mode():
        jobs.load({"x": target}, saved)
    assert torch.equal(target.detach(), SAVED.to(target.dtype))
    assert refused(end)
