"""What a strategy says of itself: the simulator's figures, from Python."""

from __future__ import annotations

import pytest

from s3dcp import BinaryPrefixStrategy, DefaultPrefixStrategy, HexPrefixStrategy, RoundRobinPrefixStrategy
from s3dcp.s3_prefix_strategy import S3PrefixStrategyBase


class OwnPrefix(S3PrefixStrategyBase):
    """Two nodes of any number of ranks."""

    def generate_prefix(self, rank: int) -> str:
        """By turns."""
        return f"node-{rank % 2}/__{rank}_"


@pytest.mark.parametrize(
    ("strategy", "directories", "shared"),
    [
        (DefaultPrefixStrategy(), 1, 64),
        (BinaryPrefixStrategy(prefix_count=8), 8, 8),
        (HexPrefixStrategy(), 64, 1),
        (HexPrefixStrategy(epoch_num=3, prefix_count=16), 16, 4),
        (RoundRobinPrefixStrategy(["a", "b", "c"]), 3, 22),
        (OwnPrefix(), 2, 32),
    ],
)
def test_a_description_counts_and_simulates(strategy: S3PrefixStrategyBase, directories: int, shared: int) -> None:
    described = strategy.describe(64, 1 << 30)
    assert (described.world_size, described.directories, described.ranks_per_directory) == (64, directories, shared)
    assert described.seconds >= described.ideal_seconds > 0
    assert described.requests > 64
    assert described == strategy.describe(64, 1 << 30), "equal arguments give equal figures"
    assert f"64 ranks in {directories} director" in str(described)


def test_partitions_and_part_size_make_the_difference() -> None:
    strategy = HexPrefixStrategy()
    cold = strategy.describe(512, 4 << 30, part_size=8 << 20)
    warm = strategy.describe(512, 4 << 30, part_size=8 << 20, partitions=64)
    chosen = strategy.describe(512, 4 << 30)
    assert cold.refused > 0
    assert warm.refused == 0
    assert warm.seconds < cold.seconds / 3
    assert chosen.seconds < cold.seconds / 3
    assert chosen.request_bytes > 8 << 20
    assert strategy.describe(512, 4 << 30, load=True).requests > 512


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"world_size": 0}, "world_size"),
        ({"world_size": "8"}, "world_size"),
        ({"world_size": 8, "bytes_per_rank": 0}, "bytes_per_rank"),
        ({"world_size": 8, "files_per_rank": 0}, "files_per_rank"),
        ({"world_size": 8, "part_size": 1}, "part_size"),
        ({"world_size": 8, "partitions": 0}, "partitions"),
        ({"world_size": 8, "network_gbps": 0.0}, "network_gbps"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DefaultPrefixStrategy().describe(**arguments)  # type: ignore[arg-type]
