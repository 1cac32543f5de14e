"""GPU tensors: the same staging path as strided CPU tensors, through pinned buffers."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3dcp import S3StorageReader, S3StorageWriter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_gpu_tensors_come_back_bit_equal(s3dcp_bucket: str) -> None:
    path = f"s3://{s3dcp_bucket}/gpu"
    state = {
        "large": torch.randn(3000, 2000, device="cuda"),
        "strided": torch.randn(64, 32, device="cuda").t(),
        "bf16": torch.randn(1000, device="cuda").to(torch.bfloat16),
        "scalar": torch.tensor(3.0, device="cuda"),
    }
    dcp.save(state, storage_writer=S3StorageWriter("us-east-1", path), no_dist=True)
    on_gpu = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    on_cpu = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items()}
    for loaded in (on_gpu, on_cpu):
        dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", path), no_dist=True)
        for name, tensor in state.items():
            assert torch.equal(loaded[name].cpu(), tensor.cpu()), name
