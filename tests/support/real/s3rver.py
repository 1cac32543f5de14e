"""s3rver, a small server for Node, which keeps objects in files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemons import INSTALLED, Daemons, free_ports, listens
from .endpoint import Endpoint

HONOURS_CONDITIONS = False
PROGRAM = INSTALLED / "s3rver" / "node_modules" / ".bin" / "s3rver"


def absent() -> str | None:
    """What is missing to start it."""
    return None if PROGRAM.exists() else "s3rver is not installed; make test-real-s3 does that"


@contextmanager
def start(folder: Path) -> Iterator[Endpoint]:
    """A server that keeps its objects in `folder`."""
    (port,) = free_ports(1)
    with Daemons(folder) as daemons:
        daemons.start(
            "s3rver",
            str(PROGRAM),
            "--directory",
            str(folder / "objects"),
            "--address",
            "127.0.0.1",
            "--port",
            str(port),
        )
        daemons.wait_until(lambda: listens(port), "s3rver")
        # The keys that it knows.
        yield Endpoint(f"http://127.0.0.1:{port}", "S3RVER", "S3RVER")
