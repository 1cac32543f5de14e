"""What a checkpoint holds, and where."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from .. import _native
from .._progress import ProgressCallback, reporting
from ..client_config import S3ClientConfig
from ._reach import Path, reached
from ._records import record


@dataclasses.dataclass(frozen=True)
class Index:
    """An index of a checkpoint.

    Attributes:
        uri: where it is.
        rank: the rank whose index it is; None for that of all ranks.
        bytes: its length.
    """

    uri: str
    rank: int | None
    bytes: int


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk of a tensor. Where it is stored is None where the index does not say.

    Attributes:
        offsets: its first element.
        sizes: elements along each dimension.
        file: the shard file.
        offset: its first byte in the file.
        length: bytes of it in the file.
        saved_by: the rank that wrote it, as the name of the file tells.
        has_checksums: whether the index has checksums of it.
    """

    offsets: list[int]
    sizes: list[int]
    file: str | None
    offset: int | None
    length: int | None
    saved_by: int | None
    has_checksums: bool | None


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What the values of a tensor come to. Of complex numbers it is their magnitudes, and True counts as 1.

    Attributes:
        count: elements.
        nan: those that are not a number.
        inf: those that are infinite.
        min: the smallest of the others; None where there are none.
        max: the largest of them.
        mean: their mean.
    """

    count: int
    nan: int
    inf: int
    min: float | None
    max: float | None
    mean: float | None


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        name: its name.
        rank: the rank in whose own index it is.
        dtype: as torch calls it: ``float32``.
        shape: elements along each dimension.
        bytes: bytes of its values.
        chunks: where it is stored.
        statistics: what its values come to, where they were read.
        fault: why they could not be.
    """

    name: str
    rank: int | None
    dtype: str
    shape: list[int]
    bytes: int
    chunks: list[Chunk]
    statistics: Statistics | None
    fault: str | None


@dataclasses.dataclass(frozen=True)
class StoredObject:
    """A pickled object of a checkpoint; its fields are those of a `Chunk`."""

    name: str
    rank: int | None
    file: str | None
    offset: int | None
    length: int | None
    saved_by: int | None
    has_checksums: bool | None


@dataclasses.dataclass(frozen=True)
class Total:
    """What some items come to.

    Attributes:
        of: what they have in common.
        tensors: tensors; one that is stored in several places counts in each total that has some of it.
        objects: objects.
        bytes: bytes of their items, as they are stored.
    """

    of: str
    tensors: int
    objects: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint, item by item.

    Attributes:
        uri: the folder of its index.
        indexes: its index, or those of its ranks.
        epoch: its epoch, where its index tells one.
        ranks: ranks that saved it, where its index tells.
        tensors: its tensors, by name.
        objects: its objects, by name.
        total: what it comes to.
        by_dtype: the same for each dtype.
        by_prefix: the same for each first part of a dotted name.
        by_rank: the same for each rank, as the names of shard files tell it, or else for each file.
    """

    uri: str
    indexes: list[Index]
    epoch: int | None
    ranks: int | None
    tensors: list[Tensor]
    objects: list[StoredObject]
    total: Total
    by_dtype: list[Total]
    by_prefix: list[Total]
    by_rank: list[Total]


def inspect(
    uri: Path,
    names: Iterable[str] = (),
    *,
    statistics: bool = False,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> Inspection:
    """What a checkpoint holds, and where. Only its index is read, unless `statistics` asks for values.

    Args:
        uri: its folder, or its index.
        names: only these: names, dotted prefixes (``model.layers``) or globs (``*.bias``).
        statistics: read the values of its tensors, and tell what they come to.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops the reading.

    Raises:
        NotFound: no checkpoint is there.
        Corrupt: its index is damaged, or holds what none needs.
        ConfigError: a name means no item.
    """
    place = reached(uri, region, endpoint_url, s3client_config)
    with reporting(progress, "inspect") as report:
        return record(Inspection, _native.inspect(*place, list(names), statistics, report))
