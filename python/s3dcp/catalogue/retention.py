"""Which checkpoints of a path stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Literal

from .. import _native
from ..client_config import S3ClientConfig
from ..errors import ConfigError
from ._reach import Path, reached
from ._records import record
from .listing import Checkpoint


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


@dataclasses.dataclass(frozen=True)
class _Choice:
    keep: list[Kept]
    delete: list[Checkpoint]


@dataclasses.dataclass(frozen=True)
class _Deleted:
    deleted: list[str]
    replaced: list[str]
    failed: list[str]


def keep(
    uri: Path,
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
    place = reached(uri, region, endpoint_url, s3client_config)
    chosen, done = _native.keep(*place, last, every, rules, seconds, list(names), delete)
    choice, result = record(_Choice, chosen), record(_Deleted, done) if done else _Deleted([], [], [])
    return Retention(choice.keep, choice.delete, result.deleted, result.replaced, result.failed)
