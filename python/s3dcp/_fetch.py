"""From a load plan to bytes in tensors.

Every tensor that is wanted has a `Source`: where its raw bytes lie in a shard file, in which dtype and shape. A
wanted block that is one run of stored bytes of the tensor's own dtype goes straight into the tensor's memory.
Everything else (other dtype, other layout, other device, blocks out of the middle of rows, objects) passes through
a bounded arena, some rows at a time. All fetches of a round run at once, over all files.
"""

from __future__ import annotations

import ctypes
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from . import _native
from ._sources import Index, Source
from .errors import Corrupt

ARENA_BYTES = 64 * 1024 * 1024
BLOCK_BYTES = 32 * 1024 * 1024
ALIGNMENT = 64


@dataclass
class _Read:
    """Bytes of one item and where they go."""

    name: str
    key: str
    offset: int
    length: int
    checksums: bytes | None
    pieces: list[tuple[int, int, int]]  # start and end within the item, address


Step = Callable[[], object]


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
        self._index = Index(client, bucket, path_key, metadata, verify)
        self._transforms = transforms
        self._verify = verify
        self._weights_only = weights_only
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._arena_used = 0
        self._reads: list[_Read] = []
        self._steps: list[Step] = []

    def expected_bytes(self, plan: LoadPlan) -> int:
        """About how many bytes the load will move."""
        return sum(self._index.wanted_bytes(item) for item in plan.items)

    def run(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Load every item of `plan`; returns when all bytes are in place and verified."""
        infos = {id(item): self._index.info(item.storage_index) for item in plan.items}
        items = sorted(plan.items, key=lambda item: (infos[id(item)].relative_path, infos[id(item)].offset))
        tensors = []
        for item in items:
            info = infos[id(item)]
            if item.type == LoadItemType.BYTE_IO or getattr(info, "transform_descriptors", None):
                self._whole_item(item, info, planner)
            else:
                tensors.append(item)
        sources = self._index.sources(tensors, infos)
        for item in tensors:
            source = sources[id(item)]
            if source is None:
                self._whole_item(item, infos[id(item)], planner)
            else:
                self._tensor(item, source, planner)
        self._flush()

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
            for block, rows in _row_blocks(target, offsets, source.shape, 0, source.dtype.itemsize):
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
        self._steps.append(lambda: block.copy_(narrow_tensor_by_index(stored, rows.offsets, block.size())))

    def _buffered_strided(
        self,
        name: str,
        source: Source,
        offsets: tuple[int, ...],
        lengths: tuple[int, ...],
        target: torch.Tensor,
    ) -> None:
        """A foreign tensor in another layout: fetch its whole storage."""
        nbytes = source.elements * source.dtype.itemsize
        memory = self._allocate(nbytes)
        self._read(name, source, [(source.data_offset, source.data_offset + nbytes, memory.data_ptr())])
        elements = memory.view(source.dtype)
        first = elements.storage_offset() + source.storage_offset  # as_strided counts from the arena's start
        stored = elements.as_strided(source.shape, source.strides, first)
        self._steps.append(lambda: target.copy_(narrow_tensor_by_index(stored, offsets, lengths)))

    def _whole_item(self, item: ReadItem, info: Any, planner: LoadPlanner) -> None:
        """An object, a transformed stream, or a tensor that only torch can read: fetch all of it."""
        name = item.storage_index.fqn
        memory = self._allocate(info.length)
        if info.length:
            read = _Read(
                name,
                self._index.key(info.relative_path),
                info.offset,
                info.length,
                self._index.checksums(info),
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
            self._index.must_match_declared(item.storage_index, stored.dtype, tuple(stored.size()))
            target = planner.resolve_tensor(item).detach()
            block = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
            if target.size() != block.size():
                raise ValueError(
                    f"{name}: the tensor to load into is {tuple(target.size())}, not {tuple(block.size())}"
                )
            target.copy_(block)
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


def _row_blocks(
    target: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...], base: int, itemsize: int
) -> Iterator[tuple[torch.Tensor, _Rows]]:
    """Cut the wanted block along its first dimension so that each piece's covering rows stay below `BLOCK_BYTES`.

    Yields each piece of `target` with the stored run that covers it; the block starts at `offsets` of a stored
    tensor of `shape`, whose first element is number `base`. Single rows above the limit are cut along their next
    dimension, and so on.
    """
    if not shape:
        yield target, _Rows(base, base + 1, (), ())
        return
    row = math.prod(shape[1:])
    rows_per_block = max(1, BLOCK_BYTES // (row * itemsize))
    if row * itemsize > BLOCK_BYTES:
        for number in range(target.shape[0]):
            start = base + (offsets[0] + number) * row
            yield from _row_blocks(target[number], offsets[1:], shape[1:], start, itemsize)
        return
    for first in range(0, target.shape[0], rows_per_block):
        count = min(rows_per_block, target.shape[0] - first)
        start = base + (offsets[0] + first) * row
        rows = _Rows(start, start + count * row, (count, *shape[1:]), (0, *offsets[1:]))
        yield target.narrow(0, first, count), rows


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
