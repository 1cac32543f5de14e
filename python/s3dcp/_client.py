"""One native client per process and settings, so that all writers and readers share connections and budgets."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict

from . import _native
from .client_config import S3ClientConfig

# The settings of a client, without what it takes from the environment.
_Settings = tuple[int, str | None, str | None, S3ClientConfig]

# Clients that are kept for the next caller, the latest used last, each with the environment it was made in. Whoever
# works with one that is kept no longer holds it alone: it and its connections go with the last holder.
_clients: OrderedDict[_Settings, tuple[int, _native.Client]] = OrderedDict()
_CLIENTS_KEPT = 16
_lock = threading.Lock()


def client_for(
    region: str | None, endpoint_url: str | None = None, config: S3ClientConfig | None = None
) -> _native.Client:
    """The process's client for `region` and `endpoint_url`; no request is sent yet.

    A client takes what it is not given from the environment when it is made, so a changed ``AWS_*`` or ``*_PROXY``
    variable means another client, which takes the place of the one before. Of different settings the latest 16 are
    kept.

    Raises:
        ConfigError: a setting cannot work; the message names it.
    """
    if region is not None and not isinstance(region, str):
        raise ValueError(f"region={region!r}: must be a string such as 'us-east-1'")
    if config is not None and not isinstance(config, S3ClientConfig):
        config = _from_peer(config)
    config = config or S3ClientConfig()
    endpoint_url = endpoint_url or config.endpoint_url
    settings = (os.getpid(), region or None, endpoint_url, config)
    environment = _environment()
    with _lock:
        made_in, client = _clients.pop(settings, (None, None))
        if client is None or made_in != environment:
            client = _native.Client(region or None, endpoint_url, config)
        _clients[settings] = (environment, client)
        dropped = [_clients.popitem(last=False) for _ in range(len(_clients) - _CLIENTS_KEPT)]
    del dropped  # connections close outside of the lock
    return client


def _environment() -> int:
    """A digest of the variables that a client reads; some hold secrets."""

    def is_read(name: str) -> bool:
        return name.startswith("AWS_") or name.upper().endswith("_PROXY") or name == "HOME"

    return hash(frozenset((name, value) for name, value in os.environ.items() if is_read(name)))


def _after_fork_in_child() -> None:
    """The parent's lock may be held and its clients belong to its threads: start empty."""
    global _lock
    _lock = threading.Lock()
    _clients.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _from_peer(config: object) -> S3ClientConfig:
    """Our settings from another package's object with the same field names."""
    shared = (
        "throughput_target_gbps",
        "part_size",
        "unsigned",
        "force_path_style",
        "max_attempts",
        "profile",
        "requester_pays",
    )
    known = {name: getattr(config, name) for name in shared if hasattr(config, name)}
    if "force_path_style" not in known:
        raise ValueError(f"s3client_config={config!r}: must be an S3ClientConfig")
    return S3ClientConfig(**known)
