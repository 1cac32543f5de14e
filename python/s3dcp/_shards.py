"""From a save plan to shard files: which item goes into which file, and each file's bytes into the native writer.

A plain CPU tensor goes up straight from its own memory, which the native writer keeps alive until the request is
torn down. Everything else (other devices, strided views, lazy conjugates) passes through a few reused staging
buffers, a bounded number of rows at a time. What is no plain tensor (sparse, quantised, subclasses) is serialised
with ``torch.save``, as torch's own writer does.
"""

from __future__ import annotations

import heapq
import io
import json
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
)
from torch.distributed.checkpoint.filesystem import (
    SerializationFormat,
    _StorageInfo,
    _StorageWriterTransforms,
)
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from . import _native
from ._dtypes import NATIVE, SAFETENSORS_NAMES, torch_name
from ._staging import Stager

_OBJECT = WriteItemType.BYTE_IO


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
        sizes = [(0, number) for number in range(thread_count)]
        for item in sorted(items, key=item_nbytes, reverse=True):
            size, number = heapq.heappop(sizes)
            groups[number].append(item)
            heapq.heappush(sizes, (size + max(item_nbytes(item), 1), number))

    files: list[FilePlan] = []
    for group in groups:
        objects = [item for item in group if item.type == _OBJECT]
        tensors = [item for item in group if item.type != _OBJECT]
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


class ShardFile:
    """One shard file on its way up.

    Args:
        client: the native client.
        bucket, key: where the file goes.
        relative_path: the file's name in the index.
        transforms: torch's stream extensions; with any, items are serialised through their streams.
        size_hint: bytes expected, from which the size of a part follows.
    """

    def __init__(
        self,
        client: _native.Client,
        bucket: str,
        key: str,
        relative_path: str,
        transforms: _StorageWriterTransforms,
        size_hint: int,
    ) -> None:
        self._relative_path = relative_path
        self._transforms = transforms
        self._native = client.shard_writer(bucket, key, size_hint)
        self._stager = Stager(self._native.part_size)

    def write(self, plan: FilePlan, planner: SavePlanner) -> list[WriteResult]:
        """Hand over every item of `plan`; bytes may still be on their way when this returns."""
        if self._transforms.extensions:
            if plan.safetensors:
                raise ValueError("_extensions: stream extensions do not work with serialization_format=SAFETENSORS")
            return [self._write_transformed(item, planner) for item in plan.items]
        if plan.safetensors:
            return self._write_safetensors(plan.items, planner)
        return [
            self._write_object(item, planner) if item.type == _OBJECT else self._write_tensor(item, planner)
            for item in plan.items
        ]

    def start_finishing(self) -> None:
        """Let the rest go up in the background."""
        self._stager.close()
        self._native.start_finishing()

    def wait(self) -> None:
        """Wait until the object is complete on S3; raises whatever failed."""
        self._native.wait()

    def abort(self) -> None:
        """Give the upload up; S3 keeps nothing of it. Does nothing once complete."""
        self._stager.close()
        self._native.abort()

    def _result(self, item: WriteItem, record: tuple[int, int, int | None, bytes]) -> WriteResult:
        offset, length, data_offset, checksums = record
        info = _StorageInfo(self._relative_path, offset, length)
        info.crc32 = checksums  # type: ignore[attr-defined]
        if data_offset is not None:
            info.data_offset = data_offset  # type: ignore[attr-defined]
        return WriteResult(index=item.index, size_in_bytes=length, storage_data=info)

    def _write_object(self, item: WriteItem, planner: SavePlanner) -> WriteResult:
        return self._result(item, self._native.raw(_resolve_object(item, planner).getvalue()))

    def _write_tensor(self, item: WriteItem, planner: SavePlanner) -> WriteResult:
        tensor = _resolve_tensor(item, planner)
        if not _is_plain(tensor):
            stream = io.BytesIO()
            torch.save(_alone(tensor), stream)
            return self._result(item, self._native.raw(stream.getvalue()))
        dtype, shape = torch_name(tensor.dtype), tuple(tensor.shape)
        if _is_direct(tensor):
            record = self._native.tensor(dtype, shape, tensor.data_ptr(), tensor.nbytes, tensor)
        else:
            self._native.begin_tensor(dtype, shape)
            record = self._write_staged(tensor)
        return self._result(item, record)

    def _write_staged(self, tensor: torch.Tensor) -> tuple[int, int, int | None, bytes]:
        for buffer, start, nbytes in self._stager.staged(tensor):
            self._native.write_staged(buffer, start, nbytes)
        return self._native.end()

    def _write_safetensors(self, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        items = sorted(items, key=lambda item: (-item.tensor_data.properties.dtype.itemsize, item.index.fqn))  # type: ignore[union-attr]
        self._native.raw(_safetensors_header(items))
        results = []
        for item in items:
            tensor = _resolve_tensor(item, planner)
            if not _is_plain(tensor):
                raise ValueError(f"{item.index.fqn}: safetensors holds plain dense tensors only, not {type(tensor)}")
            if _is_direct(tensor):
                record = self._native.raw_memory(tensor.data_ptr(), tensor.nbytes, tensor)
            else:
                self._native.begin_raw()
                record = self._write_staged(tensor)
            offset, length, _, checksums = record
            results.append(self._result(item, (offset, length, 0, checksums)))
        return results

    def _write_transformed(self, item: WriteItem, planner: SavePlanner) -> WriteResult:
        stream = io.BytesIO()
        transformed, descriptors = self._transforms.transform_save_stream(item, stream)
        if item.type == _OBJECT:
            data = _resolve_object(item, planner)
            transformed.write(data.getbuffer())
        else:
            torch.save(_alone(_resolve_tensor(item, planner)), transformed)
        transformed.close()
        result = self._result(item, self._native.raw(stream.getvalue()))
        # In the order in which readers undo them; torch's own order loses all but single extensions.
        result.storage_data.transform_descriptors = descriptors[::-1]
        return result


def _resolve_object(item: WriteItem, planner: SavePlanner) -> io.BytesIO:
    """The pickled object of `item`; warns of one that readers refuse unless made with ``weights_only=False``."""
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        raise ValueError(f"{item.index.fqn}: the planner gave {type(data).__name__} for an object, not BytesIO")
    data.seek(0)
    try:
        torch.load(data, weights_only=True)
    except Exception:
        warnings.warn(
            f"{item.index.fqn}: loading this object runs code from the checkpoint; it will need "
            "S3StorageReader(..., weights_only=False)",
            stacklevel=2,
        )
    return data


def _resolve_tensor(item: WriteItem, planner: SavePlanner) -> torch.Tensor:
    """The tensor of `item`, checked against the plan, which may be a cached one of an earlier save."""
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{item.index.fqn}: the planner gave {type(tensor).__name__} for a tensor")
    tensor = tensor.detach()
    planned = item.tensor_data
    assert planned is not None
    if tensor.dtype != planned.properties.dtype or tensor.size() != torch.Size(planned.chunk.sizes):
        raise ValueError(
            f"{item.index.fqn}: the tensor is {tensor.dtype} {tuple(tensor.size())}, but the save plan says "
            f"{planned.properties.dtype} {tuple(planned.chunk.sizes)}; a planner with enable_plan_caching=True "
            "must not be used for another state"
        )
    return tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    """A dense tensor whose values are all there is to it, of a dtype whose archives are made here."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype in NATIVE
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_meta
    )


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the CPU, copied where ``torch.save`` would also store memory beside it."""
    tensor = tensor.cpu()
    dense = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return tensor.clone() if dense and tensor.untyped_storage().size() != tensor.nbytes else tensor


def _is_direct(tensor: torch.Tensor) -> bool:
    """Whether the bytes in memory are the bytes to store."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _safetensors_header(items: list[WriteItem]) -> bytes:
    """The length-prefixed JSON header of a safetensors file holding `items` in this order."""
    sharding: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    position = 0
    for item in items:
        data = item.tensor_data
        assert data is not None
        name = SAFETENSORS_NAMES.get(data.properties.dtype)
        if name is None:
            raise ValueError(f"{item.index.fqn}: safetensors has no name for {data.properties.dtype}")
        end = position + item_nbytes(item)
        entries[item.index.fqn] = {
            "dtype": name,
            "shape": list(data.chunk.sizes),
            "data_offsets": [position, end],
        }
        sharding[item.index.fqn] = {"saved_offsets": list(data.chunk.offsets)}
        position = end
    metadata = {
        CUSTOM_METADATA_KEY: json.dumps(sharding),
        DCP_VERSION_KEY: str(HF_DCP_VERSION),
        FORMAT_KEY: FORMAT_VALUE,
    }
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header
