"""The items of one shard file into the native writer.

A plain CPU tensor goes up straight from its own memory, which the native writer keeps alive until the request is
torn down; many small ones are handed over in one call. Everything else (other devices, strided views, lazy
conjugates) passes through a few reused staging buffers, a bounded number of rows at a time. What is no plain tensor
(sparse, quantised, subclasses) is serialised with ``torch.save``, as torch's own writer does.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from .. import _native
from .._compat import WriterTransforms
from .._dtypes import NATIVE
from .._gc import GcPause
from .._safetensors import file_header, sharding_metadata
from .._tensors import PLAIN_TENSORS, is_direct, is_plain
from ..errors import shown
from .files import FilePlan
from .resolve import Resolver, warn_if_refused
from .staging import Stager

logger = logging.getLogger(__name__)

_OBJECT = WriteItemType.BYTE_IO
# A batch is handed over when it has so many tensors or bytes: what a planner made for the save alone is let go then.
BATCH_TENSORS = 1024
BATCH_BYTES = 4 * 1024 * 1024
# Below so many bytes a copy costs less than staging.
_COPY_BELOW = 4096
# A tensor in a batch: its dtype, shape, address and what keeps its memory.
Whole = tuple[str, torch.Size, int, torch.UntypedStorage]


class ShardFile:
    """One shard file on its way up.

    Args:
        native: its writer.
        transforms: torch's stream extensions; with any, items are serialised through their streams.
        relative_path: what the index calls the file; None for what its writer says.
        safetensors_metadata: what a safetensors header says beside torch's own.
    """

    def __init__(
        self,
        native: _native.ShardWriter,
        transforms: WriterTransforms,
        relative_path: str | None = None,
        safetensors_metadata: dict[str, str] | None = None,
    ) -> None:
        self._native = native
        self._relative_path = relative_path or native.relative_path
        self._safetensors_metadata = safetensors_metadata or {}
        self._transforms = transforms
        self._stager = Stager(native.part_size)

    def write(self, plan: FilePlan, resolver: Resolver) -> list[WriteResult]:
        """Hand over every item of `plan`; bytes may still be on their way when this returns."""
        if self._transforms.extensions:
            if plan.safetensors:
                raise ValueError("_extensions: stream extensions do not work with serialization_format=SAFETENSORS")
            return [self._write_transformed(item, resolver) for item in plan.items]
        if plan.safetensors:
            return self._write_safetensors(plan.items, resolver)
        return self._write_archives(plan.items, resolver)

    def start_finishing(self) -> None:
        """Let the rest go up in the background."""
        self._stager.close()
        self._native.start_finishing()

    def wait(self) -> None:
        """Wait until the object is complete on S3; raises whatever failed."""
        self._native.wait()

    def let_go(self) -> None:
        """Let go of what staging holds."""
        self._stager.close()

    def _result(self, item: WriteItem, record: _native.ItemRecord, dtype: torch.dtype | None = None) -> WriteResult:
        return write_result(item, self._relative_path, record, dtype)

    def _write_archives(self, items: list[WriteItem], resolver: Resolver) -> list[WriteResult]:
        """One archive of torch per item, in order."""
        records: list[_native.ItemRecord] = []
        batch: list[Whole] = []
        batch_bytes = 0
        dtypes: list[torch.dtype | None] = []
        for item in items:
            tensor = None if item.type is _OBJECT else resolver.tensor(item)
            dtypes.append(None if tensor is None else tensor.dtype)
            if tensor is not None and (memory := direct(tensor)) is not None:
                batch.append(whole(memory))
                batch_bytes += memory.nbytes
                if len(batch) < BATCH_TENSORS and batch_bytes < BATCH_BYTES:
                    continue
                tensor = None
            records += self._native.tensors(batch)
            batch, batch_bytes = [], 0
            if item.type is _OBJECT:
                records.append(self._native.raw(resolver.object(item).getvalue()))
            elif tensor is not None:
                records.append(self._write_indirect(item.index.fqn, tensor.detach()))
        records += self._native.tensors(batch)
        with GcPause(old_at_once=True):
            return [self._result(*one) for one in zip(items, records, dtypes, strict=True)]

    def _write_indirect(self, name: str, tensor: torch.Tensor) -> _native.ItemRecord:
        if is_plain(tensor) and tensor.dtype in NATIVE:
            self._native.begin_tensor(NATIVE[tensor.dtype], tensor.shape)
            return self._write_staged(tensor)
        stream = io.BytesIO()
        _save(name, tensor, stream)
        return self._native.raw(stream.getvalue())

    def _write_staged(self, tensor: torch.Tensor) -> _native.ItemRecord:
        for buffer, start, nbytes in self._stager.staged(tensor):
            self._native.write_staged(buffer, start, nbytes)
        return self._native.end()

    def _write_safetensors(self, items: list[WriteItem], resolver: Resolver) -> list[WriteResult]:
        items = sorted(items, key=lambda item: (-item.tensor_data.properties.dtype.itemsize, item.index.fqn))  # type: ignore[union-attr]
        self._native.raw(_safetensors_header(items, self._safetensors_metadata))
        results = []
        for item in items:
            tensor = resolver.tensor(item).detach()
            if not is_plain(tensor):
                raise ValueError(
                    f"{shown(item.index.fqn)}: safetensors holds plain dense tensors only, not {type(tensor)}"
                )
            planned = item.tensor_data.properties.dtype  # type: ignore[union-attr]
            if tensor.dtype != planned:
                raise ValueError(
                    f"{shown(item.index.fqn)}: the planner gave {tensor.dtype} for what it planned as {planned}, which "
                    "serialization_format=SAFETENSORS cannot store: its header comes first"
                )
            values_of = (NATIVE[tensor.dtype], tensor.shape) if tensor.dtype in NATIVE else None
            if is_direct(tensor) and tensor.is_contiguous():
                record = self._native.raw_memory(tensor.data_ptr(), tensor.nbytes, tensor, values_of)
            else:
                self._native.begin_raw(values_of)
                record = self._write_staged(tensor)
            results.append(self._result(item, record))
        return results

    def _write_transformed(self, item: WriteItem, resolver: Resolver) -> WriteResult:
        stream = io.BytesIO()
        transformed, descriptors = self._transforms.transform_save_stream(item, stream)
        if item.type == _OBJECT:
            transformed.write(resolver.object(item).getbuffer())
        else:
            _save(item.index.fqn, resolver.tensor(item).detach(), transformed)
        transformed.close()
        result = self._result(item, self._native.raw(stream.getvalue()))
        # In the order in which readers undo them; torch's own order loses all but single extensions.
        result.storage_data.transform_descriptors = descriptors[::-1]
        return result


class Record(Protocol):
    """Where an item lies in its file, its checksums, and what it is."""

    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def data_offset(self) -> int | None: ...
    @property
    def checksums(self) -> bytes: ...
    @property
    def hash(self) -> bytes | None: ...


def write_result(item: WriteItem, relative_path: str, record: Record, dtype: torch.dtype | None = None) -> WriteResult:
    """What becomes of `item`, a tensor stored as `dtype`.

    A dtype other than the plan's, and with it the index's, is left to the archive to tell.
    """
    length, data_offset = record.length, record.data_offset
    info = _StorageInfo(relative_path, record.offset, length)
    info.crc32 = record.checksums  # type: ignore[attr-defined]
    if data_offset is not None and dtype in (None, item.tensor_data.properties.dtype):  # type: ignore[union-attr]
        info.data_offset = data_offset  # type: ignore[attr-defined]
    if (hash := record.hash) is not None:
        info.xxh3 = hash  # type: ignore[attr-defined]
    # As its own constructor does, which takes four times as long because the class is frozen.
    result = WriteResult.__new__(WriteResult)
    result.__dict__.update(index=item.index, size_in_bytes=length, storage_data=info)
    return result


def discard(save: _native.Save, bucket: str, relative_paths: Iterable[str] = ()) -> None:
    """Give up a save that no index can name: abort its uploads, delete its files and those of `relative_paths`.

    It raises nothing of its own and takes half a minute at most, on a dead service too.
    """
    left = save.discard(list(relative_paths))
    if left:
        logger.warning(
            "%d shard files of a save that failed may stay, s3://%s/%s first: s3dcp prune finds them",
            len(left),
            bucket,
            left[0],
        )


def direct(tensor: torch.Tensor) -> torch.Tensor | None:
    """A tensor whose memory is what an archive of `tensor` stores: itself, or a copy of a small one."""
    if tensor.dtype not in NATIVE or not is_plain(tensor):
        return None
    if is_direct(tensor) and tensor.is_contiguous():
        return tensor
    if tensor.nbytes >= _COPY_BELOW:
        return None
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def whole(tensor: torch.Tensor) -> Whole:
    """A `direct` tensor as a batch has it: with its storage and not itself, which may be given another one."""
    return NATIVE[tensor.dtype], tensor.shape, tensor.data_ptr(), tensor.untyped_storage()


def _save(name: str, tensor: torch.Tensor, stream: Any) -> None:
    """Have torch save `tensor`; warns of one that readers refuse."""
    tensor = _alone(tensor)
    torch.save(tensor, stream)
    if type(tensor) not in PLAIN_TENSORS:
        alone = io.BytesIO()
        torch.save(tensor, alone)
        warn_if_refused(name, "tensor", alone)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the CPU, copied where ``torch.save`` would also store memory beside it."""
    tensor = tensor.cpu()
    dense = type(tensor) in PLAIN_TENSORS and tensor.layout is torch.strided
    return tensor.clone() if dense and tensor.untyped_storage().size() != tensor.nbytes else tensor


def _safetensors_header(items: list[WriteItem], more: dict[str, str]) -> bytes:
    """The length-prefixed JSON header of a safetensors file holding `items` in this order."""
    offsets, tensors = {}, []
    for item in items:
        data = item.tensor_data
        assert data is not None
        offsets[item.index.fqn] = list(data.chunk.offsets)
        tensors.append((item.index.fqn, data.properties.dtype, data.chunk.sizes))
    return file_header(tensors, {**sharding_metadata(offsets), **more})
