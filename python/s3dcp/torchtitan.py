"""What torchtitan refuses or leaves out on S3: the last checkpoint as Hugging Face files, and retention after it.

torchtitan saves and resumes on ``s3://`` by itself where s3dcp is installed and ``S3DCP_FSSPEC=1``. `on_s3` gives a
configuration a checkpoint manager that does the rest. Made for torchtitan 0.3.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools import filesystem

from . import _native
from ._dtypes import SAFETENSORS_NAMES
from .checkpoint_id import storage_for
from .errors import shown
from .file_system import ObjectWriter, split_path
from .fsspec import register

__all__ = ["S3CheckpointManager", "export_safetensors", "on_s3"]

register()

# So much of an export is in memory at once, or one tensor if that is larger.
_BATCH_BYTES = 512 * 1024 * 1024
_INDEX = "model.safetensors.index.json"


def on_s3(config: Any) -> Any:
    """A configuration of torchtitan's trainer, with a checkpoint manager that knows S3; for a ``--config`` function.

    Args:
        config: ``Trainer.Config``; its ``checkpoint`` becomes an `S3CheckpointManager.Config` with the same values.

    Raises:
        ValueError: its ``checkpoint`` is of another kind than torchtitan's ``CheckpointManager.Config``.
    """
    checkpoint = config.checkpoint
    if type(checkpoint) is not CheckpointManager.Config:
        raise ValueError(f"config.checkpoint={checkpoint!r}: must be a CheckpointManager.Config")
    values = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    config.checkpoint = S3CheckpointManager.Config(**values)
    return config


class S3CheckpointManager(CheckpointManager):  # type: ignore[misc]
    """torchtitan's ``CheckpointManager`` for a ``folder`` on S3.

    ``last_save_in_hf`` works there too, and ``keep_latest_k`` counts complete checkpoints alone, also after the last
    step, where torchtitan's own does not look.
    """

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):  # type: ignore[misc]
        """The fields of torchtitan's."""

        def __post_init__(self) -> None:
            config: Any = self
            exports = config.last_save_in_hf and config.folder.startswith("s3://")
            if exports and not config.last_save_model_only:
                raise ValueError("last_save_in_hf requires last_save_model_only=True.")
            if exports:
                config.last_save_in_hf = False  # which torchtitan refuses with any remote folder
            CheckpointManager.Config.__post_init__(self)
            config.last_save_in_hf = config.last_save_in_hf or exports

    def dcp_save(
        self,
        state_dict: dict[str, Any],
        checkpoint_id: str,
        async_mode: Any,
        enable_garbage_collection: bool = False,
        to_hf: bool = False,
    ) -> Any:
        """As torchtitan's; with `to_hf` on S3 by `export_safetensors`."""
        if not (to_hf and checkpoint_id.startswith("s3://")):
            return super().dcp_save(state_dict, checkpoint_id, async_mode, enable_garbage_collection, to_hf)
        adapter = self.sd_adapter
        export_safetensors(adapter.to_hf(state_dict), checkpoint_id, adapter.fqn_to_index_mapping)
        return None

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        saved: bool = super()._save(curr_step, last_step)
        if saved and last_step:
            self._purge_stale_checkpoints()
        return saved

    def _purge_stale_checkpoints(self) -> None:
        if not self._should_purge():
            return
        complete: list[tuple[int, str]] = []
        others: list[tuple[int, str]] = []
        for name in filesystem.listdir(self.folder):
            if match := re.search(r"step-(\d+)", name):
                folder = filesystem.join(self.folder, name)
                marks = (filesystem.join(folder, mark) for mark in (".metadata", _INDEX))
                (complete if any(map(filesystem.isfile, marks)) else others).append((int(match[1]), folder))
        complete.sort()
        stale, kept = complete[: -self.keep_latest_k], complete[-self.keep_latest_k :]
        # What a killed save left behind a checkpoint that is kept; one ahead may be a save under way.
        stale += [each for each in others if kept and each < kept[0]]
        for _, folder in stale:
            self.purge_queue.put(folder)


def export_safetensors(state_dict: Mapping[str, Any], folder: str, files: Mapping[str, int] | None = None) -> None:
    """Save tensors as Hugging Face does: ``model-<n>-of-<n>.safetensors`` and, last, their index. All ranks call it.

    The state is saved to ``<folder>/sharded`` first, in whatever way it is sharded. Then ranks write one file each, and
    hold a few tensors of it at a time. An index of an export before is deleted first: it would name files of both.

    Args:
        state_dict: tensors by name, plain or sharded.
        folder: ``s3://bucket/folder``.
        files: the number of the file, from 1 on, of each tensor; None for one file.

    Raises:
        ValueError: `files` lacks a tensor, safetensors has no name for its dtype, or `folder` is no S3 URI.
        RuntimeError: another rank failed.
    """
    bucket, key = split_path(folder, "folder")
    sharded = f"{folder.rstrip('/')}/sharded"
    writer = storage_for(sharded, False)
    client: _native.Client = writer.fs.client
    save(dict(state_dict), storage_writer=writer)
    plan: dict[str, list[str]] = {}
    metadata: Metadata = storage_for(sharded, True).read_metadata()
    is_first = not dist.is_initialized() or dist.get_rank() == 0

    def hide_what_is_there() -> None:
        if is_first:
            client.delete_objects(bucket, [_native.join_key(key, _INDEX)])

    def write_files() -> None:
        plan.update(_plan(metadata, files))
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        for number, (name, tensors) in enumerate(plan.items()):
            if number % ranks == rank:
                _write_file(client, bucket, _native.join_key(key, name), tensors, metadata, sharded)

    def write_index() -> None:
        if is_first:
            weight_map = {tensor: name for name, tensors in plan.items() for tensor in tensors}
            total = sum(_nbytes(metadata.state_dict_metadata[tensor]) for tensor in weight_map)
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            with ObjectWriter(client, bucket, _native.join_key(key, _INDEX)) as stream:
                stream.write(json.dumps(index, indent=2).encode())
            client.remove(bucket, _native.join_key(key, "sharded"))

    for step in (hide_what_is_there, write_files, write_index):
        _on_all_ranks(step)


def _plan(metadata: Metadata, files: Mapping[str, int] | None) -> dict[str, list[str]]:
    """The tensors of each file, by its name."""
    names = sorted(metadata.state_dict_metadata)
    if files is not None and (missing := [name for name in names if name not in files]):
        raise ValueError(f"files: says nothing of {shown(missing[0])}, and {len(missing)} tensors in all")
    numbers = {name: files[name] if files is not None else 1 for name in names}
    last = max(numbers.values(), default=1)
    plan: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (numbers[name], name)):
        plan.setdefault(f"model-{numbers[name]:05d}-of-{last:05d}.safetensors", []).append(name)
    return plan


def _write_file(
    client: _native.Client, bucket: str, key: str, names: list[str], metadata: Metadata, sharded: str
) -> None:
    writer = client.object_writer(bucket, key)
    try:
        writer.raw(_header({name: _tensor(metadata, name) for name in names}))
        for batch in _batches(names, metadata):
            tensors = {}
            for name in batch:
                entry = _tensor(metadata, name)
                tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="cpu")
            load(tensors, storage_reader=storage_for(sharded, True), no_dist=True)
            for tensor in tensors.values():
                if tensor.nbytes:
                    writer.raw_memory(tensor.data_ptr(), tensor.nbytes, tensor.untyped_storage())
        writer.start_finishing()
        writer.wait()
    except BaseException:
        writer.abort()
        raise


def _tensor(metadata: Metadata, name: str) -> TensorStorageMetadata:
    entry = metadata.state_dict_metadata[name]
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"state_dict: {shown(name)} is no tensor, and safetensors holds nothing else")
    if entry.properties.dtype not in SAFETENSORS_NAMES:
        raise ValueError(f"state_dict: {shown(name)}: safetensors has no name for {entry.properties.dtype}")
    return entry


def _nbytes(entry: Any) -> int:
    return int(entry.size.numel()) * int(entry.properties.dtype.itemsize)


def _header(tensors: dict[str, TensorStorageMetadata]) -> bytes:
    """The length-prefixed JSON header of a safetensors file with these tensors in order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, entry in tensors.items():
        end = position + _nbytes(entry)
        entries[name] = {
            "dtype": SAFETENSORS_NAMES[entry.properties.dtype],
            "shape": list(entry.size),
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _batches(names: list[str], metadata: Metadata) -> Iterator[list[str]]:
    batch: list[str] = []
    nbytes = 0
    for name in names:
        size = _nbytes(metadata.state_dict_metadata[name])
        if batch and nbytes + size > _BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(name)
        nbytes += size
    if batch:
        yield batch


def _on_all_ranks(step: Callable[[], None]) -> None:
    """Do `step` on every rank; where it fails on one, it fails on all."""
    error: Exception | None = None
    try:
        step()
    except Exception as raised:
        error = raised
    told = [None if error is None else str(error)]
    if dist.is_initialized():
        mine, told = told[0], [None] * dist.get_world_size()
        dist.all_gather_object(told, mine)
    if error is not None:
        raise error
    for rank, text in enumerate(told):
        if text is not None:
            raise RuntimeError(f"rank {rank} failed: {text}")
