"""What a prefix strategy comes to in a job of some size: the simulator, asked from Python."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING

from . import _native

__all__ = ["Description", "describe"]

if TYPE_CHECKING:
    from .s3_prefix_strategy import S3PrefixStrategyBase


@dataclasses.dataclass(frozen=True)
class Description:
    """One simulated save or load with the prefixes of a strategy; ``str()`` says it in words.

    Attributes:
        world_size: ranks.
        directories: different directories that their shard files lie in.
        ranks_per_directory: most ranks that share one.
        request_bytes: bytes of the largest part, or range.
        requests: requests that S3 let in.
        refused: requests that S3 answered with 503 SlowDown.
        seconds: how long it takes.
        ideal_seconds: the least it could take, for the network or for S3's budget, whichever is longer.
        partitions: partitions of S3 for these keys at its end; 1 in a directory bucket, which has none.
        directory_bucket: whether it was in one.
    """

    world_size: int
    directories: int
    ranks_per_directory: int
    request_bytes: int
    requests: int
    refused: int
    seconds: float
    ideal_seconds: float
    partitions: int
    directory_bucket: bool = False

    def __str__(self) -> str:
        partitions = f"{self.partitions} partition{'' if self.partitions == 1 else 's'}"
        return (
            f"{self.world_size} ranks in {self.directories} "
            f"{'directory' if self.directories == 1 else 'directories'}, at most {self.ranks_per_directory} in one: "
            f"{self.requests} requests of up to {self.request_bytes / (1 << 20):.0f} MiB "
            f"{'in a directory bucket, without partitions' if self.directory_bucket else f'on {partitions}'}, "
            f"{self.refused} refused (503), {self.seconds:.1f} s "
            f"({self.seconds / self.ideal_seconds:.2f} times the ideal)"
        )


def describe(
    self: S3PrefixStrategyBase,
    world_size: int,
    bytes_per_rank: int = 1 << 30,
    *,
    files_per_rank: int = 1,
    part_size: int | None = None,
    partitions: int = 1,
    directory_bucket: bool = False,
    load: bool = False,
    network_gbps: float = 10.0,
) -> Description:
    """Simulate one save or load with a strategy's prefixes, as ``s3dcp simulate`` does.

    S3 is a model of its partitions: see ``docs/partitions.md`` for what it assumes.

    >>> from s3dcp import DefaultPrefixStrategy
    >>> described = DefaultPrefixStrategy().describe(8)
    >>> described.directories, described.ranks_per_directory, described.refused
    (1, 8, 0)

    Args:
        world_size: ranks, 1 to 1,048,576.
        bytes_per_rank: what each saves or loads, at least 1.
        files_per_rank: shard files of each rank (``thread_count`` of the writer), at least 1.
        part_size: bytes of a part or range; None for what s3dcp chooses.
        partitions: partitions that S3 has for these keys from the start; 1 is a cold bucket.
        directory_bucket: the keys lie in a directory bucket (S3 Express One Zone), which has no partitions.
        load: load instead of saving.
        network_gbps: network of one rank, gigabits per second.

    Raises:
        ValueError: an argument is outside its limits. The message names it.
    """
    world_size = _native.check_integer("world_size", world_size, 1, 1 << 20)
    if not 0 < network_gbps < math.inf:
        raise ValueError(f"network_gbps must be a positive number, got {network_gbps!r}")
    if directory_bucket and partitions != 1:
        raise ValueError(f"partitions={partitions!r}: a directory bucket has none; leave it out with directory_bucket")
    prefixes = self.bind(world_size).prefixes(range(world_size))
    directories = Counter(prefix.rpartition("/")[0] for prefix in prefixes)
    seconds, ideal, requests, refused, at_end, request_bytes = _native.simulate_prefixes(
        prefixes,
        _native.check_integer("bytes_per_rank", bytes_per_rank, 1, 1 << 50),
        files_per_rank=_native.check_integer("files_per_rank", files_per_rank, 1, 1 << 16),
        part_size=None if part_size is None else _native.check_integer("part_size", part_size, 1 << 20, 5 << 30),
        partitions=_native.check_integer("partitions", partitions, 1, 1 << 20),
        directory_bucket=directory_bucket,
        load=load,
        network_gbps=network_gbps,
    )
    return Description(
        world_size=world_size,
        directories=len(directories),
        ranks_per_directory=max(directories.values()),
        request_bytes=request_bytes,
        requests=requests,
        refused=refused,
        seconds=seconds,
        ideal_seconds=ideal,
        partitions=at_end,
        directory_bucket=directory_bucket,
    )
