"""What a prefix strategy comes to in a job of some size: the simulator, asked from Python."""

from __future__ import annotations

import dataclasses


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
        partitions: partitions of S3 for these keys at its end.
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

    def __str__(self) -> str:
        return (
            f"{self.world_size} ranks in {self.directories} "
            f"{'directory' if self.directories == 1 else 'directories'}, at most {self.ranks_per_directory} in one: "
            f"{self.requests} requests of up to {self.request_bytes / (1 << 20):.0f} MiB on {self.partitions} "
            f"partition{'' if self.partitions == 1 else 's'}, {self.refused} refused (503), {self.seconds:.1f} s "
            f"({self.seconds / self.ideal_seconds:.2f} times the ideal)"
        )
