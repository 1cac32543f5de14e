"""How two checkpoints differ."""

from __future__ import annotations

import dataclasses
from typing import Literal

from .. import _native
from .._progress import ProgressCallback, reporting
from ..client_config import S3ClientConfig
from ._reach import Path, reached
from ._records import record

ComparedBy = Literal["checksums", "values", "bytes", "shapes"]


@dataclasses.dataclass(frozen=True)
class ItemName:
    """A tensor or object.

    Attributes:
        name: its name.
        rank: the rank in whose own index it is, where both checkpoints have such.
    """

    name: str
    rank: int | None


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two tensors of one shape differ, element by element. Two NaN are equal, as are 0 and -0.

    Attributes:
        count: elements that were compared.
        differing: those that differ.
        not_finite: those of them of which one is NaN or infinite; they are in neither of the following.
        largest_absolute: the largest difference.
        largest_relative: the largest, each relative to the larger magnitude of the two: from 0 to 2.
    """

    count: int
    differing: int
    not_finite: int
    largest_absolute: float
    largest_relative: float


@dataclasses.dataclass(frozen=True)
class ComparedTensor:
    """A tensor in both checkpoints.

    Attributes:
        name: its name.
        rank: as of `ItemName`.
        equal: whether dtype, shape and values are equal.
        by: by what that is known.
        dtypes: its dtype in the first and in the second.
        shapes: its shape in the first and in the second.
        difference: how the values differ, where they were read.
        fault: why they cannot be compared.
    """

    name: str
    rank: int | None
    equal: bool
    by: ComparedBy
    dtypes: list[str]
    shapes: list[list[int]]
    difference: Difference | None
    fault: str | None


@dataclasses.dataclass(frozen=True)
class ComparedObject:
    """An object in both checkpoints, compared byte by byte; its fields are those of a `ComparedTensor`."""

    name: str
    rank: int | None
    equal: bool
    by: ComparedBy
    fault: str | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two checkpoints differ.

    Attributes:
        first: the folder of the first's index.
        second: that of the second's.
        equal: whether both hold the same.
        only_first: what the first alone holds.
        only_second: what the second alone holds.
        tensors: the tensors in both.
        objects: the objects in both.
        read_bytes: bytes that were read, of both.
    """

    first: str
    second: str
    equal: bool
    only_first: list[ItemName]
    only_second: list[ItemName]
    tensors: list[ComparedTensor]
    objects: list[ComparedObject]
    read_bytes: int


def diff(
    first: Path,
    second: Path,
    *,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> Comparison:
    """How two checkpoints differ, whoever wrote them and however they are cut.

    What has the same checksums in both is equal without being read; the rest is read.

    Args:
        first: the folder of the first, or its index.
        second: that of the second.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops it.

    Raises:
        NotFound: one of them is not there.
        Corrupt: an index is damaged. What cannot be compared has a ``fault`` in the result.
    """
    settings = (region, endpoint_url, s3client_config)
    with reporting(progress, "diff") as report:
        return record(Comparison, _native.diff(reached(first, *settings), reached(second, *settings), report))
