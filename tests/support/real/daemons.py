"""Processes that serve until they are told to stop, and ports for them."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

TIMEOUT_SECONDS = 120
# Where make test-real-s3 puts what it installs from packages.
INSTALLED = Path(__file__).resolve().parents[3] / ".cache" / "servers"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


class Daemons:
    """Processes that end with the context, the last one first; what they say is in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        """Run `command` in the background."""
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_until(self, ready: Callable[[], bool], name: str) -> None:
        """Wait for `ready`, as long as all processes run; `name` is the one that is waited for."""
        until = time.monotonic() + TIMEOUT_SECONDS
        while not ready():
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() > until:
                said = self._log((ended or [name])[0]).read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} is not ready" + (f", {ended[0]} has ended" if ended else "") + f":\n{said}")
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listens(port: int) -> bool:
    """Whether something accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(*command: str, **environment: str) -> str:
    """What a command prints; RuntimeError with all that it says when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, env={**os.environ, **environment}
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
