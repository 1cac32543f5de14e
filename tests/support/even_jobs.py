"""What groups of ranks save in tests/test_even_saves.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from s3dcp import CheckpointManager, FastSavePlanner, S3StorageWriter
from support import group_jobs, jobs
from support.states import assert_same, blank, values
from support.store import REGION

FROM = 4096


def large(seed: int = 0) -> dict[str, Any]:
    """One large tensor, as every rank has it."""
    return {"weight": values((4001, 64), seed)}


def mixed(seed: int = 0) -> dict[str, Any]:
    """Large and small tensors of many kinds, tied names and objects, as every rank has them."""
    wide = values((1500, 70), seed)
    return {
        "model": {
            "large": values((3000, 64), seed),
            "turned": wide.t(),
            "tied": wide.t(),
            "parameter": torch.nn.Parameter(values((900, 100), seed + 1)),
            "half": values((2000, 50), seed + 2, torch.bfloat16),
            "flags": values((90_000,), seed + 3, torch.bool),
            "complex": values((800, 20), seed + 4, torch.complex64).conj(),
            "few rows": values((3, 20_000), seed + 5),
            "one row": values((1, 20_000), seed + 6),
            "empty": torch.zeros(0, 5),
            "scalar": torch.tensor(float(seed)),
        },
        "small": {f"layer.{number}.bias": values((number + 1, 30), seed + number) for number in range(12)},
        "step": seed,
        "texts": ["a", ("b", None)],
    }


def planner(nbytes: int = FROM, **options: Any) -> FastSavePlanner:
    """A planner that splits tensors of `nbytes`."""
    return FastSavePlanner(split_replicated=nbytes, **options)


def save(make: Any, uri: str, options: dict[str, Any] | None = None, **arguments: Any) -> None:
    """Save what `make` gives, split."""
    jobs.save(make(), uri, planner=planner(**options or {}), **arguments)


def check(make: Any, uri: str) -> None:
    """What `make` gives comes back through our reader."""
    jobs.check(uri, make())


def check_by_rows(make: Any, uri: str) -> None:
    """A flat state of plain tensors comes back sharded over the ranks of this group."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    jobs.check(uri, {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in make().items()})


def check_with_torch(make: Any, folder: Path) -> None:
    """torch's own reader finds it in a folder."""
    state = make()
    loaded = blank(state)
    dcp.load(loaded, storage_reader=FileSystemReader(folder), no_dist=True)
    assert_same(loaded, state)


def check_with_peer(make: Any, uri: str) -> None:
    """The peer's reader finds it."""
    state = make()
    loaded = blank(state)
    dcp.load(loaded, storage_reader=jobs.reference_reader(uri))
    assert_same(loaded, state)


def save_with_cached_plans(uri: str, seeds: list[int]) -> None:
    """Save one state after another with the cache of plans on: first whole, then split."""
    dcp.save(
        large(),
        storage_writer=S3StorageWriter(REGION, f"{uri}/whole"),
        planner=FastSavePlanner(enable_plan_caching=True),
    )
    for seed in seeds:
        writer = S3StorageWriter(REGION, f"{uri}/{seed}")
        dcp.save(large(seed), storage_writer=writer, planner=planner(enable_plan_caching=True))
    more = large(9) | {"more": values((2000, 40))}
    writer = S3StorageWriter(REGION, f"{uri}/more")
    dcp.save(more, storage_writer=writer, planner=planner(enable_plan_caching=True))
    jobs.check(f"{uri}/more", more)


def save_asynchronously(uri: str) -> None:
    """`mixed`, which changes while the save goes on."""
    state = mixed(3)
    pending = dcp.async_save(state, storage_writer=S3StorageWriter(REGION, uri), planner=planner())
    with torch.no_grad():
        for tensor in state["model"].values():
            tensor.zero_()
    pending.result()


def save_in_process(uri: str) -> None:
    """``async_save`` in a process of its own."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    dcp.async_save(
        large(4),
        storage_writer=S3StorageWriter(REGION, uri),
        planner=planner(),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    ).result()


def save_by_manager(uri: str, async_: bool) -> list[int]:
    """Two steps of a manager; the bytes that this rank sent for each."""
    reports = []
    with CheckpointManager(uri, region=REGION, split_replicated=FROM, async_=async_) as manager:
        for step in (1, 2):
            reports.append(manager.save(step, large(step)).result())
            dist.barrier()  # the sums of bytes count what this process sends
        state = blank(large())
        assert manager.restore(state, 1) is not None
        assert_same(state, large(1))
    return [report.bytes for report in reports]


def save_with_torchs_writer(folder: Path) -> None:
    """`mixed` into a local folder by torch's own writer."""
    dcp.save(mixed(), storage_writer=FileSystemWriter(folder), planner=planner())


def save_some_have(uri: str) -> None:
    """A tensor that ranks 1 and 2 have, and one that all have."""
    state = large() | ({"some": values((3001, 50), 7)} if dist.get_rank() in (1, 2) else {})
    jobs.save(state, uri, planner=planner())


def some_have() -> dict[str, Any]:
    """All that `save_some_have` saves."""
    return large() | {"some": values((3001, 50), 7)}


def hybrid() -> dict[str, Any]:
    """DTensors over a 2 x 2 mesh, replicated over one of its dimensions, over both, or over none."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    placements = {
        "rows": [Replicate(), Shard(0)],
        "columns": [Replicate(), Shard(1)],
        "all": [Replicate(), Replicate()],
        "none": [Shard(0), Shard(1)],
    }
    whole = hybrid_whole()
    return {name: distribute_tensor(whole[name], mesh, placed) for name, placed in placements.items()}


def hybrid_whole() -> dict[str, Any]:
    """The full tensors behind `hybrid`."""
    return {name: values((1021, 62), seed) for seed, name in enumerate(("rows", "columns", "all", "none"))}


def shards_of_fsdp() -> dict[str, Any]:
    """`group_jobs.sharded_state` by rows, and a plain tensor beside it."""
    return group_jobs.sharded_state(0) | large()


def whole_of_fsdp() -> dict[str, Any]:
    """The full tensors behind `shards_of_fsdp`."""
    return group_jobs.whole_state() | large()


class Labelled(torch.Tensor):
    """A tensor that is not plain."""


def labelled() -> dict[str, Any]:
    """A large tensor of a class of its own."""
    return {"labelled": values((4000, 64)).as_subclass(Labelled)}
