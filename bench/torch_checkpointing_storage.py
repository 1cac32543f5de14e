"""torch_checkpointing on S3 beside its local storage on tmpfs: seconds of CPU per GiB of one save and one load.

``python bench/torch_checkpointing_storage.py`` needs torch_checkpointing (tests/frameworks/requirements.txt), /dev/shm
and three times the memory of the state. The embedded server runs in a process of its own, and its CPU is not counted.
Each number is the median of `--rounds`, taken in turn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.config import SyncCheckpointSaverConfig
from torch_checkpointing.storage.base_storage import StorageConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from s3dcp.torch_checkpointing import S3StorageConfig

TENSORS = 32
SERVE = """
import sys
from s3dcp import testing
with testing.server(["bench"]) as server:
    print(server.endpoint_url, server.access_key, server.secret_key, flush=True)
    sys.stdin.read()
"""


def measure(storage: StorageConfig, path: str, state: list[torch.Tensor]) -> dict[str, tuple[float, float]]:
    """CPU and wall seconds of a save and of a load."""
    config = CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=storage)
    manager, found = CheckpointManager(config), {}
    into = {"model": [torch.zeros_like(tensor) for tensor in state]}
    for name, step in (
        ("save", lambda: manager.save(path, {"model": state})),
        ("load", lambda: manager.load(path, into=into)),
    ):
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        found[name] = time.process_time() - cpu, time.perf_counter() - wall
    assert all(map(torch.equal, into["model"], state))
    storage.create_storage().rmdir(Path(path))
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gib", type=float, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    state = [torch.randn(int(given.gib * 2**30 / 4 / TENSORS)) for _ in range(TENSORS)]
    folder = tempfile.mkdtemp(dir="/dev/shm")
    server = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        url, access, secret = server.stdout.readline().split()
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID=access, AWS_SECRET_ACCESS_KEY=secret)
        places = {
            "local, tmpfs": (LocalFileSystemStorageConfig(), f"{folder}/step"),
            "s3dcp": (S3StorageConfig("us-east-1"), "s3://bench/run/step"),
        }
        rounds = [{name: measure(*place, state) for name, place in places.items()} for _ in range(given.rounds)]
        print("| storage | save, CPU-s/GiB | load, CPU-s/GiB | save, s | load, s |\n| --- | --- | --- | --- | --- |")
        for name in places:
            columns = []
            for which in (0, 1):
                for step in ("save", "load"):
                    value = statistics.median(each[name][step][which] for each in rounds)
                    columns.append(f"{value / (1 if which else given.gib):.2f}")
            print(f"| {name} | {' | '.join(columns)} |")
    finally:
        server.communicate()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
