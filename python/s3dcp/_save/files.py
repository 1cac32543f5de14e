"""Which item of a save plan goes into which shard file."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from .. import _native
from .._compat import SerializationFormat


@dataclass
class FilePlan:
    """The items of one shard file, objects first; `safetensors` when all are tensors in that format."""

    items: list[WriteItem]
    safetensors: bool
    nbytes: int


def item_nbytes(item: WriteItem) -> int:
    """Raw bytes of a tensor item; 0 for an object, whose size is not known before it is pickled."""
    data = item.tensor_data
    if data is None:
        return 0
    return math.prod(data.chunk.sizes) * data.properties.dtype.itemsize


def split_into_files(
    items: list[WriteItem], thread_count: int, single_file_per_rank: bool, format: SerializationFormat
) -> list[FilePlan]:
    """Spread `items` over `thread_count` files of about equal size, or one file per item.

    Safetensors files hold tensors only, each name once: objects, and further chunks of a name, get files of their
    own. Empty files are not made.
    """
    if not single_file_per_rank:
        groups = [[item] for item in items]
    elif thread_count == 1:
        groups = [items]
    else:
        groups = [[] for _ in range(thread_count)]
        for item, number in zip(items, _native.spread(list(map(item_nbytes, items)), thread_count), strict=True):
            groups[number].append(item)

    files: list[FilePlan] = []
    for group in groups:
        objects = [item for item in group if item.type == WriteItemType.BYTE_IO]
        tensors = [item for item in group if item.type != WriteItemType.BYTE_IO]
        if format is SerializationFormat.SAFETENSORS:
            parts = [(objects, False), *((names, True) for names in _unique_names(tensors))]
        else:
            parts = [(objects + tensors, False)]
        files += [FilePlan(part, safetensors, sum(map(item_nbytes, part))) for part, safetensors in parts if part]
    return files


def _unique_names(tensors: list[WriteItem]) -> list[list[WriteItem]]:
    groups: list[dict[str, WriteItem]] = []
    for item in tensors:
        name = item.index.fqn
        group = next((group for group in groups if name not in group), None)
        if group is None:
            groups.append(group := {})
        group[name] = item
    return [list(group.values()) for group in groups]
