"""Saves a state to S3 and loads it back; the README's quickstart."""

import torch
import torch.distributed.checkpoint as dcp

from s3dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter

path = "s3://checkpoints/quickstart"
state = {"weight": torch.randn(1024, 1024), "step": 7}
dcp.save(state, storage_writer=S3StorageWriter("us-east-1", path, prefix_strategy=HexPrefixStrategy()))
loaded = {"weight": torch.empty(1024, 1024), "step": 0}
dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", path))
assert loaded["step"] == 7
assert torch.equal(loaded["weight"], state["weight"])
