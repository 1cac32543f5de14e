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

    @property
    def is_contiguous(self) -> bool:
        """Row-major from the first byte on."""
        return self.storage_offset == 0 and self.strides == row_major(self.shape)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of `shape`."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


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

    def wanted_bytes(self, item: ReadItem) -> int:
        """Bytes of the values that `item` wants."""
        tensor = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
        if isinstance(tensor, TensorStorageMetadata):
            return math.prod(item.lengths) * tensor.properties.dtype.itemsize
        return self.info(item.storage_index).length  # type: ignore[no-any-return]

    def info(self, index: MetadataIndex) -> Any:
        """The entry of one stored item: torch's ``_StorageInfo``, ours with more attributes."""
        try:
            return self._metadata.storage_data[index]
        except KeyError:
            raise Corrupt(f"{index.fqn}: the index does not say where this item is stored") from None

    def key(self, relative_path: str) -> str:
        """The key of a shard file named in the index."""
        key = self._keys.get(relative_path)
        if key is None:
            key = self._keys[relative_path] = _native.resolve_key(self._path_key, relative_path)
        return key

    def sources(self, items: list[ReadItem], infos: dict[int, Any]) -> dict[int, Source | None]:
        """The source of each item, by the item's id; None where only torch can read it."""
        sources: dict[int, Source | None] = {}
        foreign: list[ReadItem] = []
        for item in items:
            info = infos[id(item)]
            data_offset = getattr(info, "data_offset", None)
            if data_offset is None:
                foreign.append(item)
                continue
            dtype, shape = self._declared(item.storage_index)
            nbytes = math.prod(shape) * dtype.itemsize
            if not (type(data_offset) is int and data_offset >= 0 and data_offset + nbytes <= info.length):
                raise Corrupt(f"{item.storage_index.fqn}: the index gives this item too few bytes for its shape")
            sources[id(item)] = Source(
                key=self.key(info.relative_path),
                offset=info.offset,
                length=info.length,
                checksums=self.checksums(info),
                data_offset=data_offset,
                dtype=dtype,
                shape=shape,
                strides=row_major(shape),
            )
        sources.update(self._foreign_sources(foreign, infos))
        return sources

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

    def _foreign_sources(self, items: list[ReadItem], infos: dict[int, Any]) -> dict[int, Source | None]:
        """Read the heads of items written by others, all at once, and learn their layout."""
        sources: dict[int, Source | None] = {}
        safetensors: list[ReadItem] = []
        waiting = []
        for item in items:
            if infos[id(item)].length < SMALLEST_ARCHIVE_BYTES:
                safetensors.append(item)
            else:
                waiting.append((item, HEAD_BYTES))
        while waiting:
            ranges = []
            for item, want in waiting:
                info = infos[id(item)]
                ranges.append((self.key(info.relative_path), info.offset, info.offset + min(want, info.length)))
            heads = self._client.read_ranges(self._bucket, ranges)
            still = []
            for (item, want), head in zip(waiting, heads, strict=True):
                info = infos[id(item)]
                if not head.startswith(b"PK\x03\x04"):
                    safetensors.append(item)
                    continue
                parsed = _native.parse_archive_head(head, item.storage_index.fqn)
                if isinstance(parsed, int):
                    if want >= info.length:
                        raise Corrupt(f"{item.storage_index.fqn}: the stored archive is cut short")
                    still.append((item, max(parsed, 2 * want)))
                else:
                    sources[id(item)] = self._archive_source(item, info, parsed)
            waiting = still
        sources.update(self._safetensors_sources(safetensors, infos))
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

    def _safetensors_sources(self, items: list[ReadItem], infos: dict[int, Any]) -> dict[int, Source | None]:
        """torch gives every tensor of a safetensors file the offset of the file's header; names tell them apart."""
        sources: dict[int, Source | None] = {}
        headers: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
        for item in items:
            info, name = infos[id(item)], item.storage_index.fqn
            key = self.key(info.relative_path)
            place = (key, info.offset)
            if place not in headers:
                headers[place] = self._safetensors_header(key, info.offset)
            data_start, entries = headers[place]
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
            sources[id(item)] = Source(
                key=key,
                offset=data_start + start,
                length=end - start,
                checksums=None,
                data_offset=0,
                dtype=dtype,
                shape=shape,
                strides=row_major(shape),
            )
        return sources

    def _safetensors_header(self, key: str, offset: int) -> tuple[int, dict[str, Any]]:
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
        return start + length, entries
