"""A checkpoint of many files into one of ``torch.save``, and back, on S3 and on local disks.

These are the functions of ``torch.distributed.checkpoint.format_utils``, whose paths may begin with ``s3://`` here. How
S3 is reached is what `s3dcp.configure` and the ``S3DCP_*`` variables say.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import _save_state_dict

from ._remote import is_on_s3
from .checkpoint import S3Checkpoint
from .checkpoint_id import client_settings, storage_for

__all__ = ["dcp_to_torch_save", "torch_save_to_dcp"]

Path = str | os.PathLike[str]


def dcp_to_torch_save(dcp_checkpoint_dir: Path, torch_save_path: Path) -> None:
    """Write all of a distributed checkpoint into one file, which ``torch.load`` reads.

    One process needs memory for all of it. Where the write fails, what was at an S3 URI before stays.

    Args:
        dcp_checkpoint_dir: the checkpoint.
        torch_save_path: the file.

    Raises:
        NotFound: there is no checkpoint at an S3 URI.
        ConfigError: pathlib took a slash from an S3 URI.
    """
    state: dict[str, Any] = {}
    reader = (
        storage_for(dcp_checkpoint_dir, True)
        if is_on_s3(dcp_checkpoint_dir, "dcp_checkpoint_dir")
        else FileSystemReader(dcp_checkpoint_dir)
    )
    _load_state_dict(state, storage_reader=reader, planner=_EmptyStateDictLoadPlanner(), no_dist=True)  # type: ignore[no-untyped-call]
    if is_on_s3(torch_save_path, "torch_save_path"):
        with _checkpoint().writer(torch_save_path) as writer:
            torch.save(state, writer)  # type: ignore[arg-type]
    else:
        torch.save(state, torch_save_path)


def torch_save_to_dcp(torch_save_path: Path, dcp_checkpoint_dir: Path, *, weights_only: bool = True) -> None:
    """Write what is in a file of ``torch.save`` as a distributed checkpoint.

    One process needs memory for all of it.

    Args:
        torch_save_path: the file.
        dcp_checkpoint_dir: the checkpoint.
        weights_only: as for ``torch.load``; False, as torch's own function has it, runs whatever code is in the file.

    Raises:
        NotFound: there is no file at an S3 URI.
        ConfigError: pathlib took a slash from an S3 URI.
    """
    if is_on_s3(torch_save_path, "torch_save_path"):
        with _checkpoint().reader(torch_save_path) as reader:
            state = torch.load(reader, map_location="cpu", weights_only=weights_only)
    else:
        state = torch.load(torch_save_path, map_location="cpu", weights_only=weights_only)
    writer = (
        storage_for(dcp_checkpoint_dir, False)
        if is_on_s3(dcp_checkpoint_dir, "dcp_checkpoint_dir")
        else FileSystemWriter(dcp_checkpoint_dir)
    )
    _save_state_dict(state, storage_writer=writer, no_dist=True)


def _checkpoint() -> S3Checkpoint:
    settings = client_settings()
    return S3Checkpoint(settings.get("region"), settings.get("endpoint_url"), settings.get("s3client_config"))
