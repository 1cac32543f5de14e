"""What only torch can read: pickled objects, streams that an extension transformed, tensors of rare kinds."""

from __future__ import annotations

import ctypes
import io
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner

from .. import _native
from .._compat import ReaderTransforms
from .._trust import WAY_OUT, refusal, safe_load
from ..errors import Corrupt, shown
from .transfer import Transfer


class Objects:
    """Loads items as a whole, through memory.

    Args:
        transforms: torch's stream extensions.
        weights_only: refuse objects that ``torch.load(weights_only=True)`` refuses.
    """

    def __init__(self, transforms: ReaderTransforms, weights_only: bool) -> None:
        self._transforms = transforms
        self._weights_only = weights_only

    def load(self, stored: _native.StoredItem, planner: LoadPlanner, transfer: Transfer) -> None:
        """Fetch all of an item, and hand it to the planner when it has arrived."""
        memory = transfer.stage(transfer.load.whole(stored))
        transfer.then(lambda: self.hand_over(stored, memory, planner))

    def hand_over(self, stored: _native.StoredItem, memory: torch.Tensor, planner: LoadPlanner) -> None:
        """Hand an item to the planner, all of whose bytes are in `memory`."""
        stream: Any = io.BytesIO(ctypes.string_at(memory.data_ptr(), memory.numel()))
        descriptors = getattr(stored.info, "transform_descriptors", None)
        if descriptors:
            stream = io.BytesIO(self._transforms.transform_load_stream(stored.item, descriptors, stream).read(-1))
        if stored.item.type != LoadItemType.BYTE_IO:
            _load_tensor(stored, stream, planner)
            return
        if self._weights_only and (error := refusal(stream)) is not None:
            raise Corrupt(
                f"{stored.name}: loading this object could run code from the checkpoint, so it is refused; use "
                f"{WAY_OUT}. torch says: {error}"
            ) from error
        planner.load_bytes(stored.item, stream)


def _load_tensor(stored: _native.StoredItem, stream: io.BytesIO, planner: LoadPlanner) -> None:
    name, item = stored.name, stored.item
    try:
        tensor = safe_load(stream)
    except Exception as error:
        raise Corrupt(
            f"{name}: torch cannot load this tensor (if it is of a class that you trust, name that to "
            f"torch.serialization.safe_globals): {error}"
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise Corrupt(f"{name}: stored is a {type(tensor).__name__}, but the index says a tensor")
    if tuple(tensor.size()) != stored.shape:
        raise Corrupt(f"{name}: stored in the shape {tuple(tensor.size())}, but the index says {stored.shape}")
    target = planner.resolve_tensor(item).detach()
    block = narrow_tensor_by_index(tensor, item.storage_offsets, item.lengths)
    if target.size() != block.size():
        raise ValueError(f"{shown(name)}: the tensor to load into is {tuple(target.size())}, not {tuple(block.size())}")
    target.copy_(block)
    planner.commit_tensor(item, target)
