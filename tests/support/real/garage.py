"""Garage, one node."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .daemons import Daemons, free_ports, listens, run
from .endpoint import Endpoint

HONOURS_CONDITIONS = False
# Where make test-real-s3 puts the program.
BUILT = Path(__file__).resolve().parents[3] / ".cache" / "garage" / "bin"

CONFIGURATION = """
metadata_dir = "{folder}/meta"
data_dir = "{folder}/data"
db_engine = "lmdb"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secret}"

[s3_api]
api_bind_addr = "127.0.0.1:{s3}"
s3_region = "us-east-1"
root_domain = ".localhost"
"""


def program() -> str | None:
    """The executable."""
    return shutil.which("garage", path=os.pathsep.join([str(BUILT), os.environ.get("PATH", "")]))


def absent() -> str | None:
    """What is missing to start it."""
    return None if program() else "Garage is not installed; make test-real-s3 does that"


@contextmanager
def start(folder: Path) -> Iterator[Endpoint]:
    """A node that keeps its objects in `folder`."""
    garage = program()
    assert garage, absent()
    rpc, s3 = free_ports(2)
    configuration = folder / "garage.toml"
    configuration.write_text(CONFIGURATION.format(folder=folder, rpc=rpc, s3=s3, secret=secrets.token_hex(32)))
    key, secret = f"GK{secrets.token_hex(12)}", secrets.token_hex(32)
    told = (garage, "--config", str(configuration))
    with Daemons(folder) as daemons:
        daemons.start("garage", *told, "server", "--single-node")
        daemons.wait_until(lambda: listens(s3), "garage")
        run(*told, "key", "import", "--yes", "-n", "tester", key, secret)
        run(*told, "key", "allow", "--create-bucket", key)
        yield Endpoint(f"http://127.0.0.1:{s3}", key, secret)
