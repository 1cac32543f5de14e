"""What ranks save without collectives, each its own part: rows of a tensor, what all have, and what one has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from s3dcp import S3StorageReader
from support import jobs
from support.states import assert_same, blank, values
from support.store import REGION


def whole(ranks: int) -> dict[str, torch.Tensor]:
    """The tensors of all ranks."""
    own = {f"own.{rank}": values((50,), rank) for rank in range(ranks)}
    return {"layers.rows": values((4 * ranks, 30)), "buffer": values((3000,), 7), **own}


def of_rank(buffer_of_each: bool = False) -> dict[str, Any]:
    """The state of this rank; the buffers of all are equal, unless each has one of its own."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    state: dict[str, Any] = {name: tensor for name, tensor in whole(ranks).items() if name in ("buffer", f"own.{rank}")}
    if buffer_of_each:
        state["buffer"] = values((3000,), rank)
    mesh = init_device_mesh("cpu", (ranks,))
    rows = whole(ranks)["layers.rows"].chunk(ranks)[rank].contiguous()
    return {**state, "layers.rows": DTensor.from_local(rows, mesh, [Shard(0)], run_check=False), "step": 7}


class _Parts(DefaultSavePlanner):
    """A planner that does not miss what other ranks save."""

    def create_global_plan(self, all_plans: Any) -> Any:
        self.global_plan, self.metadata = create_default_global_save_plan(all_plans)
        return self.global_plan, self.metadata


def save(place: str | Path, buffer_of_each: bool = False) -> None:
    """Save this rank's part: with our writer on S3, with torch's own in a folder."""
    state = of_rank(buffer_of_each)
    if isinstance(place, Path):
        dcp.save(state, storage_writer=FileSystemWriter(place), planner=_Parts(), use_collectives=False)
    else:
        jobs.save(state, place, planner=_Parts(), use_collectives=False)


def check(uri: str, names: tuple[str, ...]) -> None:
    """Our reader gives each rank what it saved by these names."""
    state = {name: value for name, value in of_rank().items() if name.startswith(names)}
    loaded = blank(state)
    dcp.load(loaded, storage_reader=S3StorageReader(REGION, uri))
    assert_same(loaded, state)
