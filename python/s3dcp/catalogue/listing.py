"""Which checkpoints there are below a path."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from .. import _native
from ..client_config import S3ClientConfig
from ._reach import Path, reached
from ._records import record


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, as its index tells of it.

    Attributes:
        uri: the folder of its index.
        step: its step or epoch: the epoch in its index, else the step in its notes, else the number in its folder's
            name.
        modified: when its index was last written.
        notes: what was noted with the save.
        ranks: ranks that saved it; None for checkpoints of others.
        items: chunks of tensors, and objects.
        files: files that its index names.
        bytes: bytes of these.
        shared_bytes: bytes of those that other checkpoints name as well.
        complete: whether every file is there.
        newest: whether it is the one that was committed last, of those that are complete.
        missing: files that its index names and that are not there.
        fault: why its index cannot be read.
    """

    uri: str
    step: int | None
    modified: datetime | None
    notes: dict[str, Any]
    ranks: int | None
    items: int
    files: int
    bytes: int
    shared_bytes: int
    complete: bool
    newest: bool
    missing: list[str]
    fault: str | None


@dataclasses.dataclass(frozen=True)
class _Checkpoints:
    checkpoints: list[Checkpoint]


def list_checkpoints(
    uri: Path,
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> list[Checkpoint]:
    """The checkpoints below a path, its own included, by step.

    Raises:
        S3DcpError: S3 cannot be asked. An index that cannot be read is a checkpoint with a ``fault``.
    """
    found = _native.list_checkpoints(*reached(uri, region, endpoint_url, s3client_config))
    return record(_Checkpoints, found).checkpoints
