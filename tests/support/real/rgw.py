"""Ceph's S3 gateway on a cluster of one monitor, one OSD that keeps objects in memory, and one manager."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .daemons import Daemons, free_ports, listens, run
from .endpoint import Endpoint

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mgr", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
ACCESS_KEY, SECRET_KEY = "RGWTESTER", "rgw-tester-secret"
HONOURS_CONDITIONS = True

# Space of deleted objects is given back at once: it is memory.
CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
public addr = 127.0.0.1
ms bind msgr1 = false
keyring = {folder}/keyring
run dir = {folder}
admin socket =
log file =
log to stderr = true
err to stderr = true
mon cluster log file =
mon data = {folder}/mon
osd data = {folder}/osd
mgr data = {folder}/mgr
mgr initial modules =
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
osd pool default size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 8589934592
rgw dns name = localhost
rgw gc obj min wait = 1
rgw gc processor period = 5
"""


@dataclass(frozen=True, kw_only=True)
class Gateway(Endpoint):
    """One gateway of a cluster."""

    daemons: Daemons
    configuration: Path


def absent() -> str | None:
    """What is missing to start it."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"Ceph is not installed ({', '.join(missing)}); make test-real-s3 does that" if missing else None


@contextmanager
def start(folder: Path) -> Iterator[Gateway]:
    """A cluster in `folder` with one gateway."""
    configuration = folder / "ceph.conf"
    fsid, (port,) = str(uuid.uuid4()), free_ports(1)
    configuration.write_text(CONFIGURATION.format(folder=folder, fsid=fsid, port=port))
    for name in ("mon", "osd", "mgr"):
        (folder / name).mkdir()
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    run("ceph-authtool", "--create-keyring", keyring)
    for name in ("mon.", "mgr.a", "osd.0", "client.admin", "client.rgw"):
        everything = [word for kind in ("mon", "osd", "mgr") for word in ("--cap", kind, "allow *")]
        run("ceph-authtool", keyring, "--gen-key", "--name", name, *everything)
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{port}/0]", monmap)
    with Daemons(folder) as daemons:
        told = ("--conf", str(configuration))
        run("ceph-mon", *told, "--id", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        daemons.start("ceph-mon", "ceph-mon", *told, "--id", "a", "--foreground")
        daemons.wait_until(lambda: listens(port), "ceph-mon")
        osd_uuid = str(uuid.uuid4())
        run("ceph", *told, "osd", "new", osd_uuid)
        run("ceph-osd", *told, "--id", "0", "--mkfs", "--osd-uuid", osd_uuid)
        daemons.start("ceph-osd", "ceph-osd", *told, "--id", "0", "--foreground")
        daemons.start("ceph-mgr", "ceph-mgr", *told, "--id", "a", "--foreground")
        user = ["--uid", "tester", "--display-name", "tester", "--max-buckets", "0"]
        user += ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]
        run("radosgw-admin", *told, "user", "create", *user)
        yield start_gateway(daemons, configuration)


def start_gateway(daemons: Daemons, configuration: Path, **settings: str) -> Gateway:
    """A gateway of the cluster, with settings of its own."""
    (port,) = free_ports(1)
    log = f"radosgw-{port}"
    command = ["radosgw", "--conf", str(configuration), "--name", "client.rgw", "--foreground"]
    command += ["--rgw-frontends", f"beast endpoint=127.0.0.1:{port}"]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", value]
    daemons.start(log, *command)
    daemons.wait_until(lambda: listens(port), log)
    return Gateway(f"http://127.0.0.1:{port}", ACCESS_KEY, SECRET_KEY, daemons=daemons, configuration=configuration)
