"""An S3 endpoint for tests and experiments, in this process::

    from s3dcp import testing

    with testing.server(buckets=["checkpoints"]):
        ...  # any S3 client that reads the environment now talks to it

With pytest, ask for the fixtures ``s3dcp_server`` or ``s3dcp_bucket`` instead (see `s3dcp.pytest_plugin`).
Importing this module does not import torch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from ._native import Partitions, PartitionView, Server, ServerStats

__all__ = ["PartitionView", "Partitions", "Server", "ServerStats", "environment", "server"]

# What would send a client elsewhere, or sign with other keys, while the server's environment is set.
_OVERRIDES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
)


@contextmanager
def server(
    buckets: Iterable[str] = ("checkpoints",),
    data: str | os.PathLike[str] | None = None,
    environment: bool = True,
    *,
    address: str | None = None,
    region: str | None = None,
    session_lifetime: float | None = None,
    tls: bool = False,
    partitions: Partitions | None = None,
    faults: Iterable[str] = (),
    fault_seed: int = 0,
) -> Iterator[Server]:
    """Serve S3 on a free loopback port while the context lasts.

    Args:
        buckets: Buckets that exist from the start.
        data: Directory to keep objects in; in memory when None.
        environment: Also set the AWS environment variables to this server, and restore them afterwards. Child
            processes started meanwhile inherit them.
        address: ``"<ip>:<port>"`` to listen on instead; port 0 takes a free one.
        region: Refuse requests signed for any other region, as AWS does; every region is accepted when None.
        session_lifetime: Seconds that a session with a directory bucket lasts (one called ``<name>--<zone id>--x-s3``);
            five minutes when None.
        tls: Serve HTTPS, with a certificate made on the spot: clients must trust ``Server.authority``, and
            with ``environment`` those that read ``AWS_CA_BUNDLE`` do.
        partitions: A model of S3's partitions in front: what is too much for one is answered ``503 SlowDown``, and one
            that stays hot splits. ``Partitions()`` has S3's rates; ``Partitions(20, 50, split_after=5)`` suits a test.
        faults: What goes wrong from the start, one rule each, such as
            ``"error:SlowDown on=UploadPart key=*.distcp skip=2 times=3"``; ``Server.inject`` adds more. ``s3dcp serve
            --help`` lists what can go wrong.
        fault_seed: Seed of what faults leave to chance.

    Raises:
        ValueError: A bucket's name, the address, a lifetime or a fault is not valid.
        OSError: The address cannot be bound or the directory cannot be used.
    """
    with Server(
        data,
        list(buckets),
        address=address,
        region=region,
        session_lifetime=session_lifetime,
        tls=tls,
        partitions=partitions,
        faults=list(faults),
        fault_seed=fault_seed,
    ) as running:
        if environment:
            with _environment_of(running):
                yield running
        else:
            yield running


@contextmanager
def environment(server: Server) -> Iterator[None]:
    """Set the AWS environment variables to `server` while the context lasts, and restore them afterwards.

    ``NO_PROXY`` names it too: a proxy of this machine cannot reach it, or had better not.
    """
    changes: dict[str, str | None] = {
        "AWS_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": server.region,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        # Whatever the profile says:
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_USE_FIPS_ENDPOINT": "false",
        "AWS_USE_DUALSTACK_ENDPOINT": "false",
        **dict.fromkeys(_OVERRIDES),
    }
    host = urlsplit(server.endpoint_url).hostname
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    changes |= dict.fromkeys(("NO_PROXY", "no_proxy"), f"{others},{host}" if others else host)
    with ExitStack() as cleanup:
        if server.authority is not None:
            file = cleanup.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem"))
            file.write(server.authority)
            file.flush()
            changes["AWS_CA_BUNDLE"] = file.name
        before = {name: os.environ.get(name) for name in changes}
        _set_environment(changes)
        cleanup.callback(_set_environment, before)
        yield


_environment_of = environment  # `server` has an argument of this name


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
