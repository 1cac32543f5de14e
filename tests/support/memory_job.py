"""Saves and loads a large state and prints the extra resident memory of each at its peak, in bytes.

``python -m support.memory_job plain|strided|converted MIB``
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from s3dcp import S3StorageReader, S3StorageWriter
from support.store import REGION

MIB = 1024 * 1024
URI = "s3://memory/checkpoint"


def resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def large(kind: str, mib: int, fill: float) -> dict[str, torch.Tensor]:
    """Four tensors of `mib` in all, every page of them touched, and a small one."""
    rows = mib * MIB // 4 // 2 // 4096
    state = {}
    for number in range(4):
        tensor = torch.empty(rows, 4096, dtype=torch.bfloat16).fill_(fill + number)
        state[f"layer{number}"] = tensor.t() if kind == "strided" else tensor
    return state | {"small": torch.full((3,), fill)}


def main(kind: str, mib: int) -> dict[str, int]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    state = large(kind, mib, 1.0)
    extra = {}

    def measured(name: str, work: object) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        work()  # type: ignore[operator]
        extra[name] = resident("VmHWM") - before

    writer, reader = S3StorageWriter(REGION, URI), S3StorageReader(REGION, URI)
    measured("save", lambda: dcp.save(state, storage_writer=writer))
    # A save pays for the client; what it keeps is not the load's.
    if kind == "converted":
        state = {name: tensor.float().fill_(0) for name, tensor in state.items()}
    else:
        for tensor in state.values():
            tensor.zero_()
    measured("load", lambda: dcp.load(state, storage_reader=reader))
    for number in range(4):
        got = state[f"layer{number}"]
        assert got[0, 0] == got[-1, -1] == got[got.shape[0] // 2, 17] == 1.0 + number, number
    return extra


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
