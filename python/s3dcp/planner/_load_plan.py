"""Load plans: the function behind torch's default load planner, several times faster, with the same results."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch.distributed.checkpoint import default_planner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from .._gc import without_gc
from .._load.entries import expect
from .._tensors import PLAIN_TENSORS
from ._save_plan import zeros

__all__ = ["create_default_local_load_plan"]

_torch_local = default_planner.create_default_local_load_plan

_new = object.__new__
_set = object.__setattr__


@without_gc
def create_default_local_load_plan(state_dict: dict[str, Any], metadata: Metadata, strict: bool = True) -> LoadPlan:
    """torch's function of this name: what one rank has to read.

    A plain tensor that was saved whole, as one chunk, is one read item. Everything else, also what does not fit the
    checkpoint, is given to torch's own function, alone.
    """
    items: list[ReadItem] = []
    kind = LoadItemType.TENSOR
    entries = metadata.state_dict_metadata
    expect(entries, len(state_dict))
    offsets: dict[int, torch.Size] = {}
    for fqn, tensor in state_dict.items():
        entry = entries.get(fqn)
        if type(tensor) in PLAIN_TENSORS and type(entry) is TensorStorageMetadata and not tensor.__dict__:
            size = tensor.size()
            dimensions = len(size)
            offset = offsets.get(dimensions)
            if offset is None:
                offset = offsets[dimensions] = zeros(dimensions)
            chunks = entry.chunks
            if (
                len(chunks) == 1
                and chunks[0].offsets == offset
                and chunks[0].sizes == size
                and entry.size == size
                and 0 not in size
            ):
                index = _new(MetadataIndex)
                _set(index, "fqn", fqn)
                _set(index, "index", 0)
                _set(index, "offset", offset)
                item = _new(ReadItem)
                _set(item, "type", kind)
                _set(item, "dest_index", index)
                _set(item, "dest_offsets", offset)
                _set(item, "storage_index", index)
                _set(item, "storage_offsets", offset)
                _set(item, "lengths", size)
                items.append(item)
                continue
        items += _torch_local({fqn: tensor}, metadata, strict).items
    return dataclasses.replace(_torch_local({}, metadata, strict), items=items)
