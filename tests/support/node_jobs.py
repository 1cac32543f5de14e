"""What ranks of one node do with a large index, in tests/test_node_index.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3dcp import S3StorageReader, S3StorageWriter
from s3dcp._load import index as index_module
from support.states import assert_same, blank
from support.store import REGION

# The index of so many tensors with such names is longer than a MiB.
TENSORS, NAME_LENGTH = 1_200, 1_000


def state(seed: int = 0) -> dict[str, Any]:
    """Tensors with long names."""
    return {f"{number:0{NAME_LENGTH}}": torch.tensor([seed, number]) for number in range(TENSORS)}


def save(uri: str, seed: int = 0) -> None:
    """Save them in this process."""
    dcp.save(state(seed), storage_writer=S3StorageWriter(REGION, uri), no_dist=True)


@contextmanager
def on_a_node(memory: str, ranks: int) -> Iterator[None]:
    """As torchrun starts so many ranks of a node, whose shared memory is the folder `memory`."""
    before = index_module.SHARED_MEMORY
    index_module.SHARED_MEMORY, os.environ["LOCAL_WORLD_SIZE"] = memory, str(ranks)
    try:
        yield
    finally:
        index_module.SHARED_MEMORY = before
        del os.environ["LOCAL_WORLD_SIZE"]


def read(uri: str, memory: str, ranks: int) -> int:
    """Read the index; the tensors in it."""
    with on_a_node(memory, ranks):
        reader = S3StorageReader(REGION, uri)
        count = len(reader.read_metadata().state_dict_metadata)
        if dist.is_initialized():
            dist.barrier()  # as torch plans together before anyone reads data
    return count


def check(uri: str, memory: str, ranks: int, seed: int = 0) -> None:
    """Load it all."""
    with on_a_node(memory, ranks):
        wanted = state(seed)
        loaded = blank(wanted)
        dcp.load(loaded, storage_reader=S3StorageReader(REGION, uri))
    assert_same(loaded, wanted)
