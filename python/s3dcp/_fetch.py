"""From a load plan to bytes in tensors.

Every item that is wanted becomes one `Source`: where its raw bytes lie in a shard file, in which dtype and shape.
Our own index says so; for foreign files the head of the item does. A wanted block that is one run of stored bytes
of the tensor's own dtype goes from the socket into the tensor's memory. Everything else (other dtype, other
layout, other device, blocks out of the middle of rows, objects) passes through a bounded arena, some rows at a
time. All fetches of a round run at once, over all files.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from . import _native
from ._dtypes import SAFETENSORS_DTYPES
from .errors import Corrupt

ARENA_BYTES = 64 * 1024 * 1024
BLOCK_BYTES = 32 * 1024 * 1024
HEAD_BYTES = 2048
# No torch.save archive is this small: shorter items of a foreign file can only be safetensors.
SMALLEST_ARCHIVE_BYTES = 512
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
ALIGNMENT = 64


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
    def is_contiguous(self) -> bool:
        """Row-major from the first byte on."""
        return self.storage_offset == 0 and self.strides == _row_major(self.shape)


@dataclass
class _Read:
    """Bytes of one item and where they go."""

    name: str
    key: str
    offset: int
    length: int
    checksums: bytes | None
    pieces: list[tuple[int, int, int]]  # start and end within the item, address


Step = Callable[[], None]


class Fetch:
    """One rank's load.

    Args:
        client: the native client.
        bucket, path_key: where the index is; its relative paths start there.
        metadata: the index.
        transforms: torch's stream extensions.
        verify: compare with the checksums in the index.
        weights_only: refuse objects that ``torch.load(weights_only=True)`` refuses.
    """

    def __init__(
        self,
        client: _native.Client,
        bucket: str,
        path_key: str,
        metadata: Metadata,
        transforms: _StorageReaderTransforms,
        verify: bool,
        weights_only: bool,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._path_key = path_key
        self._metadata = metadata
        self._transforms = transforms
        self._verify = verify
        self._weights_only = weights_only
        self._keys: dict[str, str] = {}
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._arena_used = 0
        self._reads: list[_Read] = []
        self._steps: list[Step] = []

    def expected_bytes(self, plan: LoadPlan) -> int:
        """About how many bytes the load will move."""
        total = 0
        for item in plan.items:
            tensor = self._metadata.state_dict_metadata.get(item.storage_index.fqn)
            if isinstance(tensor, TensorStorageMetadata):
                total += math.prod(item.lengths) * tensor.properties.dtype.itemsize
            else:
                total += self._info(item.storage_index).length
        return total

    def run(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Load every item of `plan`; returns when all bytes are in place and verified."""
        infos = {id(item): self._info(item.storage_index) for item in plan.items}
        items = sorted(plan.items, key=lambda item: (infos[id(item)].relative_path, infos[id(item)].offset))
        tensors = []
        for item in items:
            info = infos[id(item)]
            if item.type == LoadItemType.BYTE_IO or getattr(info, "transform_descriptors", None):
                self._whole_item(item, info, planner)
            else:
                tensors.append(item)
        sources = self._sources(tensors, infos)
        for item in tensors:
            source = sources[id(item)]
            if source is None:
                self._whole_item(item, infos[id(item)], planner)
            else:
                self._tensor(item, source, planner)
        self._flush()

    # -- what is stored where

    def _info(self, index: MetadataIndex) -> Any:
        try:
            return self._metadata.storage_data[index]
        except KeyError:
            raise Corrupt(f"{index.fqn}: the index does not say where this item is stored") from None

    def _key(self, relative_path: str) -> str:
        key = self._keys.get(relative_path)
        if key is None:
            key = self._keys[relative_path] = _native.resolve_key(self._path_key, relative_path)
        return key

    def _sources(self, items: list[ReadItem], infos: dict[int, Any]) -> dict[int, Source | None]:
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
                key=self._key(info.relative_path),
                offset=info.offset,
                length=info.length,
                checksums=self._checksums(info),
                data_offset=data_offset,
                dtype=dtype,
                shape=shape,
                strides=_row_major(shape),
            )
        sources.update(self._foreign_sources(foreign, infos))
        return sources

    def _checksums(self, info: Any) -> bytes | None:
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
                ranges.append((self._key(info.relative_path), info.offset, info.offset + min(want, info.length)))
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
        name = item.storage_index.fqn
        dtype = getattr(torch, parsed.dtype)
        self._must_match_declared(item.storage_index, dtype, tuple(parsed.shape))
        last = sum((size - 1) * stride for size, stride in zip(parsed.shape, parsed.strides, strict=True))
        elements = 0 if 0 in parsed.shape else parsed.storage_offset + last + 1
        if parsed.data_length < elements * dtype.itemsize or parsed.data_offset + parsed.data_length > info.length:
            raise Corrupt(f"{name}: the stored archive holds too few bytes for its shape")
        return Source(
            key=self._key(info.relative_path),
            offset=info.offset,
            length=info.length,
            checksums=self._checksums(info),
            data_offset=parsed.data_offset,
            dtype=dtype,
            shape=tuple(parsed.shape),
            strides=tuple(parsed.strides),
            storage_offset=parsed.storage_offset,
        )

    def _must_match_declared(self, index: MetadataIndex, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        declared = self._declared(index)
        if (dtype, shape) != declared:
            raise Corrupt(f"{index.fqn}: stored as {dtype} {shape}, but the index says {declared[0]} {declared[1]}")

    def _safetensors_sources(self, items: list[ReadItem], infos: dict[int, Any]) -> dict[int, Source | None]:
        """torch gives every tensor of a safetensors file the offset of the file's header; names tell them apart."""
        sources: dict[int, Source | None] = {}
        headers: dict[tuple[str, int], tuple[int, dict[str, Any]]] = {}
        for item in items:
            info, name = infos[id(item)], item.storage_index.fqn
            key = self._key(info.relative_path)
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
            self._must_match_declared(item.storage_index, dtype, shape)
            sources[id(item)] = Source(
                key=key,
                offset=data_start + start,
                length=end - start,
                checksums=None,
                data_offset=0,
                dtype=dtype,
                shape=shape,
                strides=_row_major(shape),
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

    # -- what goes where

    def _tensor(self, item: ReadItem, source: Source, planner: LoadPlanner) -> None:
        target = planner.resolve_tensor(item).detach()
        name, lengths = item.storage_index.fqn, tuple(item.lengths)
        if tuple(target.size()) != lengths:
            raise ValueError(f"{name}: the tensor to load into is {tuple(target.size())}, the plan wants {lengths}")
        offsets = tuple(item.storage_offsets)
        if len(offsets) != len(source.shape) or any(
            offset < 0 or offset + length > size
            for offset, length, size in zip(offsets, lengths, source.shape, strict=True)
        ):
            raise ValueError(f"{name}: block {offsets}+{lengths} is outside the stored chunk {source.shape}")
        if 0 in lengths:
            self._steps.append(lambda: planner.commit_tensor(item, target))
            return
        run = _single_run(source, offsets, lengths)
        if run is not None and _is_direct(target, source.dtype):
            start = source.data_offset + run[0] * source.dtype.itemsize
            self._read(name, source, [(start, start + target.nbytes, target.data_ptr())])
            self._steps.append(lambda: planner.commit_tensor(item, target))
            return
        if source.is_contiguous:
            for block, rows in _row_blocks(target, offsets, source):
                self._buffered(name, source, block, rows)
        else:
            self._buffered_strided(name, source, offsets, lengths, target)
        self._steps.append(lambda: planner.commit_tensor(item, target))

    def _buffered(self, name: str, source: Source, block: torch.Tensor, rows: _Rows) -> None:
        """Fetch whole rows that cover `block` into the arena, then copy the block out of them."""
        itemsize = source.dtype.itemsize
        nbytes = (rows.end - rows.start) * itemsize
        memory = self._allocate(nbytes)
        start = source.data_offset + rows.start * itemsize
        self._read(name, source, [(start, start + nbytes, memory.data_ptr())])
        stored = memory.view(source.dtype).view(rows.shape)
        self._steps.append(lambda: _copy(block, narrow_tensor_by_index(stored, rows.offsets, block.size())))

    def _buffered_strided(
        self,
        name: str,
        source: Source,
        offsets: tuple[int, ...],
        lengths: tuple[int, ...],
        target: torch.Tensor,
    ) -> None:
        """A foreign tensor in another layout: fetch its whole storage."""
        last = sum((size - 1) * stride for size, stride in zip(source.shape, source.strides, strict=True))
        nbytes = (source.storage_offset + last + 1) * source.dtype.itemsize
        memory = self._allocate(nbytes)
        self._read(name, source, [(source.data_offset, source.data_offset + nbytes, memory.data_ptr())])
        elements = memory.view(source.dtype)
        first = elements.storage_offset() + source.storage_offset  # as_strided counts from the arena's start
        stored = elements.as_strided(source.shape, source.strides, first)
        self._steps.append(lambda: _copy(target, narrow_tensor_by_index(stored, offsets, lengths)))

    def _whole_item(self, item: ReadItem, info: Any, planner: LoadPlanner) -> None:
        """An object, a transformed stream, or a tensor that only torch can read: fetch all of it."""
        name = item.storage_index.fqn
        memory = self._allocate(info.length)
        if info.length:
            read = _Read(
                name,
                self._key(info.relative_path),
                info.offset,
                info.length,
                self._checksums(info),
                [(0, info.length, memory.data_ptr())],
            )
            self._reads.append(read)

        def load() -> None:
            stream: Any = io.BytesIO(ctypes.string_at(memory.data_ptr(), info.length))
            descriptors = getattr(info, "transform_descriptors", None)
            if descriptors:
                transformed = self._transforms.transform_load_stream(item, descriptors, stream)
                stream = io.BytesIO(transformed.read(-1))
            if item.type == LoadItemType.BYTE_IO:
                if self._weights_only:
                    _refuse_unsafe(name, stream)
                planner.load_bytes(item, stream)
                return
            stored = torch.load(stream, map_location="cpu", weights_only=True)
            self._must_match_declared(item.storage_index, stored.dtype, tuple(stored.size()))
            target = planner.resolve_tensor(item).detach()
            block = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
            if target.size() != block.size():
                raise ValueError(
                    f"{name}: the tensor to load into is {tuple(target.size())}, not {tuple(block.size())}"
                )
            _copy(target, block)
            planner.commit_tensor(item, target)

        self._steps.append(load)

    # -- moving bytes

    def _read(self, name: str, source: Source, pieces: list[tuple[int, int, int]]) -> None:
        last = self._reads[-1] if self._reads else None
        if last is not None and (last.key, last.offset, last.length) == (
            source.key,
            source.offset,
            source.length,
        ):
            last.pieces += pieces
        else:
            self._reads.append(_Read(name, source.key, source.offset, source.length, source.checksums, pieces))

    def _allocate(self, nbytes: int) -> torch.Tensor:
        """`nbytes` of the arena; when it is used up, first fetch and copy out what is in it."""
        used = -(-self._arena_used // ALIGNMENT) * ALIGNMENT
        if used + nbytes > len(self._arena):
            if used:
                self._flush()
                used = 0
            if nbytes > len(self._arena):
                pin = torch.cuda.is_available()
                self._arena = torch.empty(max(nbytes, ARENA_BYTES), dtype=torch.uint8, pin_memory=pin)
        self._arena_used = used + nbytes
        return self._arena[used : used + nbytes]

    def _flush(self) -> None:
        """Fetch everything noted so far, then run what waits for it."""
        reads, steps = self._reads, self._steps
        self._reads, self._steps, self._arena_used = [], [], 0
        if reads:
            self._client.download(
                self._bucket,
                [(read.name, read.key, read.offset, read.length, read.checksums, read.pieces) for read in reads],
                self._verify,
            )
        for step in steps:
            step()


@dataclass(frozen=True)
class _Rows:
    """A run of stored elements, seen as `shape`, in which the wanted block starts at `offsets`."""

    start: int
    end: int
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


def _row_blocks(target: torch.Tensor, offsets: tuple[int, ...], source: Source) -> Iterator[tuple[torch.Tensor, _Rows]]:
    """Cut the wanted block along its first dimension so that each piece's covering rows stay below `BLOCK_BYTES`.

    Yields each piece of `target` with the stored run that covers it. Single rows above the limit are cut along
    their next dimension, and so on.
    """
    yield from _cut(target, offsets, source.shape, 0, source.dtype.itemsize)


def _cut(
    target: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...], base: int, itemsize: int
) -> Iterator[tuple[torch.Tensor, _Rows]]:
    if not shape:
        yield target, _Rows(base, base + 1, (), ())
        return
    row = math.prod(shape[1:])
    rows_per_block = max(1, BLOCK_BYTES // (row * itemsize))
    if row * itemsize > BLOCK_BYTES:
        for number in range(target.shape[0]):
            start = base + (offsets[0] + number) * row
            yield from _cut(target[number], offsets[1:], shape[1:], start, itemsize)
        return
    for first in range(0, target.shape[0], rows_per_block):
        count = min(rows_per_block, target.shape[0] - first)
        start = base + (offsets[0] + first) * row
        rows = _Rows(start, start + count * row, (count, *shape[1:]), (0, *offsets[1:]))
        yield target.narrow(0, first, count), rows


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def _single_run(source: Source, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> tuple[int, int] | None:
    """The wanted block as one run of stored elements (start, end), or None if it is several."""
    if not source.is_contiguous:
        return None
    inner_whole = True
    for dim in reversed(range(len(lengths))):
        if not inner_whole and lengths[dim] != 1:
            return None
        if lengths[dim] != source.shape[dim]:
            inner_whole = False
    start = sum(offset * stride for offset, stride in zip(offsets, source.strides, strict=True))
    return start, start + math.prod(lengths)


def _is_direct(target: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether stored bytes can be written into the tensor's memory as they are."""
    return (
        target.is_cpu
        and target.layout is torch.strided
        and target.dtype == dtype
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
        and not target.is_quantized
        and type(target) in (torch.Tensor, torch.nn.Parameter)
    )


def _copy(target: torch.Tensor, stored: torch.Tensor) -> None:
    target.copy_(stored)


def _refuse_unsafe(name: str, stream: io.BytesIO) -> None:
    try:
        torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Corrupt(
            f"{name}: loading this object could run code from the checkpoint, so it is refused; if you trust the "
            f"checkpoint, use S3StorageReader(..., weights_only=False). torch says: {error}"
        ) from error
    finally:
        stream.seek(0)
