"""Shards of a model on S3, whole safetensors files of them, and the model back from those.

Run with ``torchrun --nproc-per-node 2 examples/frameworks/huggingface.py``.
"""

import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from s3dcp.huggingface import S3HuggingFaceReader, S3HuggingFaceWriter

path = sys.argv[1] if len(sys.argv) > 1 else "s3://checkpoints/model"
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
torch.manual_seed(1)
whole = {"up.weight": torch.randn(64, 16), "down.weight": torch.randn(16, 64)}
shards = {
    "up.weight": distribute_tensor(whole["up.weight"], mesh, [Shard(0)]),
    "down.weight": distribute_tensor(whole["down.weight"], mesh, [Shard(1)]),
}
writer = S3HuggingFaceWriter(
    None, path, {"up.weight": 1, "down.weight": 2}, save_distributed=True, enable_consolidation=True
)
dcp.save(shards, storage_writer=writer)

loaded = {name: torch.empty_like(tensor) for name, tensor in whole.items()}
dcp.load(loaded, storage_reader=S3HuggingFaceReader(None, path))
assert all(torch.equal(loaded[name], whole[name]) for name in whole)
if dist.get_rank() == 0:
    print(f"{path}: {sum(tensor.numel() for tensor in loaded.values())} values are back")
dist.destroy_process_group()
