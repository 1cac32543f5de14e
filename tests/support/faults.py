"""Ways to break a checkpoint, and saves that must fail.

Each fault changes what is stored and gives the error's class and what its message must hold.
"""

from __future__ import annotations

import os
import pickle
import time
from typing import Any

from torch.distributed.checkpoint import DefaultSavePlanner

from s3dcp import S3FileSystem, S3PrefixStrategyBase
from support import jobs
from support.indexes import Calls, without_checksums
from support.states import training_state, values
from support.store import REGION, Store


def missing_index(store: Store) -> tuple[str, str]:
    """No index."""
    store.delete(".metadata")
    return "NotFound", "no checkpoint"


def truncated_index(store: Store) -> tuple[str, str]:
    """The index ends early."""
    body = store.read(".metadata")
    store.write(".metadata", body[: len(body) // 2])
    return "Corrupt", ".metadata"


def flipped_index(store: Store) -> tuple[str, str]:
    """One bit of the index differs."""
    body = bytearray(store.read(".metadata"))
    body[len(body) // 3] ^= 1
    store.write(".metadata", bytes(body))
    return "Corrupt", ".metadata"


def empty_index(store: Store) -> tuple[str, str]:
    """An index without bytes."""
    store.write(".metadata", b"")
    return "Corrupt", ".metadata"


def index_that_runs_code(store: Store) -> tuple[str, str]:
    """An index that would end the process that reads it carelessly."""
    metadata = without_checksums(store.read(".metadata"))
    metadata.planner_data = Calls(os._exit, 3)
    store.write(".metadata", pickle.dumps(metadata))
    return "Corrupt", "_exit"


def missing_shard(store: Store) -> tuple[str, str]:
    """The last shard file is gone."""
    name = store.shards()[-1]
    store.delete(name)
    return "NotFound", name


def truncated_shard(store: Store) -> tuple[str, str]:
    """The last shard file ends early."""
    name = store.shards()[-1]
    store.write(name, store.read(name)[:-200])
    return "Corrupt", name


def corrupted_shard(store: Store) -> tuple[str, str]:
    """One byte in the data of every tensor in the last shard file differs."""
    name = store.shards()[-1]
    body = bytearray(store.read(name))
    for info in pickle.loads(store.read(".metadata")).storage_data.values():
        if info.relative_path == name and hasattr(info, "data_offset"):
            body[info.offset + info.data_offset] ^= 0x10
    store.write(name, bytes(body))
    return "Corrupt", name


ALL = [
    missing_index,
    truncated_index,
    flipped_index,
    empty_index,
    index_that_runs_code,
    missing_shard,
    truncated_shard,
    corrupted_shard,
]


class EscapesOnRank1(S3PrefixStrategyBase):
    """Sends rank 1 out of the checkpoint's path."""

    def generate_prefix(self, rank: int) -> str:
        return "../elsewhere/__1_" if rank == 1 else f"__{rank}_"


def save_with_escaping_prefix(uri: str) -> None:
    """A save whose strategy is fine for rank 0 only."""
    jobs.save(training_state(), uri, prefix_strategy=EscapesOnRank1())


class FailsOnRank1(DefaultSavePlanner):
    """Fails on rank 1 after some items were written."""

    count = 0

    def resolve_data(self, write_item: Any) -> Any:
        self.count += 1
        if jobs.rank() == 1 and self.count == 2:
            raise ArithmeticError("broken on purpose")
        return super().resolve_data(write_item)


def save_failing_on_rank_1(uri: str) -> None:
    """A save in which rank 1 fails midway."""
    jobs.save(training_state(5), uri, planner=FailsOnRank1())


class FailsOnRank1AfterAFile(DefaultSavePlanner):
    """Fails on rank 1 once one more of its files is complete, where every item has a file."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri = uri
        self.before = self.files()
        self.count = 0

    def files(self) -> set[str]:
        """The files of rank 1."""
        return {uri for uri in S3FileSystem(REGION).ls(self.uri) if "/__1_" in uri}

    def resolve_data(self, write_item: Any) -> Any:
        self.count += 1
        if jobs.rank() == 1 and self.count == 2:
            while self.files() == self.before:
                time.sleep(0.02)
            raise ArithmeticError("broken on purpose")
        return super().resolve_data(write_item)


def save_failing_on_rank_1_after_a_file(uri: str) -> None:
    """A save in which rank 1 has completed a file when it fails."""
    jobs.save(training_state(5), uri, planner=FailsOnRank1AfterAFile(uri), single_file_per_rank=False)


class RivalWins(DefaultSavePlanner):
    """While rank 0 writes, another save commits at `uri`."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self.uri: str | None = uri

    @staticmethod
    def state() -> dict[str, Any]:
        """What the other save holds."""
        return {"rival": values((7,), 1)}

    def resolve_data(self, write_item: Any) -> Any:
        uri, self.uri = self.uri, None
        if uri and jobs.rank() == 0:
            jobs.save(self.state(), uri, no_dist=True)
        return super().resolve_data(write_item)


def save_losing_to_a_rival(uri: str) -> None:
    """A save whose path another save takes."""
    jobs.save(training_state(5), uri, planner=RivalWins(uri), thread_count=2)
