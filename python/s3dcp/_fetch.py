"""From a load plan to bytes in tensors.

Every tensor that is wanted has a `Source`: where its raw bytes lie in a shard file, in which dtype and shape. Stored
bytes of the tensor's own dtype go straight into the tensor's memory, as one run or as the runs of a block.
Everything else (other dtype, other device, odd layouts, objects) passes through the slots of a `Transfer`.

The most usual item by far, a whole plain tensor in memory of its own kind, has a path of its own: no object is made
for it, and torch's default planner is not asked for what it would answer.
"""

from __future__ import annotations

import ctypes
import io
import operator
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from . import _native
from ._blocks import Dim, Packed, apart, boxes, joined
from ._hooks import answers_like
from ._sources import Index, Layout, Source
from ._transfer import SLOT_BYTES, Batch, BlockRequest, Transfer
from ._trust import WAY_OUT, refusal
from .errors import Corrupt, shown

SLICE_BYTES = _native.SLICE_BYTES
# Shorter runs are copied by torch, from a slot, rather than one by one.
MIN_RUN_BYTES = 64
# What lies between two blocks is fetched along when it is less than this.
GAP_BYTES = 256 * 1024
# What a planner must not have overridden for its targets to be known without asking it.
PLANNER_HOOKS = ("resolve_tensor", "commit_tensor", "lookup_tensor", "transform_tensor")


class Fetch:
    """One rank's load.

    Args:
        client: the native client.
        bucket, path_key: where the index is; its relative paths start there.
        metadata: the index.
        transforms: torch's stream extensions.
        verify: compare with the checksums in the index.
        weights_only: refuse objects that ``torch.load(weights_only=True)`` refuses.
        is_part: the index may be that of one rank alone.
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
        is_part: bool = False,
    ) -> None:
        self._index = Index(client, bucket, path_key, metadata, verify, is_part)
        self._transforms = transforms
        self._weights_only = weights_only
        self._transfer = Transfer(client, bucket, verify)

    def expected_bytes(self, plan: LoadPlan) -> int:
        """About how many bytes the load will move."""
        return sum(self._index.wanted_bytes(item) for item in plan.items)

    def run(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        """Load every item of `plan`; returns when all bytes are in place and verified."""
        items = list(_in_file_order(plan.items, self._index.infos(plan.items)))
        layouts, foreign = self._index.judge(items, _state(planner))
        sources = self._index.foreign_sources(foreign)
        with self._transfer.downloads:
            for item, info, layout in self._own_tensors(items, layouts, planner):
                if layout is not None:
                    self._tensor(item, self._index.source(item.storage_index, info, layout), planner)
                elif item.type == LoadItemType.BYTE_IO or getattr(info, "transform_descriptors", None):
                    self._whole_item(item, info, planner)
            for (item, info), source in zip(foreign, sources, strict=True):
                if source is None:
                    self._whole_item(item, info, planner)
                else:
                    self._tensor(item, source, planner)
            self._transfer.finish()

    # -- what goes where

    def _own_tensors(
        self, items: list[tuple[ReadItem, Any]], layouts: list[Layout | None], planner: LoadPlanner
    ) -> Iterator[tuple[ReadItem, Any, Layout | None]]:
        """Note whole plain tensors that go straight into their targets; yields all other items with their entries."""
        index, transfer = self._index, self._transfer
        targets = _plain_targets(planner)
        contents = index.contents
        tensor_types = (torch.Tensor, torch.nn.Parameter)
        tensor = LoadItemType.TENSOR
        for (item, info), layout in zip(items, layouts, strict=True):
            name, lengths = item.storage_index.fqn, item.lengths
            target: Any = targets.get(item.dest_index.fqn)
            if layout is None or type(target) not in tensor_types:
                yield item, info, layout
                continue
            content: Any = contents.get(name)
            chunks: Any = getattr(content, "chunks", ())
            if not (
                item.type is tensor
                and target.shape == lengths
                and len(chunks) == 1
                and chunks[0].sizes == lengths
                and target.dtype is content.properties.dtype
                and not any(item.storage_offsets)
                and not any(item.dest_index.offset or ())
                and item.storage_index.offset in (None, chunks[0].offsets)
                and not getattr(info, "transform_descriptors", None)
                and not hasattr(target, "__get_tensor_shard__")
                and target.is_contiguous()
                and _is_direct(target)
            ):
                yield item, info, layout
                continue
            data_offset = info.data_offset
            nbytes = target.nbytes
            if not nbytes:
                transfer.keep(target)
                continue
            batch = transfer.direct
            batch.names.append(name)
            batch.keys.append(index.key(info.relative_path))
            batch.offsets.append(info.offset)
            batch.lengths.append(info.length)
            batch.checksums.append(index.checksums(info))
            batch.starts.append(data_offset)
            batch.ends.append(data_offset + nbytes)
            batch.addresses.append(target.data_ptr())
            batch.heads.append(layout.head if data_offset else None)
            transfer.keep(target)

    def _tensor(self, item: ReadItem, source: Source, planner: LoadPlanner) -> None:
        target = planner.resolve_tensor(item).detach()
        name, lengths = item.storage_index.fqn, tuple(item.lengths)
        if tuple(target.size()) != lengths:
            raise ValueError(
                f"{shown(name)}: the tensor to load into is {tuple(target.size())}, the plan wants {lengths}"
            )
        offsets = tuple(item.storage_offsets)
        if len(offsets) != len(source.shape) or any(
            offset < 0 or offset + length > size
            for offset, length, size in zip(offsets, lengths, source.shape, strict=True)
        ):
            raise ValueError(f"{shown(name)}: block {offsets}+{lengths} is outside the stored chunk {source.shape}")
        _refuse_repeated(target)
        if 0 in lengths:
            self._transfer.keep(target)
            self._transfer.at_last(lambda: planner.commit_tensor(item, target))
            return
        order = source.nesting()
        if order is None:
            self._whole_storage(name, source, offsets, target)
            self._transfer.then(lambda: planner.commit_tensor(item, target))
            return
        start = source.storage_offset + sum(map(operator.mul, offsets, source.strides))
        strides = tuple(source.strides[dim] for dim in order)
        block = target.permute(order)
        is_direct = target.dtype == source.dtype and type(target) is torch.Tensor and _is_direct(target)
        staged = False
        for part, first, steps in apart(block, start, strides, GAP_BYTES // source.dtype.itemsize):
            if not (is_direct and self._direct(name, source, part, first, steps)):
                self._staged(name, source, part, first, steps)
                staged = True
        after = self._transfer.then if staged else self._transfer.at_last
        after(lambda: planner.commit_tensor(item, target))

    def _direct(self, name: str, source: Source, block: torch.Tensor, start: int, strides: tuple[int, ...]) -> bool:
        """Read a block straight into its memory, if its runs are long enough for that."""
        itemsize = source.dtype.itemsize
        run, dims = joined(block.shape, strides, block.stride())
        if dims and (run * itemsize < MIN_RUN_BYTES or _overlap(run, dims)):
            return False
        begin = source.data_offset + start * itemsize
        end = begin + (run + sum((count - 1) * step for count, step, _ in dims)) * itemsize
        runs = None
        if dims:
            room = (run + sum((count - 1) * step for count, _, step in dims)) * itemsize
            scaled = [(count, stored * itemsize, step * itemsize) for count, stored, step in dims]
            runs = (run * itemsize, room, (0, 0), scaled)
        _add(self._transfer.direct, name, source, begin, end, block.data_ptr(), runs)
        self._transfer.keep(block)
        return True

    def _staged(self, name: str, source: Source, block: torch.Tensor, start: int, strides: tuple[int, ...]) -> None:
        """Read a block into slots, a piece at a time, and copy it out of them.

        Pieces end where slices do, so that no slice is fetched twice.
        """
        itemsize = source.dtype.itemsize
        packed = Packed(start, block.shape, strides)
        to_cut = SLICE_BYTES - (source.data_offset + start * itemsize) % SLICE_BYTES
        cuts = range(
            start + -(-to_cut // itemsize), packed.place(packed.count - 1) + 1, max(SLICE_BYTES // itemsize, 1)
        )
        for first, end in packed.pieces(max(SLOT_BYTES // itemsize, 1), cuts):
            nbytes = (end - first) * itemsize
            memory = self._transfer.stage(nbytes)
            at, last = packed.place(first), packed.place(end - 1)
            dims = [(count, stored * itemsize, step * itemsize) for count, stored, step in packed.dims]
            runs = (packed.run * itemsize, nbytes, ((at - start) * itemsize, first * itemsize), dims)
            begin, stop = source.data_offset + at * itemsize, source.data_offset + (last + 1) * itemsize
            _add(self._transfer.staged, name, source, begin, stop, memory.data_ptr(), runs if dims else None)
            stored, used = memory.view(source.dtype), 0
            for box in boxes(block, first, end):
                values = stored.narrow(0, used, box.numel()).view(box.shape)
                used += box.numel()
                # Detached, because torch refuses to write through a view of an inference tensor.
                self._transfer.then(partial(box.detach().copy_, values))

    def _whole_storage(self, name: str, source: Source, offsets: tuple[int, ...], target: torch.Tensor) -> None:
        """A foreign tensor whose elements overlap in the file: fetch its whole storage."""
        nbytes = source.elements * source.dtype.itemsize
        memory = self._transfer.stage(nbytes)
        begin = source.data_offset
        _add(self._transfer.staged, name, source, begin, begin + nbytes, memory.data_ptr())
        elements = memory.view(source.dtype)
        first = elements.storage_offset() + source.storage_offset  # as_strided counts from the slot's start
        stored = elements.as_strided(source.shape, source.strides, first)
        self._transfer.then(lambda: target.copy_(narrow_tensor_by_index(stored, offsets, target.size())))

    def _whole_item(self, item: ReadItem, info: Any, planner: LoadPlanner) -> None:
        """An object, a transformed stream, or a tensor that only torch can read: fetch all of it."""
        name = item.storage_index.fqn
        if info.length > SLOT_BYTES:
            self._index.must_be_in_file(name, info)
        memory = self._transfer.stage(info.length)
        if info.length:
            self._transfer.staged.add(
                name,
                self._index.key(info.relative_path),
                info.offset,
                info.length,
                self._index.checksums(info),
                0,
                info.length,
                memory.data_ptr(),
            )

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
            try:
                stored = torch.load(stream, map_location="cpu", weights_only=True)
            except Exception as error:
                raise Corrupt(
                    f"{name}: torch cannot load this tensor (if it is of a class that you trust, name that to "
                    f"torch.serialization.safe_globals): {error}"
                ) from error
            if not isinstance(stored, torch.Tensor):
                raise Corrupt(f"{name}: stored is a {type(stored).__name__}, but the index says a tensor")
            self._index.must_match_declared(item.storage_index, tuple(stored.size()))
            target = planner.resolve_tensor(item).detach()
            block = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths)
            if target.size() != block.size():
                raise ValueError(
                    f"{shown(name)}: the tensor to load into is {tuple(target.size())}, not {tuple(block.size())}"
                )
            target.copy_(block)
            planner.commit_tensor(item, target)

        self._transfer.then(load)


def _add(
    batch: Batch, name: str, source: Source, start: int, end: int, address: int, block: BlockRequest | None = None
) -> None:
    """One more row: bytes `start` to `end` of the item that holds `source`."""
    batch.add(name, source.key, source.offset, source.length, source.checksums, start, end, address, block, source.head)


def _in_file_order(items: list[ReadItem], infos: list[Any]) -> Iterator[tuple[ReadItem, Any]]:
    """Items with their entries, file by file and from front to back."""
    files: dict[str, list[int]] = {}
    for number, info in enumerate(infos):
        files.setdefault(info.relative_path, []).append(number)
    for _, numbers in sorted(files.items()):
        offsets = [infos[number].offset for number in numbers]
        if not all(map(operator.le, offsets, islice(offsets, 1, None))):
            numbers.sort(key=lambda number: infos[number].offset)
        for number in numbers:
            yield items[number], infos[number]


def _state(planner: LoadPlanner) -> dict[str, Any]:
    """What a load wants, by name, where `planner` shows it as torch's default planner does."""
    state = getattr(planner, "state_dict", None)
    return state if isinstance(state, dict) else {}


def _plain_targets(planner: LoadPlanner) -> dict[str, Any]:
    """The state by name, where `planner` answers with what is in it, as torch's default planner does; else nothing."""
    if not answers_like(DefaultLoadPlanner, planner, PLANNER_HOOKS):
        return {}
    state = planner.state_dict  # type: ignore[attr-defined]
    return state if type(state) is dict else {}


def _is_direct(target: torch.Tensor) -> bool:
    """Whether elements can be written into the tensor's memory as they are."""
    return (
        target.is_cpu
        and target.layout is torch.strided
        and not target.is_conj()
        and not target.is_neg()
        and not target.is_quantized
        and _has_memory(target)
    )


def _has_memory(target: torch.Tensor) -> bool:
    """Whether the elements are where the tensor says: those of ``torch.func`` and functionalisation wrap others."""
    try:
        return target.data_ptr() != 0 or target.numel() == 0
    except RuntimeError:
        return False


def _overlap(run: int, dims: list[Dim]) -> bool:
    """Whether runs of a block share memory, where it matters which is written last."""
    extent = run
    for count, _, step in sorted(dims, key=operator.itemgetter(2)):
        if step < extent:
            return True
        extent += (count - 1) * step
    return False


def _refuse_repeated(target: torch.Tensor) -> None:
    """Let torch refuse a tensor that repeats elements, as an expanded one does: pieces of it might not be seen to.

    Raises:
        RuntimeError: torch's own.
    """
    if target.layout is torch.strided and any(
        step == 0 and size > 1 for size, step in zip(target.shape, target.stride(), strict=True)
    ):
        target.copy_(target.new_empty(()).expand(target.shape))


def _refuse_unsafe(name: str, stream: io.BytesIO) -> None:
    error = refusal(stream)
    if error is not None:
        raise Corrupt(
            f"{name}: loading this object could run code from the checkpoint, so it is refused; use {WAY_OUT}. torch "
            f"says: {error}"
        ) from error
