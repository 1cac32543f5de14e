"""Which helpers of torch's planners can be replaced: those that do, on a small state, what is known here.

torch's helpers are internal; a later version may ask more of them, or write other fields. Each replacement is
therefore compared with the installed torch's function before it is used: the names of its arguments, and its results
on states that have one of each kind of value that the replacements treat themselves. What they leave to torch needs
no check.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType

from . import _flatten, _load_plan, _save_plan

__all__ = ["replacements"]

Function = Callable[..., Any]
Cases = Callable[[], Iterable[tuple[Any, ...]]]


def replacements() -> tuple[dict[str, Function], list[str]]:
    """The functions to use in place of torch's, by name, and the names of those that do not fit this torch."""
    candidates: dict[str, tuple[Function, Cases]] = {
        "_init_state_dict": (_flatten.init_state_dict, lambda: [(_state(),)]),
        "_flatten_sharded_tensors": (_flatten.flatten_sharded_tensors, lambda: [(_state(),)]),
        "flatten_state_dict": (_flatten.flatten_state_dict, lambda: [(_state(),)]),
        "create_default_local_save_plan": (
            _save_plan.create_default_local_save_plan,
            lambda: [(_flat(), True), (_flat(), False)],
        ),
        "dedup_save_plans": (
            _save_plan.dedup_save_plans,
            lambda: [(plans, to_lowest) for plans in _plans() for to_lowest in (True, False)],
        ),
        "create_default_global_save_plan": (
            _save_plan.create_default_global_save_plan,
            lambda: [([*plans[:1], *plans[2:]],) for plans in _plans()],
        ),
        "_validate_global_plan": (_save_plan.validate_global_plan, lambda: [(plans, _index()) for plans in _plans()]),
        "create_default_local_load_plan": (
            _load_plan.create_default_local_load_plan,
            lambda: [(_flat(), _index(), True), (_flat(), _index(), False)],
        ),
    }
    fitting: dict[str, Function] = {"ChainMap": _save_plan.merged}
    unfit = []
    for name, (function, cases) in candidates.items():
        known = getattr(default_planner, name, None)
        if known is not None and _agree(function, known, cases):
            fitting[name] = function
        else:
            unfit.append(name)
    return fitting, unfit


def _agree(function: Function, known: Function, cases: Cases) -> bool:
    """Whether both take the same arguments and give and leave the same on every case."""
    try:
        if list(inspect.signature(function).parameters) != list(inspect.signature(known).parameters):
            return False
        for ours, theirs in zip(cases(), cases(), strict=True):
            if not _same((function(*ours), ours), (known(*theirs), theirs)):
                return False
    except Exception:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Equal through and through, types and order included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one is other
    if dataclasses.is_dataclass(one):
        return all(_same(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


_MATRIX = torch.zeros(4, 6, device="cpu")
_TENSORS: dict[str, Any] = {
    "matrix": _MATRIX,
    "strided": _MATRIX.t(),
    "scalar": torch.tensor(1, dtype=torch.int64, device="cpu"),
    "empty": torch.zeros(0, 3, dtype=torch.bfloat16, device="cpu"),
    "parameter": torch.nn.Parameter(_MATRIX),
    "marked": torch.zeros(2, device="cpu"),
}
_TENSORS["marked"].note = "more than a plain tensor"


def _state() -> dict[str, Any]:
    return {
        **_TENSORS,
        "nested": {"deep": OrderedDict(_TENSORS), 3: {"three": _MATRIX}, "nothing": {}},
        "list": [_MATRIX, {"tensor": _MATRIX, "text": "x"}],
        "objects": [1, (2.0, None)],
        "text": "x",
    }


def _flat() -> dict[str, Any]:
    return {**_TENSORS, "number": 1, "object": {1, 2}}


def _sharded(rank: int, ranks: int) -> WriteItem:
    """One of `ranks` blocks of rows, as sharded tensors give them."""
    (item,) = default_planner.create_default_local_save_plan({"rows": _MATRIX}, True).items
    assert item.tensor_data is not None
    rows = _MATRIX.size(0) // ranks
    chunk = ChunkStorageMetadata(torch.Size([rank * rows, 0]), torch.Size([rows, _MATRIX.size(1)]))
    return dataclasses.replace(
        item,
        index=dataclasses.replace(item.index, offset=chunk.offsets),
        type=WriteItemType.SHARD,
        tensor_data=dataclasses.replace(item.tensor_data, chunk=chunk),
    )


def _plans() -> list[list[SavePlan]]:
    """The plans of one rank, and of three that all have the same tensors, and shards."""
    alone = default_planner.create_default_local_save_plan(_flat(), True)
    ranks = [dataclasses.replace(alone, items=[*alone.items, _sharded(rank, 2)]) for rank in (0, 0, 1)]
    ranks[2].items[:] = ranks[2].items[-1:]
    return [[copy.copy(alone)], ranks]


def _index() -> Metadata:
    """The index of a checkpoint of what `_plans` has."""
    _, ranks = _plans()
    _, metadata = default_planner.create_default_global_save_plan([ranks[0], ranks[2]])
    return metadata
