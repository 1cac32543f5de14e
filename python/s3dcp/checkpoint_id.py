"""The writer and reader behind ``dcp.save(state, checkpoint_id="s3://…")``, and what they are made with.

`s3dcp_autoload` has torch ask here. A setting is what `configure` was told, else the variable ``S3DCP_<NAME>``, else
the default of `S3StorageWriter`, `S3StorageReader` or `S3ClientConfig`.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any, Literal

from .client_config import S3ClientConfig
from .s3_prefix_strategy import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3PrefixStrategyBase,
)

__all__ = ["configure"]

# What `configure` was told, for the processes that this one starts.
_INHERITED = "S3DCP_CONFIGURED"
_MAX_INHERITED_BYTES = 100_000

_BOTH = ("region", "s3client_config", "endpoint_url", "progress")
_WRITERS = ("prefix_strategy", "thread_count", "conditional_commit", "overwrite", "step_folders", "incremental")
_READERS = ("verify", "weights_only", "allowed_globals")

_UNSET: Any = object()


def configure(
    *,
    region: str | None = _UNSET,
    s3client_config: S3ClientConfig | None = _UNSET,
    endpoint_url: str | None = _UNSET,
    prefix_strategy: S3PrefixStrategyBase | None = _UNSET,
    thread_count: int = _UNSET,
    conditional_commit: Literal["warn", "require", "off"] = _UNSET,
    overwrite: bool = _UNSET,
    step_folders: str | None = _UNSET,
    incremental: bool = _UNSET,
    verify: bool = _UNSET,
    weights_only: bool = _UNSET,
    allowed_globals: Iterable[str | type] = _UNSET,
    progress: Any = _UNSET,
) -> None:
    """Say how ``checkpoint_id="s3://…"`` is saved and loaded from now on, in this process and those that it starts.

    The arguments are those of `S3StorageWriter` and `S3StorageReader`. What is left out goes back to the variable
    ``S3DCP_<NAME>``, else to the default.

    Processes that have been started already keep what they were started with: ``dcp.async_save`` in PROCESS mode starts
    its process at the first save.

    Raises:
        ValueError: an argument cannot work, or cannot be pickled for other processes; the message names it.
    """
    given = {name: value for name, value in locals().items() if value is not _UNSET}
    if "allowed_globals" in given:
        given["allowed_globals"] = tuple(given["allowed_globals"])
    # Whoever gives a wrong one hears of it here, and not in the middle of a training run.
    for reader in (False, True):
        _make("s3://bucket", reader, given)
    pickled = {}
    for name, value in given.items():
        try:
            pickled[name] = pickle.dumps(value)
        except Exception as error:
            raise ValueError(
                f"{name}={value!r}: cannot be pickled for the processes that this one starts: {error}"
            ) from error
    text = base64.b64encode(pickle.dumps(pickled)).decode()
    if len(text) > _MAX_INHERITED_BYTES:
        largest = max(pickled, key=lambda name: len(pickled[name]))
        raise ValueError(
            f"{largest}: has {len(pickled[largest])} bytes when pickled, too many for an environment variable"
        )
    os.environ[_INHERITED] = text


def storage_for(checkpoint_id: str | os.PathLike[str], reader: bool) -> Any:
    """The `S3StorageReader` or `S3StorageWriter` for a path.

    Raises:
        ValueError: a variable cannot work, or the path is no S3 URI; the message names it.
    """
    return _make(checkpoint_id, reader, _configured())


def client_settings() -> dict[str, Any]:
    """How S3 is reached: ``region``, ``s3client_config`` and ``endpoint_url``, as far as they were said."""
    settings = {**_from_environment(), **_configured()}
    return {name: settings[name] for name in ("region", "s3client_config", "endpoint_url") if name in settings}


def _make(path: str | os.PathLike[str], reader: bool, configured: dict[str, Any]) -> Any:
    from .storage_reader import S3StorageReader
    from .storage_writer import S3StorageWriter

    settings = {**_from_environment(), **configured}
    names = _BOTH + (_READERS if reader else _WRITERS)
    chosen = {name: settings[name] for name in names if name in settings}
    made: type[S3StorageReader] | type[S3StorageWriter] = S3StorageReader if reader else S3StorageWriter
    return made(chosen.pop("region", None), path, **chosen)


def _configured() -> dict[str, Any]:
    """What `configure` was told, in this process or in one that started it."""
    text = os.environ.get(_INHERITED)
    settings = {}
    for name, value in pickle.loads(base64.b64decode(text)).items() if text else ():
        try:
            settings[name] = pickle.loads(value)
        except Exception as error:
            raise ValueError(
                f"{name}: what s3dcp.configure was told cannot be unpickled in this process: {error}"
            ) from error
    return settings


# -- variables


def _from_environment() -> dict[str, Any]:
    """What the variables say, by name; those of the client as one `S3ClientConfig`."""
    settings = _read(PARSERS)
    client = _read({field.name: _parser(str(field.type)) for field in dataclasses.fields(S3ClientConfig)})
    if client:
        settings["s3client_config"] = S3ClientConfig(**client)
    return settings


def _read(parsers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    found = {}
    for name, parse in parsers.items():
        variable = f"S3DCP_{name.upper()}"
        text = os.environ.get(variable, "").strip()
        if text:
            try:
                found[name] = parse(text)
            except ValueError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
    return found


def _parser(annotation: str) -> Callable[[str], Any]:
    """What reads a field of this type."""
    kinds: dict[str, Callable[[str], Any]] = {"bool": _switch, "int": int, "float": float}
    return kinds.get(annotation.removesuffix(" | None"), str)


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def _strategy(text: str) -> S3PrefixStrategyBase:
    kind, _, prefixes = text.partition(":")
    if kind == "round-robin":
        return RoundRobinPrefixStrategy(prefixes.split(","))
    known: dict[str, type[S3PrefixStrategyBase]]
    known = {"default": DefaultPrefixStrategy, "binary": BinaryPrefixStrategy, "hex": HexPrefixStrategy}
    if kind not in known or prefixes:
        raise ValueError("must be default, binary, hex or round-robin:PREFIX,PREFIX,…")
    return known[kind]()


PARSERS: dict[str, Callable[[str], Any]] = {
    "prefix_strategy": _strategy,
    "thread_count": int,
    "conditional_commit": str,
    "overwrite": _switch,
    "step_folders": str,
    "incremental": _switch,
    "verify": _switch,
    "weights_only": _switch,
    "progress": _switch,
}
