"""Saves a sharded model, or loads it with any number of ranks: ``torchrun --nproc-per-node 4 reshard.py save s3://…``."""

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from s3dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter

ROWS, COLUMNS = 4096, 256


def main(what: str, path: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(ROWS * COLUMNS, dtype=torch.float32).view(ROWS, COLUMNS)
    if what == "save":
        state = {"weight": distribute_tensor(whole, mesh, [Shard(0)])}
        dcp.save(state, storage_writer=S3StorageWriter(None, path, prefix_strategy=HexPrefixStrategy()))
    else:
        # Columns here, rows when it was saved: each rank fetches what it needs of every shard file.
        state = {"weight": distribute_tensor(torch.zeros_like(whole), mesh, [Shard(1)])}
        dcp.load(state, storage_reader=S3StorageReader(None, path))
        mine = state["weight"].to_local()
        assert torch.equal(mine, whole.chunk(dist.get_world_size(), dim=1)[dist.get_rank()])
    print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {what} of {tuple(state['weight'].to_local().shape)}")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
