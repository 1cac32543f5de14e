"""What is stored where: from items of an index to runs of bytes in shard files.

Our own index says where an item's raw bytes begin. Of foreign items the head is read: a torch archive, or the
header of a safetensors file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from . import _native
from ._blocks import row_major
from ._dtypes import SAFETENSORS_DTYPES
from .errors import Corrupt

HEAD_BYTES = 2048
# No torch.save archive is this small: shorter items of a foreign file can only be safetensors.
SMALLEST_ARCHIVE_BYTES = 512
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Source:
    """One stored tensor: raw bytes at `offset` + `data_offset` of `key`, in `dtype`, `shape` and `strides`."""

    key: str
    offset: int
    length: int
    checksums: bytes | None
    data_offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int = 0

    @property
    def elements(self) -> int:
        """Elements of the storage up to the tensor's last one; 0 for an empty tensor."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return self.storage_offset + sum((size - 1) * stride for size, stride in steps) + 1

    def nesting(self) -> list[int] | None:
        """The dimensions from the widest step to the narrowest, if each steps over all that lies within it."""
        order = list(range(len(self.shape)))
        if self.strides == row_major(self.shape):
            return order
        order.sort(key=lambda dim: -self.strides[dim])
        extent = 1
        for dim in reversed(order):
            if self.shape[dim] > 1:
                if self.strides[dim] < extent:
                    return None
                extent += (self.shape[dim] - 1) * self.strides[dim]
        return order


class Index:
    """An index, asked for where things are.

    Args:
        client: the native client, for the heads of foreign items.
        bucket, path_key: where the index is; its relative paths start there.
        metadata: the index.
        verify: hand out the checksums in the index.
    """

    def __init__(self, client: _native.Client, bucket: str, path_key: str, metadata: Metadata, verify: bool) -> None:
        self._client = client
        self._bucket = bucket
        self._path_key = path_key
        self._metadata = metadata
        self._verify = verify
        self._keys: dict[str, str] = {}
        self._headers: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}

    def wanted_bytes(self, item: ReadItem) -> int:
        """Bytes of the values that `item` wants."""
        tensor = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
        if isinstance(tensor, TensorStorageMetadata):
            return math.prod(item.lengths) * tensor.properties.dtype.itemsize
        return self.infos([item])[0].length  # type: ignore[no-any-return]

    @property
    def contents(self) -> dict[str, Any]:
        """What the index says of each tensor and object, by name."""
        return self._metadata.state_dict_metadata

    def infos(self, items: list[ReadItem]) -> list[Any]:
        """The entry of each stored item: torch's ``_StorageInfo``, ours with more attributes."""
        entries = self._metadata.storage_data
        try:
            return [entries[item.storage_index] for item in items]
        except KeyError as error:
            name = error.args[0].fqn
            raise Corrupt(f"{name}: the index does not say where this item is stored") from None

    def key(self, relative_path: str) -> str:
        """The key of a shard file named in the index."""
        key = self._keys.get(relative_path)
        if key is None:
            key = self._keys[relative_path] = _native.resolve_key(self._path_key, relative_path)
        return key

    def source(self, index: MetadataIndex, info: Any) -> Source:
        """Where a tensor lies whose entry says where its raw bytes begin."""
        dtype, shape = self._declared(index)
        self.must_hold(index.fqn, info, math.prod(shape) * dtype.itemsize)
        return Source(
            key=self.key(info.relative_path),
            offset=info.offset,
            length=info.length,
            checksums=self.checksums(info),
            data_offset=info.data_offset,
            dtype=dtype,
            shape=shape,
            strides=row_major(shape),
        )

    def must_hold(self, name: str, info: Any, nbytes: int) -> None:
        """Refuse an entry too short for the raw bytes of its tensor."""
        start = info.data_offset
        if not (type(start) is int and start >= 0 and start + nbytes <= info.length):
            raise Corrupt(f"{name}: the index gives this item too few bytes for its shape")

    def must_be_in_file(self, name: str, info: Any) -> None:
        """Refuse an entry that ends past its file, before memory is set aside for it."""
        key = self.key(info.relative_path)
        size = self._client.head_object(self._bucket, key).size
        if info.offset + info.length > size:
            message = f"{name}: the index gives this item {info.length} bytes at {info.offset} of a file of {size}"
            raise Corrupt(message, bucket=self._bucket, key=key)

    def checksums(self, info: Any) -> bytes | None:
        """The packed checksums of an entry, where it has some and they are wanted."""
        checksums = getattr(info, "crc32", None)
        if checksums is not None and not isinstance(checksums, bytes):
            raise Corrupt(f"{info.relative_path}: malformed checksums in the index")
        return checksums if self._verify else None

    def _declared(self, index: MetadataIndex) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of a stored chunk as the index declares them."""
        tensor = self._metadata.state_dict_metadata.get(index.fqn)
        if not isinstance(tensor, TensorStorageMetadata):
            raise Corrupt(f"{index.fqn}: the index does not describe this tensor")
        chunks = tensor.chunks
        hint = index.index
        if hint is not None and 0 <= hint < len(chunks) and index.offset in (None, chunks[hint].offsets):
            return tensor.properties.dtype, tuple(chunks[hint].sizes)
        for chunk in chunks:
            if index.offset in (None, chunk.offsets):
                return tensor.properties.dtype, tuple(chunk.sizes)
        raise Corrupt(f"{index.fqn}: the index does not describe the chunk at {index.offset}")

    def foreign_sources(self, items: list[tuple[ReadItem, Any]]) -> list[Source | None]:
        """The sources of items, with their entries, that others wrote; None where only torch can read one.

        Their heads are read, all at once.
        """
        sources: list[Source | None] = [None] * len(items)
        safetensors: list[int] = []
        waiting: list[tuple[int, int]] = []
        for number, (_, info) in enumerate(items):
            if info.length < SMALLEST_ARCHIVE_BYTES:
                safetensors.append(number)
            else:
                waiting.append((number, HEAD_BYTES))
        while waiting:
            ranges = []
            for number, want in waiting:
                info = items[number][1]
                ranges.append((self.key(info.relative_path), info.offset, info.offset + min(want, info.length)))
            heads = self._client.read_ranges(self._bucket, ranges)
            still = []
            for (number, want), head in zip(waiting, heads, strict=True):
                item, info = items[number]
                if not head.startswith(b"PK\x03\x04"):
                    safetensors.append(number)
                    continue
                parsed = _native.parse_archive_head(head, item.storage_index.fqn)
                if isinstance(parsed, int):
                    if want >= info.length:
                        raise Corrupt(f"{item.storage_index.fqn}: the stored archive is cut short")
                    still.append((number, max(parsed, 2 * want)))
                else:
                    sources[number] = self._archive_source(item, info, parsed)
            waiting = still
        for number in safetensors:
            sources[number] = self._safetensors_source(*items[number])
        return sources

    def _archive_source(self, item: ReadItem, info: Any, parsed: _native.ArchiveHead | None) -> Source | None:
        if parsed is None or parsed.big_endian:
            return None
        source = Source(
            key=self.key(info.relative_path),
            offset=info.offset,
            length=info.length,
            checksums=self.checksums(info),
            data_offset=parsed.data_offset,
            dtype=getattr(torch, parsed.dtype),
            shape=tuple(parsed.shape),
            strides=tuple(parsed.strides),
            storage_offset=parsed.storage_offset,
        )
        self.must_match_declared(item.storage_index, source.dtype, source.shape)
        needed = source.elements * source.dtype.itemsize
        if parsed.data_length < needed or parsed.data_offset + parsed.data_length > info.length:
            raise Corrupt(f"{item.storage_index.fqn}: the stored archive holds too few bytes for its shape")
        return source

    def must_match_declared(self, index: MetadataIndex, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        """Refuse a stored tensor that is not what the index declares."""
        declared = self._declared(index)
        if (dtype, shape) != declared:
            raise Corrupt(f"{index.fqn}: stored as {dtype} {shape}, but the index says {declared[0]} {declared[1]}")

    def _safetensors_source(self, item: ReadItem, info: Any) -> Source:
        """torch gives every tensor of a safetensors file the offset of the file's header; names tell them apart."""
        name, key = item.storage_index.fqn, self.key(info.relative_path)
        data_start, entries = self._safetensors_header(key, info.offset)
        entry = entries.get(name)
        try:
            dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])  # type: ignore[index]
            start, end = entry["data_offsets"]  # type: ignore[index]
            fits = 0 <= start <= end and end - start == math.prod(shape) * dtype.itemsize
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise Corrupt(f"{name}: {key} does not hold this tensor as safetensors")
        self.must_match_declared(item.storage_index, dtype, shape)
        return Source(
            key=key,
            offset=data_start + start,
            length=end - start,
            checksums=None,
            data_offset=0,
            dtype=dtype,
            shape=shape,
            strides=row_major(shape),
        )

    def _safetensors_header(self, key: str, offset: int) -> tuple[int, dict[str, Any]]:
        """Where the data of a file begins, and its entries; each file's header is read once."""
        known = self._headers.get((key, offset))
        if known is not None:
            return known
        length = int.from_bytes(self._client.read_ranges(self._bucket, [(key, offset, offset + 8)])[0], "little")
        if not 2 <= length <= MAX_SAFETENSORS_HEADER_BYTES:
            raise Corrupt(f"{key}: neither a torch archive nor a safetensors file at byte {offset}")
        start = offset + 8
        header = self._client.read_ranges(self._bucket, [(key, start, start + length)])[0]
        try:
            entries = json.loads(header)
        except ValueError as error:
            raise Corrupt(f"{key}: the safetensors header is damaged: {error}") from error
        if not isinstance(entries, dict):
            raise Corrupt(f"{key}: the safetensors header is no object")
        self._headers[key, offset] = start + length, entries
        return start + length, entries
