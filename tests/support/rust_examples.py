"""The examples of the Rust crate, built by cargo."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
