"""States as planners see them: flattening, and what counts as plain.

Three drop-in replacements for functions that torch's default planners call on every state, with the same results.
torch asks of every value whether it is a mapping, a list, a tensor of this or that kind, by ``isinstance`` against
abstract classes and runtime protocols. Here the exact type answers for the values that states are made of,
dictionaries of tensors and scalars; every other value is given to torch's own function, alone, and its answer is put
in place.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint import _nested_dict, _sharded_tensor_utils, _version, planner_helpers

from ._gc import without_gc
from ._tensors import PLAIN_TENSORS

__all__ = ["flatten_sharded_tensors", "flatten_state_dict", "init_state_dict"]

_SCALARS = frozenset({int, float, bool, str, bytes, type(None)})
_LEAVES = PLAIN_TENSORS | _SCALARS
_DICTS = frozenset({dict, OrderedDict})

_torch_flatten = _nested_dict.flatten_state_dict
_torch_flatten_sharded = _sharded_tensor_utils._flatten_sharded_tensors
_torch_init = planner_helpers._init_state_dict


@without_gc
def flatten_state_dict(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str | int, ...]]]:
    """torch's function of this name: the leaves of `state_dict` by dotted name, and the path to each."""
    if _version._derived_version is not None:  # asked for the names that an old torch gave
        return _torch_flatten(state_dict)
    flat: dict[str, Any] = {}
    paths: dict[str, tuple[str | int, ...]] = {}
    try:
        _flatten(state_dict, "", (), flat, paths)
    except ValueError:  # two leaves of one name: torch words the error
        return _torch_flatten(state_dict)
    return flat, paths


def _flatten(
    values: dict[Any, Any],
    prefix: str,
    path: tuple[str | int, ...],
    flat: dict[str, Any],
    paths: dict[str, tuple[str | int, ...]],
) -> None:
    for key, value in values.items():
        if type(key) is not str:
            key = str(key)
        cls = type(value)
        if cls in _LEAVES or isinstance(value, torch.Tensor):
            name = prefix + key
            if name in flat:
                raise ValueError(name)
            flat[name] = value
            paths[name] = (*path, key)
        elif cls in _DICTS:
            _flatten(value, f"{prefix}{key}.", (*path, key), flat, paths)
        else:
            part, part_paths = _torch_flatten({key: value})
            for end, leaf in part.items():
                name = prefix + end
                if name in flat:
                    raise ValueError(name)
                flat[name] = leaf
                paths[name] = path + part_paths[end]


@without_gc
def flatten_sharded_tensors(state_dict: dict[str, Any]) -> dict[str, Any]:
    """torch's function of this name: `state_dict` rebuilt, with sharded tensors of sharded tensors made one."""
    rebuilt = _without_sharded(state_dict)
    return _torch_flatten_sharded(state_dict) if rebuilt is None else rebuilt


def _without_sharded(values: dict[Any, Any]) -> dict[str, Any] | None:
    """`values` as torch rebuilds them: names are strings, empty dictionaries gone. None where names fall together."""
    rebuilt: dict[str, Any] = {}
    for key, value in values.items():
        if type(key) is not str:
            key = str(key)
        if key in rebuilt:
            return None
        cls = type(value)
        if cls in _LEAVES or (isinstance(value, torch.Tensor) and not isinstance(value, ShardedTensor)):
            rebuilt[key] = value
        elif cls in _DICTS:
            inner = _without_sharded(value)
            if inner is None:
                return None
            if inner:
                rebuilt[key] = inner
        else:
            rebuilt.update(_torch_flatten_sharded({key: value}))
    return rebuilt


@without_gc
def init_state_dict(state_dict: dict[str, Any]) -> None:
    """torch's function of this name: gives tensors on the meta device memory, in place."""
    if type(state_dict) not in _DICTS:
        _torch_init(state_dict)
        return
    for key, value in state_dict.items():
        cls = type(value)
        if cls in _DICTS:
            init_state_dict(value)
        elif cls not in _SCALARS and (cls not in PLAIN_TENSORS or value.is_meta):
            part = {key: value}
            _torch_init(part)
            state_dict[key] = part[key]
