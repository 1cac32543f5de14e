"""What groups of ranks load together in tests/test_share.py and tests/test_share_failures.py."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from s3dcp import S3ClientConfig, S3StorageReader
from s3dcp._load import exchange, share
from support import group_jobs, jobs
from support.states import assert_same, blank, values
from support.store import REGION

LARGE = (3 << 20,)  # 12 MiB


def replicated(seed: int = 0) -> dict[str, Any]:
    """As DDP has it: tensors of more and of less than a slice, and objects."""
    return {
        "large": values(LARGE, seed),
        "second": values((1500, 1000), seed + 1, torch.bfloat16),
        "small": {f"t{number}": values((number, 7), seed + number) for number in range(60)},
        "scalar": torch.tensor(3.5 + seed),
        "empty": torch.empty(0, 4),
        "flags": values((3000,), seed, torch.bool),
        "complex": values((70, 30), seed, torch.complex64),
        "steps": [seed, 2, 3],
        "name": "run" * 100,
    }


def nbytes(state: Any) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(state, dict):
        return sum(map(nbytes, state.values()))
    return state.numel() * state.element_size() if isinstance(state, torch.Tensor) else 0


def save(uri: str, seed: int = 0) -> None:
    """Save `replicated` in this process."""
    jobs.save(replicated(seed), uri, no_dist=True)


def received(uri: str, into: dict[str, Any], **arguments: Any) -> int:
    """Load into a state; the bytes that this rank got from S3."""
    reader = S3StorageReader(REGION, uri, **arguments)
    before = reader.fs.client.stats()
    dcp.load(into, storage_reader=reader)
    got: int = reader.fs.client.stats().since(before).bytes_received
    dist.barrier()
    return got


def check(uri: str, seed: int = 0, **arguments: Any) -> int:
    """Load `replicated`; the bytes that this rank got from S3."""
    state = replicated(seed)
    into = blank(state)
    got = received(uri, into, **arguments)
    assert_same(into, state)
    in_step()
    return got


def in_step() -> None:
    """Collectives of the group that training uses still fit together."""
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, dist.get_rank())
    assert ranks == list(range(dist.get_world_size()))
    total = torch.ones(3) * dist.get_rank()
    dist.all_reduce(total)
    assert total.tolist() == [sum(ranks)] * 3


def check_odd_targets(uri: str) -> int:
    """Into tensors of another dtype, not contiguous, of another class, and for some ranks only some of it."""
    whole = replicated()
    into = {
        "large": torch.nn.Parameter(torch.zeros(LARGE)),
        "second": torch.zeros(1000, 1500, dtype=torch.bfloat16).t(),
        "small": {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in whole["small"].items()},
        "flags": torch.zeros(3000, 2, dtype=torch.bool)[:, 1],
    }
    if dist.get_rank() % 2:
        del into["second"]
        into["complex"] = torch.zeros(70, 30, dtype=torch.complex64).conj()
    got = received(uri, into, share=True)
    for name in set(into) - {"small"}:
        assert_same(into[name].detach().resolve_conj(), whole[name], name)
    assert_same(into["small"], {name: tensor.double() for name, tensor in whole["small"].items()})
    in_step()
    return got


def grid() -> dict[str, Any]:
    """DTensors over a 2 x 2 mesh, as HSDP has them: two replicas of two shards each, columns too."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return {
        "rows": distribute_tensor(values((4000, 600), 1), mesh, [Replicate(), Shard(0)]),
        "columns": distribute_tensor(values((3000, 400), 2), mesh, [Replicate(), Shard(1)]),
        "all": distribute_tensor(values((1000, 400), 3), mesh, [Replicate(), Replicate()]),
        "none": distribute_tensor(values((1000, 400), 4), mesh, [Shard(0), Shard(1)]),
    }


def save_grid(uri: str) -> None:
    """Save `grid`."""
    jobs.save(grid(), uri)


def check_grid(uri: str, shared: bool) -> int:
    """Load `grid`; the bytes that this rank got from S3."""
    state = grid()
    into = blank(state)
    got = received(uri, into, share=shared)
    assert_same(into, state)
    in_step()
    return got


def check_sharded(uri: str, dim: int, shared: bool) -> int:
    """Load `group_jobs.sharded_state` along a dimension."""
    state = group_jobs.sharded_state(dim)
    into = blank(state)
    got = received(uri, into, share=shared)
    assert_same(into, state)
    in_step()
    return got


def load_model(uri: str, wrap: str) -> dict[str, torch.Tensor]:
    """`group_jobs.load_model` with a reader that shares."""
    plain = jobs.load
    jobs.load = lambda state, uri, **arguments: plain(state, uri, share=True, **arguments)
    try:
        return group_jobs.load_model(uri, wrap)
    finally:
        jobs.load = plain


def check_subgroup(uri: str, members: list[int], told: bool) -> int:
    """Some ranks load as a group of their own, which the reader is told of or not; the bytes from S3."""
    group = dist.new_group(members)
    got = 0
    if dist.get_rank() in members:
        state = replicated()
        into = blank(state)
        reader = S3StorageReader(REGION, uri, share=True, process_group=group if told else None)
        before = reader.fs.client.stats()
        dcp.load(into, storage_reader=reader, process_group=group)
        got = reader.fs.client.stats().since(before).bytes_received
        assert_same(into, state)
    in_step()
    return got


def check_no_dist(uri: str) -> int:
    """Every rank loads by itself."""
    state = replicated()
    into = blank(state)
    reader = S3StorageReader(REGION, uri, share=True)
    before = reader.fs.client.stats()
    dcp.load(into, storage_reader=reader, no_dist=True)
    assert_same(into, state)
    got: int = reader.fs.client.stats().since(before).bytes_received
    in_step()
    return got


def memory_of(uri: str) -> float:
    """MiB by which the peak of resident memory grows in a load."""
    state = {"large": torch.ones(LARGE_STATE)}
    reader = S3StorageReader(REGION, uri, share=True)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    resident = _memory("VmRSS")
    dcp.load(state, storage_reader=reader)
    grown = (_memory("VmHWM") - resident) / 2**20
    assert torch.equal(state["large"], torch.arange(LARGE_STATE[0], dtype=torch.float32))
    return grown


LARGE_STATE = (64 << 20,)  # 256 MiB


def save_large(uri: str) -> None:
    """Save a large state in this process."""
    jobs.save({"large": torch.arange(LARGE_STATE[0], dtype=torch.float32)}, uri, no_dist=True)


def _memory(field: str) -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024


def check_by_itself(uri: str, worth: bool) -> tuple[int, list[Any]]:
    """Load with ``share="auto"``, which tries both ways and finds `worth`; the bytes from S3, and what was measured."""
    told: list[Any] = []

    def is_worth(measured: Any) -> bool:
        told.append(sorted(measured))
        return worth

    before = (share.AUTO_BYTES, share.TRIAL_BYTES, exchange.is_worth)
    share.AUTO_BYTES, share.TRIAL_BYTES, exchange.is_worth = 1 << 20, (1 << 20, 4 << 20, 4 << 20), is_worth
    try:
        return check(uri), told
    finally:
        share.AUTO_BYTES, share.TRIAL_BYTES, exchange.is_worth = before


def how_passed_on(uri: str, without: list[int]) -> dict[str, int]:
    """Load where these ranks have no memory that others read: how many ranks have read this one's."""
    told: dict[str, int] = {}
    make, meet = exchange.NodeMemory.make, exchange.Node.meet

    def none(slots: int, slot_bytes: int) -> Any:
        raise OSError("no memory in this test")

    def noted(store: Any, rank: int, ranks: int) -> exchange.Node:
        node = meet(store, rank, ranks)
        told["readers"] = len(node.readers)
        return node

    exchange.Node.meet = staticmethod(noted)  # type: ignore[method-assign]
    if dist.get_rank() in without:
        exchange.NodeMemory.make = staticmethod(none)  # type: ignore[method-assign]
    try:
        check(uri, share=True)
        return told
    finally:
        exchange.NodeMemory.make = staticmethod(make)  # type: ignore[method-assign]
        exchange.Node.meet = staticmethod(meet)  # type: ignore[method-assign]


# -- what fails


class Failing(DefaultLoadPlanner):
    """Fails on rank 1, in one of its hooks."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        if dist.get_rank() == 1:
            setattr(self, hook, self.fail)

    def fail(self, *args: Any) -> Any:
        """As a planner of a user's may."""
        raise RuntimeError("a planner that fails")


def load_failing(uri: str, hook: str) -> None:
    """A load in which a planner fails on rank 1."""
    planner = Failing(hook)
    exchange.CONNECT_SECONDS = 2.0
    try:
        dcp.load(blank(replicated()), storage_reader=S3StorageReader(REGION, uri, share=True), planner=planner)
    finally:
        exchange.CONNECT_SECONDS = 60.0


def how_it_failed(uri: str, hook: str = "") -> dict[int, tuple[str, str]]:
    """What each rank raised, by rank, as torch tells every rank."""
    from torch.distributed.checkpoint.api import CheckpointException

    config = S3ClientConfig(max_attempts=2, read_timeout=2.0, deadline=5.0)
    try:
        if hook:
            load_failing(uri, hook)
        else:
            reader = S3StorageReader(REGION, uri, config, share=True)
            dcp.load(blank(replicated()), storage_reader=reader)
    except CheckpointException as error:
        in_step()
        return {rank: (type(each[0]).__name__, str(each[0])) for rank, each in error.failures.items()}
    in_step()
    return {}


# -- killed ranks, in a zygote


def load_until_killed(uri: str, deadline: float) -> Any:
    """A load with an exchange of so many seconds at most."""
    exchange.CONNECT_SECONDS = deadline
    exchange.GRACE_SECONDS = deadline
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    state = replicated()
    into = blank(state)
    reader = S3StorageReader(REGION, uri, S3ClientConfig(deadline=1.0, read_timeout=1.0), share=True)

    planner, is_first = DefaultLoadPlanner(), dist.get_rank() == 0
    metadata = reader.read_metadata()
    planner.set_up_planner(into, metadata, is_first)
    reader.set_up_storage_reader(metadata, is_first)
    plans: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(plans, reader.prepare_local_plan(planner.create_local_plan()))
    # torch's coordinator makes the plans of all
    made = [reader.prepare_global_plan(plans) if is_first else None]
    dist.broadcast_object_list(made)
    plan = made[0][dist.get_rank()]
    assert plan.storage_data.share is not None

    def run() -> str:
        try:
            reader.read_data(plan, planner).wait()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for name, tensor in state["small"].items():
            assert torch.equal(into["small"][name], tensor)
        assert torch.equal(into["large"], state["large"])
        return "loaded"

    return run
