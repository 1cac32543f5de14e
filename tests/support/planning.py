"""Random states, and the plans that two planners make of them, compared through and through."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import OrderedDict, UserDict
from collections.abc import Callable
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, _version
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh, zeros

from s3dcp import FastLoadPlanner, FastSavePlanner, S3StorageReader, S3StorageWriter
from support import jobs
from support.states import assert_same, blank, training_state
from support.store import REGION

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]


class Labelled(torch.Tensor):
    """A tensor that is not plain."""


class Opaque:
    """An object that compares by identity."""


# -- comparison


def assert_identical(one: Any, other: Any, where: str = "result") -> None:
    """Equal in types, fields, order and the tensors themselves."""
    assert type(one) is type(other), f"{where}: {type(one)} is not {type(other)}"
    if isinstance(one, torch.Tensor):
        assert one is other, f"{where}: not the same tensor"
    elif dataclasses.is_dataclass(one):
        assert list(vars(one)) == list(vars(other)), f"{where}: {list(vars(one))} is not {list(vars(other))}"
        for name, value in vars(one).items():
            assert_identical(value, getattr(other, name), f"{where}.{name}")
    elif isinstance(one, dict):
        assert list(one) == list(other), f"{where}: {list(one)} is not {list(other)}"
        for key in one:
            assert_identical(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), f"{where}: {len(one)} is not {len(other)}"
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_identical(*pair, f"{where}[{number}]")
    else:
        assert one is other or one == other, f"{where}: {one!r} is not {other!r}"


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What `function` gives, or the kind and text of its error."""
    try:
        return function(*args)
    except Exception as error:
        return ("raised", type(error).__name__, str(error))


def copied(value: Any) -> Any:
    """`value` in containers of its own, with the same leaves."""
    if isinstance(value, (dict, UserDict)):
        result = copy.copy(value)
        for key in value:
            result[key] = copied(value[key])
        return result
    if type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value


# -- random states


def tensor(random: Random) -> torch.Tensor:
    """A tensor of a kind, a layout and a shape."""
    shape = [random.choice([0, 1, 1, 2, 3, 4]) for _ in range(random.choice([0, 1, 1, 2, 2, 3, 4]))]
    made = torch.zeros(shape, dtype=random.choice(DTYPES))
    kind = random.randrange(12)
    if kind == 0 and made.is_floating_point() and made.dtype.itemsize > 1:
        return torch.nn.Parameter(made, requires_grad=random.random() < 0.7)
    if kind == 1:
        return made.permute(random.sample(range(made.dim()), made.dim()))
    if kind == 2:
        return torch.zeros([*shape, 2], dtype=made.dtype)[..., 0]
    if kind == 3:
        return made.as_subclass(Labelled)
    if kind == 4:
        made.note = "more than a plain tensor"  # type: ignore[attr-defined]
    if kind == 5 and made.dtype is torch.float32:
        return made.requires_grad_()
    return made


def sharded(random: Random) -> torch.Tensor:
    """A DTensor; the same on every rank that draws the same numbers."""
    count = dist.get_world_size()
    shape = [random.choice([1, 2, 3, 7, 8]) for _ in range(random.choice([1, 2, 3]))]
    placements: list[Any] = [random.choice([Replicate(), Shard(random.randrange(len(shape)))])]
    mesh = init_device_mesh("cpu", (count,))
    if count == 4 and random.random() < 0.4:
        mesh = init_device_mesh("cpu", (2, 2))
        placements.append(random.choice([Replicate(), Shard(random.randrange(len(shape)))]))
    return zeros(shape, device_mesh=mesh, placements=placements)


def leaf(random: Random, drawn: list[Any]) -> Any:
    """A tensor, one drawn before, or an object."""
    kind = random.randrange(10)
    if kind == 0 and drawn:
        return random.choice(drawn)
    if kind < 7:
        value: Any = sharded(random) if dist.is_initialized() and random.random() < 0.4 else tensor(random)
    else:
        value = random.choice([1, 2.5, True, None, "text", b"bytes", (1, ("two",)), {1, 2}, [1, [2]], torch.Size([1])])
    drawn.append(value)
    return value


def state(random: Random, drawn: list[Any] | None = None, depth: int = 3) -> Any:
    """A mapping with whatever states may have."""
    drawn = [] if drawn is None else drawn
    made: Any = random.choice([dict, dict, dict, OrderedDict, UserDict if depth < 3 else dict])()
    for _ in range(random.randrange(7)):
        key: Any = random.choice(["a", "b", "c", "weight", "x.y", "layer.0", "0", "", 0, 1, 12])
        kind = random.randrange(8) if depth else 0
        if kind < 5:
            made[key] = leaf(random, drawn)
        elif kind < 7:
            made[key] = state(random, drawn, depth - 1)
        else:
            made[key] = random.choice([list, tuple])(
                state(random, drawn, depth - 1) if random.random() < 0.4 else leaf(random, drawn)
                for _ in range(random.randrange(4))
            )
    return made


def savable(random: Random, **options: Any) -> dict[str, Any]:
    """A state that torch can save."""
    while isinstance(outcome(plan, DefaultSavePlanner(**options), made := state(random)), tuple):
        pass
    return dict(made)


# -- saves


def plan(planner: Any, values: Any, is_coordinator: bool = True) -> Any:
    """A rank's own plan."""
    planner.set_up_planner(copied(values), None, is_coordinator)
    return planner.create_local_plan()


def gathered(local: Any) -> list[Any]:
    """Every rank's plan, on every rank, as it arrives from another process."""
    if not dist.is_initialized():
        return [local]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, local)
    return everyone


def whole(planner: Any, local: Any) -> Any:
    """The final plan of this rank, every rank's, and the index, from all local plans."""
    plans, metadata = planner.create_global_plan(gathered(local))
    rank = dist.get_rank() if dist.is_initialized() else 0
    return planner.finish_plan(plans[rank]), plans, metadata


def both_save(values: Any, ours: type = FastSavePlanner, torchs: type = DefaultSavePlanner, **options: Any) -> Any:
    """Plans a save of `values` with both planners and compares; what they give."""
    fast, known = ours(**options), torchs(**options)
    locals_ = outcome(plan, fast, values), outcome(plan, known, values)
    assert_identical(*locals_, "local plan")
    everyone = gathered(locals_[0])
    if any(isinstance(one, tuple) for one in everyone):
        return locals_[0]
    assert_identical(fast.mappings, known.mappings, "mappings")
    assert_identical(fast.state_dict, known.state_dict, "flat state")
    results = outcome(whole, fast, locals_[0]), outcome(whole, known, locals_[1])
    assert_identical(*results, "global plan")
    return results[0]


def compare_saves(seeds: range) -> None:
    """Both planners plan the same saves, with every choice of options."""
    for seed in seeds:
        random = Random(seed)
        values = state(random)
        rank = dist.get_rank() if dist.is_initialized() else 0
        if random.random() < 0.3:  # something of a rank's own
            values[f"rank {rank}"] = torch.zeros(rank + 1)
        options: dict[str, Any] = {
            "flatten_state_dict": random.random() < 0.8,
            "flatten_sharded_tensors": random.random() < 0.8,
            "dedup_save_to_lowest_rank": random.random() < 0.5,
        }
        try:
            both_save(values, **options)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


# -- loads


def both_load(
    values: Any, metadata: Metadata, ours: type = FastLoadPlanner, torchs: type = DefaultLoadPlanner, **options: Any
) -> Any:
    """Plans a load into `values` with both planners and compares; the plan."""
    fast, known = ours(**options), torchs(**options)
    targets = copied(values), copied(values)

    def planned(planner: Any, target: Any) -> Any:
        _version._derived_version = None  # torch leaves the old one behind when it refuses a state by its old names
        planner.set_up_planner(target, metadata, True)
        local = planner.create_local_plan()
        return planner.finish_plan(planner.create_global_plan([local])[0])

    results = outcome(planned, fast, targets[0]), outcome(planned, known, targets[1])
    assert_identical(*results, "load plan")
    assert_identical(*targets, "target")
    if not isinstance(results[0], tuple):
        assert known.original_state_dict is not targets[1] or fast.original_state_dict is targets[0]
        assert_identical(fast.mappings, known.mappings, "mappings")
        assert_identical(fast.state_dict, known.state_dict, "flat state")
    return results[0]


def resharded(metadata: Metadata, random: Random) -> Metadata:
    """`metadata` as other ranks had saved it: some tensors in blocks of rows."""
    entries = dict(metadata.state_dict_metadata)
    for fqn, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata) and len(entry.size) and random.random() < 0.3:
            cut = random.randint(0, entry.size[0])
            blocks = [(0, cut), (cut, entry.size[0] - cut)]
            random.shuffle(blocks)
            rest = entry.size[1:]
            chunks = [
                ChunkStorageMetadata(torch.Size([start, *[0] * len(rest)]), torch.Size([rows, *rest]))
                for start, rows in blocks
            ]
            entries[fqn] = dataclasses.replace(entry, chunks=chunks)
    return dataclasses.replace(metadata, state_dict_metadata=entries)


def damaged(values: Any, random: Random) -> Any:
    """`values` with something renamed, dropped, resized or of another kind."""
    result = copied(values)
    for key in list(result):
        kind = random.randrange(12)
        if kind == 0:
            del result[key]
        elif kind == 1:
            result[f"{key}!"] = result.pop(key)
        elif kind == 2:
            result[key] = torch.zeros(5, 5)
        elif kind == 3:
            result[key] = "object"
        elif isinstance(result[key], dict):
            result[key] = damaged(result[key], random)
    return result


def compare_loads(seeds: range) -> int:
    """Both planners plan the same loads: the same state, resharded, in part, impossible ones; how many were planned."""
    planned = 0
    for seed in seeds:
        random = Random(seed)
        flatten = random.random() < 0.8
        values = savable(random, flatten_state_dict=flatten)
        saver = DefaultSavePlanner(flatten_state_dict=flatten)
        metadata = pickle.loads(pickle.dumps(whole(saver, plan(saver, values))[2]))
        try:
            for target, index in (
                (values, metadata),
                (values, resharded(metadata, random)),
                (damaged(values, random), metadata),
                (damaged(values, random), resharded(metadata, random)),
            ):
                for partial in (False, True):
                    result = both_load(
                        target,
                        index,
                        flatten_state_dict=flatten,
                        flatten_sharded_tensors=random.random() < 0.8,
                        allow_partial_load=partial,
                    )
                    planned += not isinstance(result, tuple)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    return planned


# -- in groups


def save_with_mixed_planners(uri: str, first_is_ours: bool) -> None:
    """Ranks take turns between our planner and torch's; every rank loads what was saved."""
    ours = (dist.get_rank() % 2 == 0) == first_is_ours
    state = training_state() | {"same": torch.ones(6, 2)}
    jobs.save(state, uri, planner=FastSavePlanner() if ours else DefaultSavePlanner())
    for planner in (FastLoadPlanner(), DefaultLoadPlanner()) if ours else (DefaultLoadPlanner(), FastLoadPlanner()):
        assert_same(jobs.load(blank(state), uri, planner=planner), state)


def load_onto_meta(uri: str) -> None:
    """Tensors on the meta device get memory, and values."""
    import torch.distributed.checkpoint as dcp

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {
        "plain": torch.arange(6.0),
        "nested": {"plain": torch.ones(2, 3)},
        "list": [torch.ones(2)],
        "dtensor": distribute_tensor(torch.arange(8.0), mesh, [Shard(0)]),
    }
    dcp.save(state, storage_writer=S3StorageWriter(REGION, uri), planner=FastSavePlanner())
    targets: dict[str, Any] = {
        "plain": state["plain"].to("meta"),
        "nested": {"plain": torch.ones(2, 3, device="meta")},
        "list": [torch.ones(2, device="meta")],
        "dtensor": DTensor.from_local(
            torch.empty(state["dtensor"].to_local().shape, device="meta"), mesh, [Shard(0)], run_check=False
        ),
    }
    dcp.load(targets, storage_reader=S3StorageReader(REGION, uri), planner=FastLoadPlanner())
    assert_same(targets, state)
