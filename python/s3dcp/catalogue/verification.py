"""Whether a checkpoint is whole, and as it was saved."""

from __future__ import annotations

import dataclasses
import os

from .. import _native
from .._progress import ProgressCallback, reporting
from ..client_config import S3ClientConfig
from ._reach import Path, reached
from ._records import record


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that is wrong.

    Attributes:
        name: the item.
        rank: the rank in whose own index it is.
        file: the file.
        offset: where the item begins in it, in bytes.
        what: what is wrong.
    """

    name: str | None
    rank: int | None
    file: str | None
    offset: int | None
    what: str


@dataclasses.dataclass(frozen=True)
class VerifiedBy:
    """How many items were compared, and with what.

    Attributes:
        index: with the checksums in the index.
        archive: with those in their own archives, of items that others wrote.
        storage: with those of their whole files that S3 keeps.
        head: heads and sizes alone: nothing vouches for their values.
        size: sizes alone.
    """

    index: int
    archive: int
    storage: int
    head: int
    size: int


@dataclasses.dataclass(frozen=True)
class Verification:
    """What came of verifying a checkpoint.

    Attributes:
        uri: the folder of its index.
        good: whether nothing was found wrong.
        quick: whether no items were read.
        files: files that the index names.
        items: chunks of tensors, and objects.
        bytes: bytes of these.
        read_bytes: bytes that were read.
        resumed_bytes: bytes that an earlier run had verified.
        by: items by what vouches for them.
        faults: what is wrong.
    """

    uri: str
    good: bool
    quick: bool
    files: int
    items: int
    bytes: int
    read_bytes: int
    resumed_bytes: int
    by: VerifiedBy
    faults: list[Fault]


def verify(
    uri: Path,
    *,
    quick: bool = False,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
) -> Verification:
    """Verify a checkpoint: every file that its index names, every item in it, every checksum.

    Args:
        uri: its folder, or its index.
        quick: read no items: compare sizes, and the checksums of whole files that S3 keeps.
        resume: a file that keeps what has been verified; a run that was killed goes on from there, and one that ends
            deletes it.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops it.

    Raises:
        NotFound: no checkpoint is there.
        Corrupt: its index is damaged. What else is wrong is a fault in the result.
        ConfigError: `resume` is a file of something else.
    """
    place = reached(uri, region, endpoint_url, s3client_config)
    with reporting(progress, "verify") as report:
        found = _native.verify(*place, quick, None if resume is None else os.fspath(resume), report)
    return record(Verification, found)
