"""Save plans: the functions behind torch's default save planner, several times faster, with the same results.

Each function here stands in for torch's function of the same name. A plain tensor becomes a write item in a few
attribute reads and stores; every other value is given to torch's own function, alone. Where a plan holds something
unusual, or where torch would refuse it, torch's function gets the whole: it decides, and its errors are the ones
that users see.

Frozen dataclasses are filled through ``object.__setattr__``, which is what their own constructors do, without the
calls around it. Sizes and strides that are equal are one object, which makes plans and indexes smaller to pickle.
"""

from __future__ import annotations

import dataclasses
import math
from collections import ChainMap
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import torch
from torch.distributed.checkpoint import _dedup_save_plans, default_planner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from .._gc import without_gc
from .._tensors import PLAIN_TENSORS

__all__ = [
    "create_default_global_save_plan",
    "create_default_local_save_plan",
    "dedup_save_plans",
    "merged",
    "validate_global_plan",
]

_torch_local = default_planner.create_default_local_save_plan
_torch_global = default_planner.create_default_global_save_plan
_torch_dedup = _dedup_save_plans.dedup_save_plans
_torch_validate = default_planner._validate_global_plan

_new = object.__new__
_set = object.__setattr__
_HAS_SIZE_OF_BYTES = any(field.name == "bytes_io_data" for field in dataclasses.fields(WriteItem))  # torch 2.8
_HAS_STRIDES = any(field.name == "strides" for field in dataclasses.fields(TensorProperties))


def zeros(dimensions: int) -> torch.Size:
    """The offsets of a whole tensor."""
    return torch.Size(repeat(0, dimensions))


@without_gc
def create_default_local_save_plan(state_dict: dict[str, Any], is_coordinator: bool) -> SavePlan:
    """torch's function of this name: what one rank has to write."""
    items: list[WriteItem] = []
    kind, strided, contiguous = WriteItemType.TENSOR, torch.strided, torch.contiguous_format
    offsets: dict[int, torch.Size] = {}
    known_sizes: dict[torch.Size, torch.Size] = {}
    known_strides: dict[tuple[int, ...], tuple[int, ...]] = {}
    for fqn, tensor in state_dict.items():
        if type(tensor) not in PLAIN_TENSORS or tensor.__dict__ or tensor.layout is not strided:
            items += _torch_local({fqn: tensor}, is_coordinator).items
            continue
        size = tensor.size()
        size = known_sizes.setdefault(size, size)
        dimensions = len(size)
        offset = offsets.get(dimensions)
        if offset is None:
            offset = offsets[dimensions] = zeros(dimensions)
        properties = TensorProperties(tensor.dtype, strided, tensor.requires_grad, contiguous, tensor.is_pinned())
        if _HAS_STRIDES:
            strides = tensor.stride()
            properties.strides = known_strides.setdefault(strides, strides)

        index = _new(MetadataIndex)
        _set(index, "fqn", fqn)
        _set(index, "index", None)
        _set(index, "offset", offset)
        data = _new(TensorWriteData)
        _set(data, "chunk", ChunkStorageMetadata(offset, size))
        _set(data, "properties", properties)
        _set(data, "size", size)
        item = _new(WriteItem)
        _set(item, "index", index)
        _set(item, "type", kind)
        if _HAS_SIZE_OF_BYTES:
            _set(item, "bytes_io_data", None)
        _set(item, "tensor_data", data)
        items.append(item)
    return dataclasses.replace(_torch_local({}, is_coordinator), items=items)


@without_gc
def dedup_save_plans(all_plans: list[SavePlan], save_to_lowest_rank: bool = False) -> list[SavePlan]:
    """torch's function of this name: leaves each item to one rank, the one with least to write so far."""
    if len(all_plans) == 1:
        return [dataclasses.replace(plan, items=list(plan.items)) for plan in all_plans]
    owners: dict[tuple[str, torch.Size | None], list[int]] = {}
    last: dict[tuple[str, torch.Size | None], WriteItem] = {}
    shared = False
    for rank, plan in enumerate(all_plans):
        for item in plan.items:
            index = item.index
            if type(item) is not WriteItem or type(index) is not MetadataIndex:
                return _torch_dedup(all_plans, save_to_lowest_rank)
            key = (index.fqn, index.offset)
            ranks = owners.get(key)
            if ranks is None:
                owners[key] = [rank]
            elif ranks[-1] != rank:
                ranks.append(rank)
                shared = True
            last[key] = item
    if not shared:
        return [dataclasses.replace(plan, items=list(plan.items)) for plan in all_plans]

    sizes = [0] * len(all_plans)
    dropped: list[set[tuple[str, torch.Size | None]]] = [set() for _ in all_plans]
    element_sizes: dict[torch.dtype, int] = {}
    for key, ranks in owners.items():
        chosen = ranks[0]
        if len(ranks) > 1:
            if not save_to_lowest_rank:
                # Over a set, as torch does: of ranks with equally much, it is the order of the set that chooses.
                chosen = min(set(ranks), key=sizes.__getitem__)
            for rank in ranks:
                if rank != chosen:
                    dropped[rank].add(key)
        data = last[key].tensor_data
        nbytes = 0
        if data is not None:
            dtype = data.properties.dtype
            element_size = element_sizes.get(dtype)
            if element_size is None:
                element_size = element_sizes[dtype] = torch._utils._element_size(dtype)  # type: ignore[no-untyped-call]
            nbytes = math.prod(data.size) * element_size
        sizes[chosen] += nbytes or 1
    return [
        dataclasses.replace(
            plan,
            items=[item for item in plan.items if (item.index.fqn, item.index.offset) not in drop]
            if drop
            else list(plan.items),
        )
        for plan, drop in zip(all_plans, dropped, strict=True)
    ]


@without_gc
def create_default_global_save_plan(
    all_plans: list[SavePlan], rewrite_index_hints: bool = True
) -> tuple[list[SavePlan], Metadata]:
    """torch's function of this name: every rank's items, placed among their tensor's chunks, and the index of all."""
    byte_io, shard = WriteItemType.BYTE_IO, WriteItemType.SHARD
    entries: dict[str, Any] = {}
    plans = []
    for plan in all_plans:
        items: list[WriteItem] = []
        for item in plan.items:
            index = item.index
            if type(item) is not WriteItem or type(index) is not MetadataIndex:
                return _torch_global(all_plans, rewrite_index_hints)
            fqn, kind, data = index.fqn, item.type, item.tensor_data
            entry = entries.get(fqn)
            if kind is byte_io:
                if entry is not None:
                    return _torch_global(all_plans, rewrite_index_hints)
                entries[fqn] = BytesStorageMetadata()
                items.append(item)
                continue
            if data is None or data.chunk is None:
                return _torch_global(all_plans, rewrite_index_hints)
            if entry is None:
                entry = entries[fqn] = TensorStorageMetadata(data.properties, data.size, [])
            elif kind is not shard or type(entry) is not TensorStorageMetadata:
                return _torch_global(all_plans, rewrite_index_hints)
            if rewrite_index_hints:
                placed = _new(MetadataIndex)
                _set(placed, "fqn", fqn)
                _set(placed, "index", len(entry.chunks))
                if index.offset is not None:
                    _set(placed, "offset", torch.Size(index.offset))
                old, item = item, _new(WriteItem)
                _set(item, "index", placed)
                _set(item, "type", kind)
                if _HAS_SIZE_OF_BYTES:
                    _set(item, "bytes_io_data", old.bytes_io_data)
                _set(item, "tensor_data", data)
            items.append(item)
            entry.chunks.append(data.chunk)
        plans.append(dataclasses.replace(plan, items=items))
    return plans, Metadata(entries)


def validate_global_plan(global_plan: list[SavePlan], metadata: Metadata) -> Any:
    """torch's function of this name, which looks only at tensors whose chunks do not obviously tile them."""
    doubtful = {
        fqn: entry
        for fqn, entry in metadata.state_dict_metadata.items()
        if type(entry) is not BytesStorageMetadata
        and not (type(entry) is TensorStorageMetadata and _is_tiled(entry.size, entry.chunks))
    }
    return _torch_validate(global_plan, dataclasses.replace(metadata, state_dict_metadata=doubtful))


def _is_tiled(size: torch.Size, chunks: list[ChunkStorageMetadata]) -> bool:
    """Whether `chunks` are every cell of a grid over a tensor of `size`: then they fill it and none lies over another.

    False says nothing.
    """
    if len(chunks) == 1:
        (chunk,) = chunks
        whole = chunk.sizes == size and len(chunk.offsets) == len(size) and not any(chunk.offsets)
        return whole and min(size, default=0) >= 0
    cells = 1
    for dimension, length in enumerate(size):
        intervals = dict.fromkeys((chunk.offsets[dimension], chunk.sizes[dimension]) for chunk in chunks)
        end = 0
        for offset, extent in sorted(intervals):
            if offset != end or extent < 0:
                return False
            end += extent
        if end != length:
            return False
        cells *= len(intervals)
    return cells == len(chunks) and len({(*chunk.offsets, *chunk.sizes) for chunk in chunks}) == cells


def merged(*maps: Any) -> Mapping[Any, Any]:
    """The mappings of all ranks as ``ChainMap`` merges them: the first rank's value, the last rank's keys first."""
    if not all(type(one) is dict for one in maps):
        return ChainMap(*maps)
    result: dict[Any, Any] = {}
    for one in reversed(maps):
        result.update(one)
    return result
