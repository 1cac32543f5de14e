"""The ``s3dcp`` command, as a person or a program runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command; it must end with this code, and without a panic."""
    done = subprocess.run(
        [sys.executable, "-m", "s3dcp", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert "panicked" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout[-2000:], done.stderr)
    return done


def told(*arguments: str, code: int = 0) -> Any:
    """What the command says as JSON."""
    return json.loads(run(*arguments, "--json", code=code).stdout)
