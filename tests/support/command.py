"""The ``s3dcp`` command, as a person or a program runs it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "s3dcp", *map(str, arguments)]


def run(*arguments: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run the command; it must end with this code, if any is told, and without a panic."""
    done = subprocess.run(_command(arguments), capture_output=True, text=True, timeout=120, check=False)
    assert "panicked" not in done.stderr, done.stderr
    assert code in (None, done.returncode), (done.returncode, done.stdout[-2000:], done.stderr)
    return done


def told(*arguments: object, code: int = 0) -> Any:
    """What the command says as JSON."""
    return json.loads(run(*arguments, "--json", code=code).stdout)


def refused(*arguments: object, code: int = 1) -> str:
    """What the command says on standard error when it ends with this code."""
    return run(*arguments, code=code).stderr


def killed(*arguments: object, longest: float, chance: random.Random) -> bool:
    """Kill the command at a random moment of its first `longest` seconds; whether that came before its end."""
    with subprocess.Popen(_command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(chance.uniform(0, longest))
        process.kill()
        return process.wait() != 0
