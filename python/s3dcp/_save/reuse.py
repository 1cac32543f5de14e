"""What a save need not send: items of an earlier checkpoint that have not changed.

The coordinator hands every rank, through the plan, the entries that its items have in the earlier index (the base). A
rank hashes its items, and those with the same hash are named where they lie. Nothing else of the base reaches a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from .. import _native
from .._dtypes import NATIVE
from .._tensors import is_plain
from .resolve import Resolver
from .shards import BATCH_BYTES, BATCH_TENSORS, Whole, direct, whole, write_result
from .staging import BUFFER_BYTES, Stager

_OBJECT = WriteItemType.BYTE_IO


class BaseEntry(NamedTuple):
    """Where an item of the base lies, and what it is."""

    relative_path: str
    offset: int
    length: int
    data_offset: int | None
    checksums: bytes
    hash: bytes


@dataclass(frozen=True)
class Reused:
    """What a save has not sent, because an earlier one on the path has.

    Attributes:
        files: files of earlier saves that it names.
        items: tensors and objects in them that have not changed.
        bytes: what these take up.
    """

    files: int = 0
    items: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, results: list[WriteResult]) -> Reused:
        """What is in these results."""
        files = {result.storage_data.relative_path for result in results}
        return cls(len(files), len(results), sum(result.size_in_bytes for result in results))


def reuse(
    items: list[WriteItem], base: Mapping[MetadataIndex, tuple[object, ...]], resolver: Resolver, values: bool
) -> tuple[list[WriteResult], list[WriteItem]]:
    """The results of those `items` that have not changed, and the others.

    Args:
        items: those of a rank's plan.
        base: the entries that they have there.
        resolver: gives their data.
        values: whether tensors are stored as their values alone, in files of the safetensors format.
    """
    results: list[WriteResult] = []
    unchanged: set[int] = set()
    known = [(number, item) for number, item in enumerate(items) if item.index in base]
    for number, dtype, hash in _hashes(known, resolver, values):
        item = items[number]
        entry = BaseEntry(*base[item.index])  # type: ignore[arg-type]
        if entry.hash == hash:
            unchanged.add(number)
            results.append(write_result(item, entry.relative_path, entry, dtype))
    return results, [item for number, item in enumerate(items) if number not in unchanged]


def _hashes(
    items: list[tuple[int, WriteItem]], resolver: Resolver, values: bool
) -> Iterator[tuple[int, torch.dtype | None, bytes]]:
    """The numbers of those items that can be told by their bytes, with dtype and hash."""
    batch: list[Whole] = []
    numbers: list[tuple[int, torch.dtype]] = []
    batch_bytes = 0

    def hashed() -> Iterator[tuple[int, torch.dtype | None, bytes]]:
        hashes = _native.hash_tensors(batch, values)
        yield from ((number, dtype, hash) for (number, dtype), hash in zip(numbers, hashes, strict=True))
        batch.clear()
        numbers.clear()

    stager = Stager(BUFFER_BYTES)
    for number, item in items:
        if item.type is _OBJECT:
            yield number, None, _native.hash_object(resolver.object(item).getvalue())
            continue
        tensor = resolver.tensor(item).detach()
        if not is_plain(tensor) or tensor.dtype not in NATIVE:
            continue
        if (memory := direct(tensor)) is None:
            hasher = _native.TensorHasher(NATIVE[tensor.dtype], tensor.shape, values)
            for buffer, start, nbytes in stager.staged(tensor):
                hasher.update(buffer, start, nbytes)
            yield number, tensor.dtype, hasher.finish()
            continue
        batch.append(whole(memory))
        numbers.append((number, tensor.dtype))
        batch_bytes += memory.nbytes
        if len(batch) >= BATCH_TENSORS or batch_bytes >= BATCH_BYTES:
            yield from hashed()
            batch_bytes = 0
    yield from hashed()
    stager.close()
