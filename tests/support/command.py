"""The command ``s3dcp`` as a shell runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    command = [sys.executable, "-m", "s3dcp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def told(*arguments: object) -> dict[str, Any]:
    """What it tells with ``--json``; it must succeed."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def refused(*arguments: object) -> str:
    """What it says on standard error when it ends with exit code 1."""
    done = run(*arguments)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def killed(*arguments: object, longest: float, chance: random.Random) -> bool:
    """Kills it at a random moment of its first `longest` seconds; whether that came before its end."""
    command = [sys.executable, "-m", "s3dcp", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(chance.uniform(0, longest))
        process.kill()
        return process.wait() != 0
