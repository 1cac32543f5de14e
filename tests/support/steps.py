"""Saves and loads driven step by step, in the order in which torch calls the writer and the reader.

Between two steps anything may happen: another save, or the end of this one. The ranks of a save are writers of one
process, each with its own part of the state.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from s3dcp import NotFound, S3StorageReader, S3StorageWriter
from support.states import blank
from support.store import REGION


class Save:
    """`plan`, then `write` for each rank, then `commit`.

    With collectives `parts` are the states of ranks 0 and up; without, there is one, of rank `rank`.
    """

    def __init__(
        self, uri: str, parts: list[dict[str, Any]], *, use_collectives: bool = True, rank: int = 0, **arguments: Any
    ) -> None:
        self.uri = uri
        self.parts = parts
        self.use_collectives = use_collectives
        self.ranks = list(range(len(parts))) if use_collectives else [rank]
        self.arguments = arguments
        self.writers: list[S3StorageWriter] = []
        self.planners: list[DefaultSavePlanner] = []
        self.plans: list[SavePlan] = []
        self.metadata: Metadata | None = None
        self.results: list[list[WriteResult]] = []

    def plan(self) -> None:
        """Look at the path and make the plans of all ranks."""
        local = []
        for rank, part in zip(self.ranks, self.parts, strict=True):
            writer, planner = S3StorageWriter(REGION, self.uri, **self.arguments), DefaultSavePlanner()
            is_coordinator = not self.use_collectives or rank == 0
            planner.set_up_planner(part, storage_meta=writer.storage_meta(), is_coordinator=is_coordinator)
            writer.set_up_storage_writer(is_coordinator, rank=rank, use_collectives=self.use_collectives)
            local.append(writer.prepare_local_plan(planner.create_local_plan()))
            self.writers.append(writer)
            self.planners.append(planner)
        plans, self.metadata = self.planners[0].create_global_plan(local)
        self.plans = self.writers[0].prepare_global_plan(plans)

    @property
    def is_written(self) -> bool:
        """All ranks have written."""
        return len(self.results) == len(self.parts)

    def write(self) -> set[str]:
        """The next rank writes its shard files; their names, relative to the path."""
        number = len(self.results)
        plan = self.planners[number].finish_plan(self.plans[number])
        results = self.writers[number].write_data(plan, self.planners[number]).value()
        self.results.append(results)
        return {result.storage_data.relative_path for result in results}

    def commit(self) -> None:
        """Commit and clean up."""
        assert self.metadata is not None
        self.writers[0].finish(self.metadata, self.results)


class Load:
    """`plan` reads the index, `read` all the rest, into a blank copy of `state`."""

    def __init__(self, uri: str, state: dict[str, Any], rank: int = 0) -> None:
        self.reader = S3StorageReader(REGION, uri)
        self.planner = DefaultLoadPlanner()
        self.state = blank(state)
        self.rank = rank
        self.local: LoadPlan | None = None

    def plan(self) -> None:
        """Read the index: the one of all ranks, or else the rank's own."""
        use_collectives = True
        try:
            metadata = self.reader.read_metadata()
        except NotFound:
            metadata = self.reader.read_metadata(rank=self.rank)
            use_collectives = False
        self.planner.set_up_planner(self.state, metadata, True)
        self.reader.set_up_storage_reader(metadata, True, rank=self.rank, use_collectives=use_collectives)
        self.local = self.reader.prepare_local_plan(self.planner.create_local_plan())

    def read(self) -> dict[str, Any]:
        """The state."""
        assert self.local is not None
        (plan,) = self.reader.prepare_global_plan(self.planner.create_global_plan([self.local]))
        self.reader.read_data(self.planner.finish_plan(plan), self.planner).wait()
        return self.state
