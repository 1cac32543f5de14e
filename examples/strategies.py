"""Prints the tree of keys that each prefix strategy gives a job of four ranks. Needs neither S3 nor torch."""

from __future__ import annotations

from s3dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NumericPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)

RANKS = 4


class PerNode(S3PrefixStrategyBase):
    """A strategy of one's own: the ranks of one node share a prefix."""

    def __init__(self, ranks_per_node: int) -> None:
        self.ranks_per_node = ranks_per_node

    def generate_prefix(self, rank: int) -> str:
        node = rank // self.ranks_per_node
        return f"node-{node}/__{rank}_"

    def __repr__(self) -> str:
        return f"PerNode(ranks_per_node={self.ranks_per_node})"


STRATEGIES: list[S3PrefixStrategyBase] = [
    DefaultPrefixStrategy(),
    BinaryPrefixStrategy(),
    HexPrefixStrategy(epoch_num=5),
    NumericPrefixStrategy(base=36, min_prefix_length=2, prefix_count=2),
    RoundRobinPrefixStrategy(["p1", "p2", "p3"], epoch_num=5),
    PerNode(ranks_per_node=2),
]


def tree(keys: list[str]) -> list[str]:
    """`keys` as the lines of a tree, one level for each ``/``."""
    branches: dict[str, list[str]] = {}
    for key in keys:
        name, _, rest = key.partition("/")
        branches.setdefault(name, []).extend([rest] if rest else [])
    lines = []
    for number, (name, below) in enumerate(branches.items(), start=1):
        last = number == len(branches)
        lines.append(("└── " if last else "├── ") + name)
        lines += [("    " if last else "│   ") + line for line in tree(below)]
    return lines


def main() -> None:
    for strategy in STRATEGIES:
        # As the storage writer does for every save: the number of ranks decides where no count was given.
        prefixes = strategy.bind(RANKS).prefixes(range(RANKS))
        print(f"{strategy!r}, {RANKS} ranks")
        print("s3://bucket/run")
        print("\n".join(tree([f"{prefix}0-<save id>.distcp" for prefix in prefixes])))
        print()


if __name__ == "__main__":
    main()
