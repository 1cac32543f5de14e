"""What torchtitan refuses or leaves out on S3: the last checkpoint as Hugging Face files, and retention after it.

torchtitan saves and resumes on ``s3://`` by itself where s3dcp is installed and ``S3DCP_FSSPEC=1``. `on_s3` gives a
configuration a checkpoint manager that does the rest. Made for torchtitan 0.3.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict_saver import save
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools import filesystem

from ._dtypes import SAFETENSORS_NAMES
from ._huggingface.folder import INDEX_NAME, SHARDED_NAME, Folder
from ._ranks import this_rank, together
from .checkpoint_id import client_settings
from .errors import shown
from .file_system import split_path
from .fsspec import register
from .huggingface import S3HuggingFaceWriter, consolidate_safetensors_files_on_every_rank

__all__ = ["S3CheckpointManager", "export_safetensors", "on_s3"]

register()


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
                marks = (filesystem.join(folder, mark) for mark in (".metadata", INDEX_NAME))
                (complete if any(map(filesystem.isfile, marks)) else others).append((int(match[1]), folder))
        complete.sort()
        stale, kept = complete[: -self.keep_latest_k], complete[-self.keep_latest_k :]
        # What a killed save left behind a checkpoint that is kept; one ahead may be a save under way.
        stale += [each for each in others if kept and each < kept[0]]
        for _, folder in stale:
            self.purge_queue.put(folder)


def export_safetensors(state_dict: Mapping[str, Any], folder: str, files: Mapping[str, int] | None = None) -> None:
    """Save tensors as Hugging Face does: ``model-<n>-of-<n>.safetensors`` and, last, their index. All ranks call it.

    The state is saved to ``<folder>/sharded`` first, in whatever way it is sharded. Then ranks write files of whole
    tensors, and hold a few blocks of them at a time. An index of an export before is deleted first: it would name files
    of both.

    Args:
        state_dict: tensors by name, plain or sharded.
        folder: ``s3://bucket/folder``.
        files: the number of the file, from 1 on, of each tensor; None for one file.

    Raises:
        ValueError: `files` lacks a tensor, something is no tensor, safetensors has no name for a dtype, or `folder` is
            no S3 URI.
        Exception: what failed on another rank.
    """
    split_path(folder, "folder")
    settings = client_settings()
    sharded = f"{folder.rstrip('/')}/{SHARDED_NAME}"
    writer = S3HuggingFaceWriter(path=sharded, save_distributed=True, **{"region": None, **settings})
    model, shards = (Folder(writer.fs.client, path) for path in (folder, sharded))

    def begin() -> None:
        if this_rank() == 0:
            model.client.delete_objects(model.bucket, [model.key_of(INDEX_NAME)])
        for name, value in state_dict.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"state_dict: {shown(name)} is no tensor, and safetensors holds nothing else")
            if value.dtype not in SAFETENSORS_NAMES:
                raise ValueError(f"state_dict: {shown(name)}: safetensors has no name for {value.dtype}")

    together(begin)
    names = save(dict(state_dict), storage_writer=writer).state_dict_metadata
    if files is not None and (missing := sorted(name for name in names if name not in files)):
        raise ValueError(f"files: says nothing of {shown(missing[0])}, and {len(missing)} tensors in all")
    numbers = {name: files[name] if files is not None else 1 for name in sorted(names)}
    consolidate_safetensors_files_on_every_rank(sharded, folder, numbers, **settings)
    together(lambda: shards.client.remove(shards.bucket, shards.key) if this_rank() == 0 else None)
