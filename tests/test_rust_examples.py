"""The examples of the Rust crate, which have no Python in them, read and written by torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from s3dcp import S3StorageReader
from support.jobs import REGION
from support.states import assert_same, blank
from support.store import Store

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")


def run(example: str, *arguments: str) -> str:
    """What an example of s3dcp-checkpoint prints; it talks to the server of the ``AWS_*`` variables."""
    command = ["cargo", "build", "--locked", "--release", "-p", "s3dcp-checkpoint", "--example", example]
    built = subprocess.run(
        [*command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=1800, check=True
    )
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    (program,) = (
        message["executable"]
        for message in messages
        if message["reason"] == "compiler-artifact" and message["target"]["name"] == example and message["executable"]
    )
    done = subprocess.run(
        [program, *arguments], env=os.environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


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
