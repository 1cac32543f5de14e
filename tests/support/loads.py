"""Items of loads that no plan asked for, to be read into any memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from s3dcp import _native


def first_bytes(load: _native.Load, file: str, nbytes: int) -> _native.ItemPart:
    """The first `nbytes` of `file`, which lies in the folder of the load."""
    stored = _found(load, LoadItemType.BYTE_IO, BytesStorageMetadata(), _StorageInfo(file, 0, nbytes), torch.Size(()))
    return load.whole(stored)


def tensor_at(load: _native.Load, file: str) -> _native.StoredItem:
    """A tensor of a byte in an archive of this project, at the front of `file`."""
    one = torch.Size((1,))
    chunk = ChunkStorageMetadata(torch.Size((0,)), one)
    tensor = TensorStorageMetadata(TensorProperties(torch.uint8), one, [chunk])
    info = _StorageInfo(file, 0, 1)
    vars(info).update(data_offset=0, crc32=bytes(4))
    return _found(load, LoadItemType.TENSOR, tensor, info, one)


def _found(
    load: _native.Load, kind: LoadItemType, what: Any, info: _StorageInfo, size: torch.Size
) -> _native.StoredItem:
    index = MetadataIndex("x", torch.Size((0,) * len(size)) if size else None)
    zeros = torch.Size((0,) * len(size))
    item = ReadItem(kind, index, zeros, index, zeros, size)
    (stored,) = load.find(Metadata({"x": what}, storage_data={index: info}), [item], {}).items
    return stored
