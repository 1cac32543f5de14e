"""Saves for ranks that are killed (see `support.zygote`), and what they left."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from s3dcp import HexPrefixStrategy, NotFound, S3ClientConfig, S3StorageWriter, _native
from s3dcp.catalogue import keep, list_checkpoints
from support import group_jobs, jobs
from support.states import assert_same, blank, training_state
from support.store import REGION, Store
from support.strategies import Spec

MIB = 1024 * 1024
PART_SIZE = 5 * MIB
ROWS_PER_RANK = 6


def save(uri: str, seed: int, spec: Spec | None = None) -> Callable[[], object]:
    """A save of the training state: a file of one request per rank."""
    state = training_state(seed)
    return lambda: jobs.save(state, uri, spec)


def save_async(uri: str, seed: int) -> Callable[[], object]:
    """The same in a thread of every rank."""
    state = training_state(seed)
    return lambda: dcp.async_save(state, storage_writer=S3StorageWriter(REGION, uri)).result()


def save_in_parts(uri: str, seed: int) -> Callable[[], object]:
    """A save in which every rank uploads a file in two parts."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    local = large_state(seed)["large"].chunk(dist.get_world_size())[dist.get_rank()]
    state = {"large": DTensor.from_local(local, mesh, [Shard(0)], run_check=False), "step": seed}
    return lambda: jobs.save(state, uri, s3client_config=S3ClientConfig(part_size=PART_SIZE))


def large_state(seed: int) -> dict[str, Any]:
    """What `save_in_parts` saves, whole."""
    rows = 4 * ROWS_PER_RANK
    return {"large": (torch.arange(rows * MIB // 4, dtype=torch.int32) + seed).view(rows, -1), "step": seed}


def save_own(uri: str, seed: int) -> Callable[[], object]:
    """A save without collectives."""
    return lambda: group_jobs.save_own(uri, seed)


def find_own(uri: str) -> Callable[[], int]:
    """The seed of the state that `save_own` left for this rank."""

    def find() -> int:
        loaded = jobs.load(blank(group_jobs.own_state()), uri)
        seed = int(loaded["many"]["t0"].item()) - dist.get_rank()
        assert_same(loaded, group_jobs.own_state(seed))
        return seed

    return find


def find(uri: str, state: Callable[[int], dict[str, Any]] = training_state) -> int | None:
    """The seed of the state that is at a path, all of it of one save; None where there is no checkpoint."""
    first = state(0)
    try:
        loaded = jobs.load(blank(first), uri, no_dist=True)
    except CheckpointException as error:
        cause = error.failures[0][0]
        if isinstance(cause, NotFound) and cause.key is not None and cause.key.endswith(".metadata"):
            return None
        raise
    seed = loaded["step"] - first["step"]
    assert_same(loaded, state(seed))
    return seed  # type: ignore[no-any-return]


def partly_frozen(seed: int) -> dict[str, Any]:
    """A state of which most is the same for every seed."""
    frozen = {f"frozen{number}": torch.arange(5000) + number for number in range(8)}
    moving = {f"moving{number}": torch.arange(300) + seed for number in range(4)}
    return {**frozen, **moving, "step": seed}


def change(uri: str, seed: int, epoch: int, how: str, beside: str | None) -> Callable[[], object]:
    """All ranks but the last save an epoch, incrementally or all of it, while the last deletes `beside`."""
    last = dist.get_world_size() - 1
    savers = dist.new_group(list(range(last)))
    state = partly_frozen(seed)
    strategy = HexPrefixStrategy(epoch_num=epoch)
    writer = S3StorageWriter(REGION, uri, prefix_strategy=strategy, incremental=how == "save")

    def act() -> None:
        if dist.get_rank() < last:
            if how != "nothing":
                dcp.save(state, storage_writer=writer, process_group=savers)
        elif beside == "keep":
            keep(uri, last=2, delete=True, region=REGION)
        elif beside == "prune":
            prune_all(uri)

    return act


def prune_all(uri: str) -> None:
    """Delete all leftovers, however young."""
    _native.main(["s3dcp", "prune", uri, "--older-than", "0s", "--delete", "--region", REGION])


def seeds(uri: str, patience: float) -> dict[int, int]:
    """The seeds of the checkpoints of all epochs, which are whole; requests of killed ranks may yet be carried out."""
    time.sleep(patience)
    found = {}
    for checkpoint in list_checkpoints(uri, region=REGION):
        assert checkpoint.complete, checkpoint
        assert checkpoint.step is not None
        seed = find(checkpoint.uri, partly_frozen)
        if seed is not None:
            found[checkpoint.step] = seed
    find(uri, partly_frozen)
    return found


def leftovers(store: Store) -> tuple[set[str], set[str]]:
    """The shard files that no index names, and those that intents name."""
    named, intended = set(), set()
    for name in store.names():
        if name.endswith(".metadata"):
            for info in pickle.loads(store.read(name)).storage_data.values():
                named.add(info.relative_path.removeprefix("../"))
        elif name.startswith(".s3dcp-intent-"):
            intended |= set(json.loads(store.read(name))["files"])
    return set(store.shards()) - named, intended
