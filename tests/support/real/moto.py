"""moto's server, which keeps objects in memory and checks no signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemons import INSTALLED, Daemons, free_ports, listens
from .endpoint import Endpoint

HONOURS_CONDITIONS = True
PROGRAM = INSTALLED / "moto" / "bin" / "moto_server"


def absent() -> str | None:
    """What is missing to start it."""
    return None if PROGRAM.exists() else "moto is not installed; make test-real-s3 does that"


@contextmanager
def start(folder: Path) -> Iterator[Endpoint]:
    """A server."""
    (port,) = free_ports(1)
    with Daemons(folder) as daemons:
        daemons.start("moto", str(PROGRAM), "-H", "127.0.0.1", "-p", str(port))
        daemons.wait_until(lambda: listens(port), "moto")
        yield Endpoint(f"http://127.0.0.1:{port}", "tester", "moto-tester-secret")
