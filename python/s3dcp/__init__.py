"""PyTorch distributed checkpoints on S3, with a Rust core.

`S3StorageWriter` and `S3StorageReader` plug into ``torch.distributed.checkpoint``; prefix strategies spread the
shard files of a job over key prefixes. Importing this package does not import torch: the storage classes do so
when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from s3dcp_autoload import register

from . import s3_prefix_strategy
from ._native import __version__
from .checkpoint_id import configure
from .client_config import S3ClientConfig
from .errors import (
    AlreadyExists,
    ConfigError,
    Conflict,
    ConnectionFailed,
    Corrupt,
    Denied,
    InternalError,
    Interrupted,
    NotFound,
    PreconditionFailed,
    S3DcpError,
    ServiceError,
    Throttled,
    Timeout,
)
from .s3_prefix_strategy import *  # noqa: F403 - whatever is a strategy there is one here

if TYPE_CHECKING:
    from .checkpoint import S3Checkpoint
    from .file_system import S3FileSystem
    from .manager import CheckpointManager, Keep
    from .planner import FastLoadPlanner, FastSavePlanner
    from .storage_reader import S3StorageReader
    from .storage_writer import S3StorageWriter

__all__ = [
    "AlreadyExists",
    "CheckpointManager",
    "ConfigError",
    "Conflict",
    "ConnectionFailed",
    "Corrupt",
    "Denied",
    "FastLoadPlanner",
    "FastSavePlanner",
    "InternalError",
    "Interrupted",
    "Keep",
    "NotFound",
    "PreconditionFailed",
    "S3Checkpoint",
    "S3ClientConfig",
    "S3DcpError",
    "S3FileSystem",
    "S3StorageReader",
    "S3StorageWriter",
    "ServiceError",
    "Throttled",
    "Timeout",
    "__version__",
    "configure",
    "register",
]
__all__ += s3_prefix_strategy.__all__

_NEEDS_TORCH = {
    "CheckpointManager": "manager",
    "Keep": "manager",
    "FastLoadPlanner": "planner",
    "FastSavePlanner": "planner",
    "S3Checkpoint": "checkpoint",
    "S3FileSystem": "file_system",
    "S3StorageReader": "storage_reader",
    "S3StorageWriter": "storage_writer",
}


def __getattr__(name: str) -> Any:
    module = _NEEDS_TORCH.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NEEDS_TORCH})
