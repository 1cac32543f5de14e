"""The checkpoints of a path: which there are, and which to keep. What the commands ``s3dcp ls`` and ``s3dcp keep`` do.

Every function takes ``s3://bucket/path`` or a local folder, and checkpoints of this package's writer, of torch's and
of s3torchconnector's. How S3 is reached is what `s3dcp.configure` was told, where the arguments do not say. Nothing
here needs torch, and no object of a checkpoint is unpickled.

>>> [checkpoint.step for checkpoint in list_checkpoints("s3://bucket/run")]  # doctest: +SKIP
[100, 200, 300]
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from . import _native
from ._client import client_for
from .checkpoint_id import client_settings
from .client_config import S3ClientConfig
from .errors import ConfigError

__all__ = ["Checkpoint", "Kept", "Retention", "keep", "list_checkpoints"]


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
class Kept:
    """A checkpoint that stays, and why: ``newest``, ``last 3``, ``every 1000``, ``best loss``, ``younger``, ``named``,
    or ``not of this path`` for one further below.
    """

    checkpoint: Checkpoint
    why: list[str]


@dataclasses.dataclass(frozen=True)
class Retention:
    """What rules say of the checkpoints of a path.

    Attributes:
        keep: what stays.
        delete: what goes.
        deleted: checkpoints that are gone, where they were to be deleted.
        replaced: those that stay because another save replaced them meanwhile.
        failed: files that could not be deleted, and why.
    """

    keep: list[Kept]
    delete: list[Checkpoint]
    deleted: list[str]
    replaced: list[str]
    failed: list[str]


def list_checkpoints(
    uri: str | os.PathLike[str],
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> list[Checkpoint]:
    """The checkpoints below a path, its own included, by step.

    Raises:
        S3DcpError: S3 cannot be asked. An index that cannot be read is a checkpoint with a ``fault``.
    """
    client = _client(region, endpoint_url, s3client_config)
    found = json.loads(_native.list_checkpoints(client, os.fspath(uri)))
    return [_checkpoint(each) for each in found["checkpoints"]]


def keep(
    uri: str | os.PathLike[str],
    *,
    last: int | None = None,
    every: int | None = None,
    best: Mapping[str, Literal["min", "max"] | tuple[Literal["min", "max"], int]] | None = None,
    younger: timedelta | None = None,
    names: Iterable[str] = (),
    delete: bool = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> Retention:
    """Keep some checkpoints of a path, and delete the others where `delete` says so.

    What any rule keeps stays, and so does the checkpoint that was committed last. The checkpoints of a path are its
    own, its epochs' and those in folders of steps directly below it. An index is deleted first, and only if it is still
    the one that was judged; its files go after, unless another index names them.

    Args:
        uri: the path.
        last: the newest so many, by step.
        every: every step that this divides.
        best: the best by metrics noted with the save, such as ``{"loss": "min", "accuracy": ("max", 3)}``.
        younger: what is younger than this.
        names: what is in folders of these names, such as ``step-700``.
        delete: delete the others.

    Raises:
        ConfigError: no rule, or one that cannot be; the message names it.
        Corrupt: an index cannot be read; nothing is deleted then, as it may name any file.
    """
    rules = []
    for metric, rule in (best or {}).items():
        order, count = rule if isinstance(rule, tuple) else (rule, 1)
        if order not in ("min", "max"):
            raise ConfigError(f"best={best!r}: {metric} must be 'min' or 'max', or a tuple of that and a count")
        rules.append((metric, order == "max", count))
    seconds = None if younger is None else younger.total_seconds()
    client = _client(region, endpoint_url, s3client_config)
    chosen, done = _native.keep(client, os.fspath(uri), last, every, rules, seconds, list(names), delete)
    choice, result = json.loads(chosen), json.loads(done) if done else {}
    return Retention(
        keep=[Kept(_checkpoint(each["checkpoint"]), each["why"]) for each in choice["keep"]],
        delete=[_checkpoint(each) for each in choice["delete"]],
        deleted=result.get("deleted", []),
        replaced=result.get("replaced", []),
        failed=result.get("failed", []),
    )


def _client(region: str | None, endpoint_url: str | None, s3client_config: S3ClientConfig | None) -> _native.Client:
    given = {"region": region, "endpoint_url": endpoint_url, "s3client_config": s3client_config}
    settings = {**client_settings(), **{name: value for name, value in given.items() if value is not None}}
    return client_for(settings.get("region"), settings.get("endpoint_url"), settings.get("s3client_config"))


def _checkpoint(record: dict[str, Any]) -> Checkpoint:
    modified = record["modified"]
    # Python 3.10 knows no Z.
    time = modified and datetime.fromisoformat(modified.replace("Z", "+00:00"))
    return Checkpoint(**{**record, "modified": time})
