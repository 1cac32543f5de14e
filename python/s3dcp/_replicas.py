"""Replicated tensors written in parts: each rank that has all of a tensor writes some of its rows.

torch leaves a tensor that several ranks have to one of them. Here the large ones are laid end to end and cut so that
all ranks have as much to write, each cut at a row. A tensor is cut at most once for every rank, and most are not cut
at all where there are many: the index grows by one chunk for each rank, whatever the number of tensors.
"""

from __future__ import annotations

import dataclasses
import io
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list
from torch.distributed.tensor import DTensor

from ._dtypes import NATIVE
from ._gc import without_gc
from ._save.files import item_nbytes
from ._tensors import PLAIN_TENSORS
from .errors import ConfigError

__all__ = ["SPLIT_FROM", "resolve_data", "split_from", "split_replicated"]

SPLIT_FROM = 64 * 1024 * 1024
"""The bytes from which a replicated tensor is split: below, what is left uneven takes less time than a request more."""

Key = tuple[str, torch.Size | None]


def split_from(split_replicated: bool | int) -> int | None:
    """The bytes from which replicated tensors are split; None for never.

    Raises:
        ConfigError: `split_replicated` is neither a bool nor a number of bytes.
    """
    if isinstance(split_replicated, bool):
        return SPLIT_FROM if split_replicated else None
    if not isinstance(split_replicated, int) or split_replicated < 1:
        raise ConfigError(f"split_replicated={split_replicated!r}: must be a bool or a number of bytes, at least 1")
    return split_replicated


@without_gc
def split_replicated(
    plans: list[SavePlan], nbytes: int, dedup: Callable[[list[SavePlan]], list[SavePlan]]
) -> list[SavePlan]:
    """The plans of all ranks, with each chunk of `nbytes` or more that several have divided among them by rows.

    Where there is one, all other items have gone through `dedup`, which leaves each to one rank.
    """
    replicated = _replicated(plans, nbytes)
    if not replicated:
        return plans
    others = [[item for item in plan.items if _key(item) not in replicated] for plan in plans]
    plans = dedup([dataclasses.replace(plan, items=items) for plan, items in zip(plans, others, strict=True)])
    loads = [sum(map(item_nbytes, plan.items)) for plan in plans]
    by_ranks: dict[tuple[int, ...], list[dict[int, WriteItem]]] = {}
    for copies in replicated.values():
        by_ranks.setdefault(tuple(copies), []).append(copies)
    # What few ranks have goes first: what more have evens out the rest.
    for ranks in sorted(by_ranks, key=len):
        for rank, part in _cut(ranks, by_ranks[ranks], loads):
            plans[rank].items.append(part)
            loads[rank] += item_nbytes(part)
    return plans


def _key(item: WriteItem) -> Key:
    return item.index.fqn, item.index.offset


def _replicated(plans: list[SavePlan], nbytes: int) -> dict[Key, dict[int, WriteItem]]:
    """Every chunk of at least `nbytes` that several ranks have and that can be cut: their items, by rank."""
    found: dict[Key, dict[int, WriteItem]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            data = item.tensor_data
            if (
                data is not None
                and item_nbytes(item) >= nbytes
                and len(data.chunk.sizes) > 0
                and data.properties.layout is torch.strided
                and data.properties.dtype in NATIVE
            ):
                found.setdefault(_key(item), {})[rank] = item
    return {key: copies for key, copies in found.items() if len(copies) > 1 and _are_alike(list(copies.values()))}


def _are_alike(items: list[WriteItem]) -> bool:
    """Whether all are the same chunk of the same tensor."""
    said = [(item.type, item.tensor_data.size, item.tensor_data.chunk.sizes) for item in items]  # type: ignore[union-attr]
    dtypes = {item.tensor_data.properties.dtype for item in items}  # type: ignore[union-attr]
    return len(dtypes) == 1 and all(one == said[0] for one in said)


def _cut(ranks: tuple[int, ...], tensors: list[dict[int, WriteItem]], loads: list[int]) -> list[tuple[int, WriteItem]]:
    """The parts of `tensors`, which all of `ranks` have, and the rank of each.

    A cut lies at the row nearest to where it should, counted from the first tensor, so that roundings do not add up.
    """
    sizes = [item_nbytes(copies[ranks[0]]) for copies in tensors]
    ends = list(accumulate(_shares([loads[rank] for rank in ranks], sum(sizes))))
    parts = []
    start = 0
    for copies, size in zip(tensors, sizes, strict=True):
        rows = copies[ranks[0]].tensor_data.chunk.sizes[0]  # type: ignore[union-attr]
        row_bytes = size // rows
        first = 0
        for number in range(bisect_right(ends, start), len(ranks)):
            last = min((ends[number] - start + row_bytes // 2) // row_bytes, rows)
            if last > first:
                parts.append((ranks[number], _part(copies[ranks[number]], first, last)))
                first = last
            if first == rows:
                break
        start += size
    return parts


def _shares(loads: list[int], total: int) -> list[int]:
    """How much more each takes, of at least `total`, so that the one with most has as little as can be."""
    below = 0
    level = 0
    ordered = sorted(loads)
    for count, load in enumerate(ordered, 1):
        below += load
        level = -(-(below + total) // count)
        if count == len(ordered) or level <= ordered[count]:
            break
    return [max(level - load, 0) for load in loads]


def _part(item: WriteItem, first: int, last: int) -> WriteItem:
    """The rows from `first` up to `last` of `item`; `item` itself where these are all."""
    data = item.tensor_data
    assert data is not None
    (top, *left), (rows, *columns) = data.chunk.offsets, data.chunk.sizes
    if last - first == rows:
        return item
    chunk = ChunkStorageMetadata(torch.Size([top + first, *left]), torch.Size([last - first, *columns]))
    return dataclasses.replace(
        item,
        index=MetadataIndex(item.index.fqn, chunk.offsets),
        type=WriteItemType.SHARD,
        tensor_data=dataclasses.replace(data, chunk=chunk),
    )


def resolve_data(planner: DefaultSavePlanner, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
    """``DefaultSavePlanner.resolve_data``, which also finds a part of what this rank has."""
    data = write_item.tensor_data
    if write_item.type is WriteItemType.SHARD and data is not None:
        fqn, chunk = write_item.index.fqn, data.chunk
        tensor = planner.state_dict.get(fqn)
        held = _around(chunk, tensor) if isinstance(tensor, torch.Tensor) else None
        if held is not None:
            whole = planner.lookup_object(MetadataIndex(fqn, held.offsets))
            rows = whole.narrow(0, chunk.offsets[0] - held.offsets[0], chunk.sizes[0])
            # With a view of a class of its own, all the memory that it looks at would be pickled.
            found: torch.Tensor | io.BytesIO = planner.transform_object(
                write_item, rows if type(rows) in PLAIN_TENSORS else rows.clone()
            )
            return found
    return DefaultSavePlanner.resolve_data(planner, write_item)


def _around(chunk: ChunkStorageMetadata, tensor: torch.Tensor) -> ChunkStorageMetadata | None:
    """The chunk that this rank has of `tensor` and that `chunk` is some of the rows of, if it is."""
    # Most are all of a shard: that needs no look at the mesh.
    if not chunk.sizes or (isinstance(tensor, DTensor) and tensor._local_tensor.shape == chunk.sizes):
        return None
    for held in _create_chunk_list(tensor):
        if (
            held.offsets[1:] == chunk.offsets[1:]
            and held.sizes[1:] == chunk.sizes[1:]
            and held.offsets[0] <= chunk.offsets[0]
            and chunk.offsets[0] + chunk.sizes[0] <= held.offsets[0] + held.sizes[0]
            and chunk.sizes[0] < held.sizes[0]
        ):
            return held
    return None
