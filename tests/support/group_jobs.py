"""What groups of ranks save and load in tests/test_distributed.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from s3dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter
from support import jobs
from support.states import assert_same, blank, training_state, values
from support.store import REGION

# -- DTensors of every placement

WHOLE = {"matrix": (13, 10), "tall": (40, 3), "cube": (5, 6, 7), "row": (11,), "tiny": (2, 2)}


def whole_state() -> dict[str, torch.Tensor]:
    """The full tensors behind `sharded_state`."""
    return {name: values(shape, seed) for seed, (name, shape) in enumerate(WHOLE.items())}


def sharded_state(dim: int | None) -> dict[str, Any]:
    """`whole_state`, sharded along `dim` where there is one (else the last), or replicated for None."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    state = {}
    for name, tensor in whole_state().items():
        placement = Replicate() if dim is None else Shard(min(dim, tensor.dim() - 1))
        state[name] = distribute_tensor(tensor, mesh, [placement])
    return state


def save_sharded(uri: str, dim: int | None, **arguments: Any) -> None:
    """Save `sharded_state`."""
    jobs.save(sharded_state(dim), uri, **arguments)


def check_sharded(uri: str, dim: int | None) -> None:
    """Load `sharded_state`, sharded along `dim`, whatever the saved sharding was."""
    jobs.check(uri, sharded_state(dim))


def save_whole(uri: str) -> None:
    """Save the full tensors."""
    jobs.save(whole_state(), uri)


def check_whole(uri: str) -> None:
    """Load the full tensors."""
    jobs.check(uri, whole_state())


def grid_state() -> dict[str, Any]:
    """Tensors over a 2 x 2 mesh: sharded in both dimensions, or in one and replicated."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    return {
        "both": distribute_tensor(values((9, 11), 1), mesh, [Shard(0), Shard(1)]),
        "same dimension": distribute_tensor(values((10, 3), 2), mesh, [Shard(0), Shard(0)]),
        "hybrid": distribute_tensor(values((7, 4), 3), mesh, [Replicate(), Shard(0)]),
        "columns": distribute_tensor(values((4, 9), 4), mesh, [Shard(1), Replicate()]),
    }


def save_grid(uri: str) -> None:
    """Save `grid_state`."""
    jobs.save(grid_state(), uri)


def check_grid(uri: str) -> None:
    """Load `grid_state`."""
    jobs.check(uri, grid_state())


def check_grid_whole(uri: str) -> None:
    """Load the full tensors behind `grid_state` in one process."""
    whole = {
        "both": values((9, 11), 1),
        "same dimension": values((10, 3), 2),
        "hybrid": values((7, 4), 3),
        "columns": values((4, 9), 4),
    }
    jobs.check(uri, whole)


def save_misfit(uri: str) -> None:
    """DTensors whose local shards are not contiguous, and of a dtype of two bytes."""
    jobs.save(misfit_state(), uri)


def misfit_state() -> dict[str, Any]:
    """Local shards that are views."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rank = dist.get_rank()
    local = values((6, 5), rank, torch.bfloat16).t()
    return {"t": DTensor.from_local(local, mesh, [Shard(0)], run_check=False)}


def check_misfit(uri: str) -> None:
    """They come back."""
    want = misfit_state()
    got = blank(want)
    jobs.load(got, uri)
    assert_same(got["t"].to_local(), want["t"].to_local())


# -- models


def model(seed: int) -> torch.nn.Module:
    """A small network, the same on every rank."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(9, 13), torch.nn.ReLU(), torch.nn.Linear(13, 6), torch.nn.LayerNorm(6))


def trained(seed: int, wrap: str) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A wrapped model and its optimizer after one step."""
    wrapped = wrapped_model(seed, wrap)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01)
    wrapped(values((4, 9), dist.get_rank() if dist.is_initialized() else 0)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return wrapped, optimizer


def wrapped_model(seed: int, wrap: str) -> torch.nn.Module:
    """`model` under FSDP2, DDP or as it is."""
    plain = model(seed)
    if wrap == "ddp":
        return DistributedDataParallel(plain)
    if wrap == "fsdp":
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (plain[0], plain[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(plain, mesh=mesh)
    return plain


def save_model(uri: str, wrap: str, **arguments: Any) -> dict[str, torch.Tensor]:
    """Train one step and save model and optimizer; gives the full parameters."""
    wrapped, optimizer = trained(1, wrap)
    model_state, optimizer_state = get_state_dict(wrapped, optimizer)
    jobs.save({"model": model_state, "optim": optimizer_state, "step": 1}, uri, **arguments)
    return full_parameters(wrapped)


def load_model(uri: str, wrap: str) -> dict[str, torch.Tensor]:
    """Load into another model and optimizer; gives the full parameters and optimizer averages."""
    wrapped, optimizer = trained(2, wrap)
    model_state, optimizer_state = get_state_dict(wrapped, optimizer)
    state = {"model": model_state, "optim": optimizer_state, "step": 0}
    jobs.load(state, uri)
    assert state["step"] == 1
    set_state_dict(wrapped, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return full_parameters(wrapped)


def full_parameters(wrapped: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters, whole, on every rank."""
    return get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))


# -- every rank its own values (no collectives)


def own_state(seed: int = 0) -> dict[str, Any]:
    """The same names and shapes on every rank, other values on each."""
    rank = dist.get_rank()
    return {
        "x": values((8, 4), 100 * seed + rank),
        "many": {f"t{number}": torch.full((number + 1,), float(rank + seed)) for number in range(4)},
        "rank": rank,
    }


def save_own(uri: str, seed: int = 0, epoch: int | None = None, **arguments: Any) -> None:
    """Save `own_state` without collectives."""
    strategy = HexPrefixStrategy(epoch_num=epoch)
    jobs.save(own_state(seed), uri, use_collectives=False, prefix_strategy=strategy, **arguments)


def check_own(uri: str, seed: int = 0) -> None:
    """Every rank gets its own values back."""
    jobs.check(uri, own_state(seed))


def load_own(uri: str) -> None:
    """Load `own_state`."""
    jobs.load(blank(own_state()), uri)


# -- strategies and plans


def save_with_strategy(uri: str, strategy: Any, seed: int = 0, thread_count: int = 1) -> None:
    """Save the training state with a strategy that was made elsewhere."""
    jobs.save(training_state(seed), uri, prefix_strategy=strategy, thread_count=thread_count)


def same_place(rank: int) -> str:
    """A careless strategy: one prefix for all ranks."""
    return "all/"


def save_epochs_with_cached_plan(uri: str, epochs: list[int], one_writer: bool) -> None:
    """Save one epoch after another with torch's plan cache on."""
    from torch.distributed.checkpoint.planner import SavePlanner

    caches = [getattr(SavePlanner, name) for name in vars(SavePlanner) if name.startswith("_cached")]
    strategy = HexPrefixStrategy()
    writer = S3StorageWriter(REGION, uri, prefix_strategy=strategy)
    try:
        for epoch in epochs:
            strategy.epoch_num = epoch
            if not one_writer:
                writer = S3StorageWriter(REGION, uri, prefix_strategy=HexPrefixStrategy(epoch_num=epoch))
            planner = DefaultSavePlanner(enable_plan_caching=True)
            dcp.save(training_state(epoch), storage_writer=writer, planner=planner)
    finally:
        for cache in caches:
            if isinstance(cache, dict):
                cache.clear()


def save_in_subgroup(uri: str, members: list[int]) -> None:
    """Only `members` save, as a process group of their own."""
    group = dist.new_group(members)
    if dist.get_rank() in members:
        state = {"x": values((6, 2), 4), "step": 9}
        dcp.save(state, storage_writer=S3StorageWriter(REGION, uri), process_group=group)
    dist.barrier()


def check_in_subgroup(uri: str, members: list[int]) -> None:
    """Only `members` load."""
    group = dist.new_group(members)
    if dist.get_rank() in members:
        state = {"x": torch.zeros(6, 2), "step": 0}
        dcp.load(state, storage_reader=S3StorageReader(REGION, uri), process_group=group)
        assert_same(state, {"x": values((6, 2), 4), "step": 9})
    dist.barrier()


def save_alone_on_rank_1(uri: str) -> None:
    """One rank saves by itself, the others do something else."""
    if dist.get_rank() == 1:
        jobs.save({"x": values((6, 2), 4), "step": 9}, uri, no_dist=True)
    dist.barrier()
    state = {"x": torch.zeros(6, 2), "step": 0}
    jobs.load(state, uri, no_dist=True)
    assert_same(state, {"x": values((6, 2), 4), "step": 9})


# -- a checkpoint that changes between the ranks' looks at it


class ReadsInTurn(S3StorageReader):
    """Rank 0 reads the index of epoch 1, then rank 1 saves epoch 2 and reads its index: both could be loaded."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        if dist.get_rank() == 0:
            metadata = super().read_metadata(*args, **kwargs)
            dist.barrier()
            return metadata
        dist.barrier()
        jobs.save({"x": torch.full((4,), 2.0)}, str(self.path), ("Hex", {"epoch_num": 2}), no_dist=True)
        return super().read_metadata(*args, **kwargs)


def load_while_it_is_replaced(uri: str) -> None:
    """A load in which two ranks see different checkpoints."""
    dcp.load({"x": torch.zeros(4)}, storage_reader=ReadsInTurn(REGION, uri))
