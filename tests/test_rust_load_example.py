"""The example of the Rust crate that loads without Python reads what torch and what our writer saved."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from support import jobs
from support.rust_examples import run
from support.states import values
from support.store import Store

pytestmark = pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not installed")


def state() -> dict[str, Any]:
    return {
        "matrix": values((300, 41), 1),
        "transposed": values((50, 30), 2, torch.bfloat16).t(),
        "large": values((3000, 1000), 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "ints": values((17,), 4, torch.int64),
        "text": "x",
    }


def shown(tensor: torch.Tensor) -> str:
    """What the example prints of a tensor, before its place."""
    raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {zlib.crc32(raw):08x}"


@pytest.mark.parametrize("writer", ["torch", "ours"])
def test_a_rust_program_reads_what_torch_and_what_we_saved(store: Store, tmp_path: Path, writer: str) -> None:
    if writer == "torch":
        dcp.save(state(), storage_writer=FileSystemWriter(tmp_path, thread_count=2), no_dist=True)
        store.upload(tmp_path)
    else:
        jobs.save(state(), store.uri, thread_count=2)
    lines = dict(line.split(" ", 1) for line in run("load", store.uri).splitlines())
    for name, value in state().items():
        if isinstance(value, torch.Tensor):
            assert lines.pop(name).startswith(f"{shown(value)} "), name
        else:
            assert int(lines.pop(name).split()[0]) > 0, name
    assert lines == {}
