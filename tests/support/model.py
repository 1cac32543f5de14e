"""What must lie at a path after any saves, as a plain dict: index name to the number of the save it is of.

The rules are those of DESIGN.md, written down a second time and as simply as possible.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from s3dcp import AlreadyExists, Conflict
from support.states import values


@dataclass
class Planned:
    """A save as the model sees it. `seen`: the indexes at the path when it was planned."""

    number: int
    epoch: int | None
    rank: int | None
    ranks: int
    overwrite: bool
    seen: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder of its index, with a trailing slash."""
        return "" if self.epoch is None else f"epoch_{self.epoch}/"

    @property
    def index(self) -> str:
        """Its index."""
        return self.folder + (".metadata" if self.rank is None else f"__{self.rank}.metadata")

    @property
    def indexes(self) -> list[str]:
        """All the names that its index will have."""
        return [self.index] if self.epoch is None or self.rank is not None else [self.index, ".metadata"]

    @property
    def parts(self) -> list[dict[str, Any]]:
        """What each rank saves."""
        ranks = range(self.ranks) if self.rank is None else [self.rank]
        return [
            {
                "shared": values((5, 3), self.number),
                f"of rank {rank}": values((rank + 2, 4), 100 * self.number + rank).t(),
                "step": self.number,
            }
            for rank in ranks
        ]

    @property
    def state(self) -> dict[str, Any]:
        """What loading it gives."""
        return {name: value for part in self.parts for name, value in part.items()}


class Model:
    """A path: `indexes` by name, and the shard `files` that are there by the number of their save."""

    def __init__(self) -> None:
        self.indexes: dict[str, int] = {}
        self.files: dict[int, set[str]] = {}
        self.saves: dict[int, Planned] = {}

    def plan(self, save: Planned) -> type[Exception] | None:
        """Note what the save sees; the error that it must meet."""
        save.seen = dict(self.indexes)
        self.saves[save.number] = save
        if save.rank is None:
            other_kind = any(name.endswith("__0.metadata") for name in self.indexes)
        else:
            other_kind = ".metadata" in self.indexes or f"{save.folder}.metadata" in self.indexes
        root = self.indexes.get(".metadata")
        without_epoch = len(save.indexes) == 2 and root is not None and self.saves[root].epoch is None
        exists = save.index in self.indexes or without_epoch
        return AlreadyExists if other_kind or (exists and not save.overwrite) else None

    def write(self, number: int, files: set[str]) -> None:
        """A rank of this save has written these."""
        self.files.setdefault(number, set()).update(files)

    def commit(self, save: Planned) -> type[Exception] | None:
        """Replace the index, if it is the one that the save saw, and clean up.

        Else the error that it must meet, and what it wrote is gone.
        """
        seen, there = save.seen.get(save.index), self.indexes.get(save.index)
        if there != seen:
            self.files.pop(save.number, None)
            return Conflict if there is None else AlreadyExists
        self.indexes.update(dict.fromkeys(save.indexes, save.number))
        for name in save.indexes:
            if (replaced := save.seen.get(name)) not in (None, *self.indexes.values()):
                self.files.pop(replaced, None)
        return None

    def at(self, folder: str, rank: int) -> int | None:
        """The save that a load of this rank gives at a folder of the path."""
        return self.indexes.get(f"{folder}.metadata", self.indexes.get(f"{folder}__{rank}.metadata"))
