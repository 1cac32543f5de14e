"""What is stored where: from items of an index to runs of bytes in shard files.

Our own index says where an item's raw bytes begin, and dtype and shape say how long it is and what it begins with. Of
foreign items head and end are read: of a torch archive, or the header of a safetensors file. All of what is wanted is
judged before any of it is loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.planner_helpers import _create_chunk_list

from . import _native
from ._blocks import row_major
from ._dtypes import NATIVE, SAFETENSORS_DTYPES
from .errors import Corrupt

HEAD_BYTES = 2048
END_BYTES = _native.ARCHIVE_END_BYTES
# Heads and ends of foreign items are read for so many at a time, 2 KiB each.
FOREIGN_ITEMS = 4096
# No torch.save archive is this small: shorter items of a foreign file can only be safetensors.
SMALLEST_ARCHIVE_BYTES = 512
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000


# Length and CRC-32 of what an item begins with.
Head = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """One stored tensor: raw bytes at `offset` + `data_offset` of `key`, in `dtype`, `shape` and `strides`.

    `head` is what the item must begin with; None where that has been seen.
    """

    key: str
    offset: int
    length: int
    checksums: bytes | None
    data_offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    storage_offset: int = 0
    head: Head | None = None

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


class Layout(NamedTuple):
    """How our writer stores a tensor of some dtype and shape: the head of its archive, bytes of that, raw bytes."""

    head: Head
    length: int
    nbytes: int


def _is_whole(tensor: TensorStorageMetadata) -> bool:
    """Whether a tensor's only chunk obviously is all of it."""
    (chunk,) = tensor.chunks
    size = tensor.size
    whole = chunk.sizes == size and len(chunk.offsets) == len(size) and not any(chunk.offsets)
    return whole and type(size) is torch.Size and min(size, default=0) >= 0


class Index:
    """An index, asked for where things are.

    Args:
        client: the native client, for the heads of foreign items.
        bucket, path_key: where the index is; its relative paths start there.
        metadata: the index.
        verify: hand out the checksums in the index.
        is_part: the index may be that of one rank alone, whose tensors may lie in others' indexes too.
    """

    def __init__(
        self,
        client: _native.Client,
        bucket: str,
        path_key: str,
        metadata: Metadata,
        verify: bool,
        is_part: bool = False,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._names = _native.Layout(path_key)
        self._metadata = metadata
        self._verify = verify
        self._is_part = is_part
        self._keys: dict[str, str] = {}
        self._headers: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
        self._layouts: dict[tuple[torch.dtype, torch.Size], Layout] = {}
        self._chunks: dict[str, dict[Any, Any]] = {}

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
            key = self._keys[relative_path] = self._names.resolve(relative_path)
        return key

    def judge(
        self, items: list[tuple[ReadItem, Any]], state: dict[str, Any]
    ) -> tuple[list[Layout | None], list[tuple[ReadItem, Any]]]:
        """Refuse what the index says of the wanted tensors where that cannot be.

        Args:
            items: what the plan reads, with its entries, file by file and from front to back.
            state: what the load wants, as far as it is known; more than the plan reads where chunks are missing.

        Returns:
            For each item how it is stored, if our writer stored it as a tensor, and the tensors, with their entries,
            that others stored: of them the items themselves must be asked.
        """
        contents, tensor = self.contents, LoadItemType.TENSOR
        layouts: list[Layout | None] = []
        foreign = []
        names, doubtful = set(), set()
        # What is equal is one object in an index of ours: the layouts of whole tensors, by their only chunk.
        known: dict[tuple[int, int, int], Layout] = {}
        path: str | None = None
        end, before = 0, MetadataIndex("")
        for item, info in items:
            index = item.storage_index
            name, data_offset = index.fqn, getattr(info, "data_offset", None)
            names.add(name)
            layouts.append(None)
            if item.type is not tensor:
                if data_offset is not None:
                    raise Corrupt(f"{name}: the index calls this an object, and places a tensor there")
                continue
            if data_offset is None or getattr(info, "crc32", None) is None:
                doubtful.add(name)
                if not getattr(info, "transform_descriptors", None):
                    foreign.append((item, info))
                continue
            entry: Any = contents.get(name)
            chunks: Any = getattr(entry, "chunks", ())
            layout = None
            if len(chunks) == 1 and index.offset == chunks[0].offsets:
                key = id(chunks[0]), id(entry.size), id(entry.properties)
                layout = known.get(key)
                if layout is None and _is_whole(entry):
                    layout = known[key] = self._layout(entry.properties.dtype, entry.size)
            if layout is None:
                doubtful.add(name)
                layout = self._layout(*self._declared(index))
            if info.length != layout.length or data_offset != layout.head[0]:
                self._must_be_safetensors(index, info, layout)
            if info.relative_path != path:
                path, end = info.relative_path, 0
            if info.offset < end and index != before:
                raise Corrupt(f"{name}: the index gives this item bytes of another, of {before.fqn}")
            end, before = info.offset + info.length, index
            layouts[-1] = layout
        doubtful.update(state.keys() - names)
        for name in _native.check_chunks(contents, TensorStorageMetadata, doubtful):
            self._must_hold_all(name, state.get(name))
        return layouts, foreign

    def _must_hold_all(self, name: str, wanted: Any) -> None:
        """Refuse a tensor with holes, unless a rank saved its part alone and no more than that is wanted."""
        if self._is_part:
            try:
                if _native.chunks_hold(self.contents[name], _create_chunk_list(wanted)):
                    return
            except ValueError:
                pass  # not a tensor of a kind that torch can take apart
        tensor: Any = self.contents[name]
        raise Corrupt(
            f"{name}: its {len(tensor.chunks)} chunks in the index do not fill its shape {tuple(tensor.size)}: "
            "parts of this tensor are missing"
        )

    def _must_be_safetensors(self, index: MetadataIndex, info: Any, layout: Layout) -> None:
        """Refuse an entry that gives its tensor neither an archive nor its raw bytes alone."""
        if info.data_offset != 0 or info.length != layout.nbytes:
            dtype, shape = self._declared(index)
            raise Corrupt(
                f"{index.fqn}: the index gives this item {info.length} bytes with values from byte "
                f"{info.data_offset} on, not as a tensor of {dtype} {tuple(shape)} is stored"
            )

    def _layout(self, dtype: torch.dtype, shape: torch.Size) -> Layout:
        """How our writer stores a tensor."""
        layout = self._layouts.get((dtype, shape))
        if layout is None:
            try:
                length_of_head, crc32, length = _native.archive_layout(NATIVE[dtype], shape)
                nbytes = math.prod(shape) * dtype.itemsize
            except (KeyError, ValueError, OverflowError):
                length_of_head, crc32, length, nbytes = -1, 0, -1, -1  # fits nothing
            layout = self._layouts[dtype, shape] = Layout((length_of_head, crc32), length, nbytes)
        return layout

    def source(self, index: MetadataIndex, info: Any, layout: Layout) -> Source:
        """Where a tensor lies that our writer stored."""
        dtype, shape = self._declared(index)
        return Source(
            key=self.key(info.relative_path),
            offset=info.offset,
            length=info.length,
            checksums=self.checksums(info),
            data_offset=info.data_offset,
            dtype=dtype,
            shape=shape,
            strides=row_major(shape),
            head=layout.head if info.data_offset else None,
        )

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

    def _declared(self, index: MetadataIndex) -> tuple[torch.dtype, torch.Size]:
        """Dtype and shape of a stored chunk as the index declares them."""
        tensor = self._metadata.state_dict_metadata.get(index.fqn)
        if not isinstance(tensor, TensorStorageMetadata):
            raise Corrupt(f"{index.fqn}: the index does not describe this tensor")
        chunks, dtype = tensor.chunks, tensor.properties.dtype
        hint = index.index
        if hint is not None and 0 <= hint < len(chunks) and index.offset in (None, chunks[hint].offsets):
            return dtype, torch.Size(chunks[hint].sizes)
        by_offset = self._chunks.get(index.fqn)
        if by_offset is None:
            # of chunks at one place only one is not empty
            ordered = sorted(chunks, key=lambda chunk: 0 not in chunk.sizes)
            by_offset = self._chunks[index.fqn] = {tuple(chunk.offsets): chunk for chunk in ordered}
            if chunks:
                by_offset[None] = chunks[0]
        chunk = by_offset.get(None if index.offset is None else tuple(index.offset))
        if chunk is None:
            raise Corrupt(f"{index.fqn}: the index does not describe the chunk at {index.offset}")
        return dtype, torch.Size(chunk.sizes)

    def foreign_sources(self, items: list[tuple[ReadItem, Any]]) -> list[Source | None]:
        """The sources of items, with their entries, that others wrote; None where only torch can read one."""
        sources: list[Source | None] = []
        for start in range(0, len(items), FOREIGN_ITEMS):
            sources += self._some_foreign_sources(items[start : start + FOREIGN_ITEMS])
        return sources

    def _some_foreign_sources(self, items: list[tuple[ReadItem, Any]]) -> list[Source | None]:
        """Heads and ends are read, all at once."""
        sources: list[Source | None] = [None] * len(items)
        safetensors: list[int] = []
        waiting: list[tuple[int, int]] = []
        ends: dict[int, tuple[str, int, int]] = {}
        for number, (_, info) in enumerate(items):
            if info.length < SMALLEST_ARCHIVE_BYTES or getattr(info, "data_offset", None) == 0:
                safetensors.append(number)
                continue
            waiting.append((number, HEAD_BYTES))
            if info.length > HEAD_BYTES:
                end = info.offset + info.length
                ends[number] = self.key(info.relative_path), end - END_BYTES, end
        while waiting:
            ranges = []
            for number, want in waiting:
                info = items[number][1]
                ranges.append((self.key(info.relative_path), info.offset, info.offset + min(want, info.length)))
            read = self._client.read_ranges(self._bucket, [*ranges, *ends.values()])
            heads, last = read[: len(ranges)], dict(zip(ends, read[len(ranges) :], strict=True))
            ends = {}
            still = []
            for (number, want), head in zip(waiting, heads, strict=True):
                item, info = items[number]
                if not head.startswith(b"PK\x03\x04"):
                    safetensors.append(number)
                    continue
                if want == HEAD_BYTES:
                    end = bytes(last.get(number, head[-END_BYTES:]))
                    if not _native.ends_archive(end, info.length):
                        name, length = item.storage_index.fqn, info.length
                        raise Corrupt(f"{name}: the index gives this item {length} bytes, where no archive ends")
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
        self.must_match_declared(item.storage_index, source.shape)
        needed = source.elements * source.dtype.itemsize
        if parsed.data_length < needed or parsed.data_offset + parsed.data_length > info.length:
            raise Corrupt(f"{item.storage_index.fqn}: the stored archive holds too few bytes for its shape")
        return source

    def must_match_declared(self, index: MetadataIndex, shape: tuple[int, ...]) -> None:
        """Refuse a stored tensor of another shape than the index declares.

        Its dtype may be another: that of what a planner made of the tensor when it was saved.
        """
        _, declared = self._declared(index)
        if shape != tuple(declared):
            raise Corrupt(f"{index.fqn}: stored in the shape {shape}, but the index says {tuple(declared)}")

    def _safetensors_source(self, item: ReadItem, info: Any) -> Source:
        """torch gives every tensor of a safetensors file the offset of the file's header; names tell them apart."""
        name, key = item.storage_index.fqn, self.key(info.relative_path)
        is_ours = getattr(info, "data_offset", None) == 0
        data_start, entries = self._safetensors_header(key, 0 if is_ours else info.offset)
        entry = entries.get(name)
        try:
            dtype, shape = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])  # type: ignore[index]
            start, end = entry["data_offsets"]  # type: ignore[index]
            fits = 0 <= start <= end and end - start == math.prod(shape) * dtype.itemsize
            fits = fits and (not is_ours or (data_start + start, end - start) == (info.offset, info.length))
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise Corrupt(f"{name}: {key} does not hold this tensor as safetensors")
        self.must_match_declared(item.storage_index, shape)
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
