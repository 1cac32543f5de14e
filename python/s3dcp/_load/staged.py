"""Tensors into whose memory bytes cannot go as they are: torch copies them out of slots, and converts them.

Of another dtype or on another device, conjugated or negated views, of a class of their own, or with elements that share
memory or lie apart in it: many short runs are copied faster by torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index

from .. import _native
from . import transfer as _transfer


def copy_through_slots(stored: _native.StoredItem, target: torch.Tensor, transfer: _transfer.Transfer) -> None:
    """Read what is wanted of a stored tensor into slots, a part at a time, and have it copied to `target`."""
    dtype, found = stored.dtype, stored.parts(_transfer.SLOT_BYTES)
    assert dtype is not None
    if found is None:
        _copy_out_of_storage(stored, dtype, target, transfer)
        return
    block = target.permute(found.order)
    for part in found.parts:
        values, used = transfer.stage(part).view(dtype), 0
        for box in boxes(block, *part.elements):
            box_values = values.narrow(0, used, box.numel()).view(box.shape)
            used += box.numel()
            # Detached, because torch refuses to write through a view of an inference tensor.
            transfer.then(partial(box.detach().copy_, box_values))


def _copy_out_of_storage(
    stored: _native.StoredItem, dtype: torch.dtype, target: torch.Tensor, transfer: _transfer.Transfer
) -> None:
    """The same of a tensor whose elements share bytes of its storage, which is read whole."""
    storage = stored.storage()
    assert storage is not None
    elements = transfer.stage(storage.part).view(dtype)
    first = elements.storage_offset() + storage.offset  # as_strided counts from the slot's start
    values = elements.as_strided(stored.shape, storage.strides, first)
    block = narrow_tensor_by_index(values, stored.item.storage_offsets, target.size())
    transfer.then(lambda: target.copy_(block))


def boxes(block: torch.Tensor, first: int, end: int) -> Iterator[torch.Tensor]:
    """Views of the elements `first` to `end` of `block`, counted in row-major order; one after another they are all."""
    if first == 0 and end == block.numel():
        yield block
        return
    if block.dim() == 1:
        yield block.narrow(0, first, end - first)
        return
    row = block[0].numel()
    (first_row, first), (end_row, end) = divmod(first, row), divmod(end, row)
    if first_row == end_row:
        yield from boxes(block[first_row], first, end)
        return
    if first:
        yield from boxes(block[first_row], first, row)
        first_row += 1
    if first_row < end_row:
        yield block.narrow(0, first_row, end_row - first_row)
    if end:
        yield from boxes(block[end_row], 0, end)
