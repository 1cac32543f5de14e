"""The copy of a state that an asynchronous save reads while training changes the state.

Most of what a copy costs is the first touch of its memory, so a copy can be kept and written to again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.tensor import DTensor


class HostCopy:
    """Host memory for a state, used again as long as the state has the same keys, shapes and dtypes.

    Whoever asks for a copy has no more use for the one before.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    def of(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state`; pinned where there is a GPU to copy from."""
        if self._kept is None or not _is_alike(state, self._kept):
            self._kept = None  # before there are two
            self._kept = _create_cpu_state_dict(state, pin_memory=torch.cuda.is_available())
        return copied(state, self._kept)

    def free(self) -> None:
        """Let go of the memory."""
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory: the process that a copy of this goes to gets the state by another way."""
        return {"_kept": None}


def copied(state: dict[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of `state` in host memory: that of `into`, which has its structure, or new memory."""
    return _copy_state_dict(state, _create_cpu_state_dict(state) if into is None else into, type_check=False)


def _is_alike(one: Any, other: Any) -> bool:
    """Whether tensors of `one` can be copied into those of `other`, one by one and as they are."""
    if isinstance(one, ShardedTensor):
        if not isinstance(other, ShardedTensor) or one.metadata() != other.metadata():
            return False
        return len(one.local_shards()) == len(other.local_shards())
    if isinstance(one, DTensor):
        if not isinstance(other, DTensor) or one.placements != other.placements or one.shape != other.shape:
            return False
        return _is_alike(one.to_local(), other.to_local())
    if isinstance(one, torch.Tensor):
        is_plain = isinstance(other, torch.Tensor) and not isinstance(other, (DTensor, ShardedTensor))
        return is_plain and one.shape == other.shape and one.dtype == other.dtype
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return False
        return all(_is_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_is_alike, one, other))
    return not isinstance(other, (torch.Tensor, dict, list, tuple))
