"""AddressSanitizer sees tensor memory where it watches, else its silence would say nothing (`make sanitize`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MAPS = Path("/proc/self/maps")

pytestmark = pytest.mark.skipif(
    not MAPS.exists() or "libasan" not in MAPS.read_text(), reason="only under AddressSanitizer (make sanitize)"
)

START = """
import torch
from s3dcp import testing
from s3dcp._client import client_for
from s3dcp.client_config import S3ClientConfig
from support.loads import first_bytes

server = testing.server(buckets=["bucket"])
server.__enter__()
client = client_for("us-east-1", config=S3ClientConfig(max_attempts=1))
SIZE = 100_000
tensor = torch.zeros(SIZE, dtype=torch.uint8)


def upload(size):
    writer = client.object_writer("bucket", "k")
    writer.raw_memory(tensor.data_ptr(), size, tensor)
    writer.start_finishing()
    writer.wait()


def download(size):
    load = client.load("bucket", "", False)
    load.start([(first_bytes(load, "k", size), tensor.data_ptr())], tensor).wait()
"""


def ended(code: str) -> str:
    """What a process says that runs this after `START`."""
    done = subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, timeout=300, check=False
    )
    return "" if done.returncode == 0 else done.stderr


def test_right_places_are_read_and_written() -> None:
    assert ended("upload(SIZE); download(SIZE)") == ""


def test_a_read_past_the_end_of_a_tensor_ends_the_process() -> None:
    assert "heap-buffer-overflow" in ended("upload(SIZE + 64)")


def test_a_write_past_the_end_of_a_tensor_ends_the_process() -> None:
    assert "heap-buffer-overflow" in ended(
        "upload(SIZE); tensor = torch.zeros(SIZE - 64, dtype=torch.uint8); download(SIZE)"
    )


def test_a_write_to_a_tensor_that_is_gone_ends_the_process() -> None:
    gone = (
        "upload(SIZE); gone = tensor.data_ptr(); del tensor; tensor = type('', (), {'data_ptr': lambda self: gone})()"
    )
    assert "heap-use-after-free" in ended(f"{gone}; download(SIZE)")
