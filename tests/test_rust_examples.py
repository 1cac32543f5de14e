"""The examples of the Rust crate, which have no Python in them, read and written by torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from s3dcp import S3StorageReader
from support.jobs import REGION
from support.rust_examples import run
from support.states import assert_same, blank
from support.store import Store

pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")


def numbers(first: int, *shape: int) -> torch.Tensor:
    """The tensors of the examples count up."""
    count = torch.Size(shape).numel()
    return torch.arange(first, first + count, dtype=torch.float32).reshape(shape)


def saved() -> dict[str, Any]:
    """What ``examples/save.rs`` saves."""
    return {"weight": numbers(0, 3, 4), "bias": numbers(0, 4), "step": numbers(0), "rows": numbers(0, 6, 2)}


def test_what_a_rust_program_saves_is_loaded_by_us_and_by_torch(store: Store, tmp_path: Path) -> None:
    assert "5 items" in run("save", store.uri)
    for reader in (S3StorageReader(REGION, store.uri), FileSystemReader(store.download(tmp_path))):
        loaded = blank(saved())
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, saved())
