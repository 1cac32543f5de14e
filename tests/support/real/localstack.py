"""LocalStack with S3 alone, as its package for Python runs without containers or an account; it checks no signature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemons import INSTALLED, Daemons, free_ports, listens
from .endpoint import Endpoint

HONOURS_CONDITIONS = True
PYTHON = INSTALLED / "localstack" / "bin" / "python"
SETTINGS = {
    "SERVICES": "s3",
    "EAGER_SERVICE_LOADING": "1",
    "DISABLE_EVENTS": "1",
    "SKIP_SSL_CERT_DOWNLOAD": "1",
    "DNS_ADDRESS": "0",
    "S3_SKIP_SIGNATURE_VALIDATION": "0",
}


def absent() -> str | None:
    """What is missing to start it."""
    return None if PYTHON.exists() else "LocalStack is not installed; make test-real-s3 does that"


@contextmanager
def start(folder: Path) -> Iterator[Endpoint]:
    """A server that keeps what it has in `folder`."""
    (port,) = free_ports(1)
    settings = {
        **SETTINGS,
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "FILESYSTEM_ROOT": str(folder),
        "TMPDIR": str(folder),
    }
    with Daemons(folder) as daemons:
        told = [f"{name}={value}" for name, value in settings.items()]
        daemons.start("localstack", "env", *told, str(PYTHON), "-m", "localstack.runtime.main")
        daemons.wait_until(lambda: listens(port), "localstack")
        yield Endpoint(f"http://127.0.0.1:{port}", "test", "test")
