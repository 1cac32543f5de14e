"""Checkpoints on the move: copied, exported as models, made of models."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Literal

from .. import _native
from .._progress import ProgressCallback, reporting
from ..client_config import S3ClientConfig
from ..errors import ConfigError
from ._reach import Path, reached
from ._records import record

_Settings = tuple[str | None, str | None, S3ClientConfig | None]
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Copied:
    """A copy that has been made.

    Attributes:
        source: the folder of the source's index.
        target: the folder of the copy's.
        items: chunks of tensors, and objects.
        files: its files, the index not counted.
        bytes: bytes of these.
        skipped_files: files that were there before.
        skipped_bytes: bytes of those.
        bytes_by_service: bytes that the service copied by itself.
        bytes_through_client: bytes that went through this process.
    """

    source: str
    target: str
    items: int
    files: int
    bytes: int
    skipped_files: int
    skipped_bytes: int
    bytes_by_service: int
    bytes_through_client: int


@dataclasses.dataclass(frozen=True)
class Exported:
    """A model that has been written.

    Attributes:
        source: the folder of the checkpoint's index.
        target: the folder of the model, or its file.
        tensors: tensors that were written.
        bytes: bytes of their values.
        files: the files.
        left_out: objects of the checkpoint, which are not in the model.
        bytes_by_service: bytes that the service copied by itself.
        bytes_through_client: bytes that went through this process.
    """

    source: str
    target: str
    tensors: int
    bytes: int
    files: list[str]
    left_out: list[str]
    bytes_by_service: int
    bytes_through_client: int


@dataclasses.dataclass(frozen=True)
class Imported:
    """A checkpoint that has been made of a model.

    Attributes:
        source: the model.
        target: the folder of the checkpoint's index.
        tensors: its tensors.
        bytes: bytes of their values.
        files: its shard files.
        left_out: values that are no tensors, and are not in the checkpoint.
    """

    source: str
    target: str
    tensors: int
    bytes: int
    files: int
    left_out: list[str]


def copy(
    source: Path,
    target: Path,
    *,
    select: Iterable[str] = (),
    flatten: bool = False,
    spread: str | None = None,
    overwrite: bool = False,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    target_region: str | None = None,
    target_endpoint_url: str | None = None,
    target_s3client_config: S3ClientConfig | None = None,
) -> Copied:
    """Copy a checkpoint, its index last; from bucket to bucket of one service the service copies by itself.

    The same call goes on with a copy that was stopped.

    Args:
        source: the checkpoint.
        target: where its copy goes.
        select: only these items: names, dotted prefixes or globs.
        flatten: put all files beside the index.
        spread: put each rank's files under a prefix: ``"hex"``, ``"binary"`` or ``"numeric:BASE"``.
        overwrite: replace a checkpoint that is there.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops the copy.
        target_region: the destination's region, where it is another.
        target_endpoint_url: the destination's service, where it is another.
        target_s3client_config: the settings of its client, where they are others.

    Raises:
        NotFound: no checkpoint is there, or one that lacks a file.
        AlreadyExists: the destination has another checkpoint.
        Corrupt: what is stored does not fit the index.
        ConfigError: options that do not fit; the message names them.
    """
    if flatten and spread is not None:
        raise ConfigError(f"flatten=True, spread={spread!r}: one of them at most")
    settings = (region, endpoint_url, s3client_config)
    places = _places(source, settings, target, (target_region, target_endpoint_url, target_s3client_config))
    with reporting(progress, "copy") as report:
        return record(Copied, _native.copy(*places, list(select), flatten, spread, overwrite, report))


def export(
    source: Path,
    target: Path,
    *,
    format: Literal["safetensors", "torch"] = "safetensors",
    select: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    strip_prefixes: Iterable[str] = (),
    dtype: str | None = None,
    max_shard_size: int | None = None,
    overwrite: bool = False,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    target_region: str | None = None,
    target_endpoint_url: str | None = None,
    target_s3client_config: S3ClientConfig | None = None,
) -> Exported:
    """Write the tensors of a checkpoint as a model: on S3 out of ranges of its shard files, where they fit.

    Of a checkpoint with an index for each rank it is what all of them saved; different tensors of one name are refused.

    Args:
        source: the checkpoint; or the index of one of its ranks.
        target: the folder of the model, or its file.
        format: safetensors files with Hugging Face's names, or one file of `torch.save`.
        select: only these items: names, dotted prefixes or globs.
        names: new names by old ones; an old one may be what names begin with before a dot.
        strip_prefixes: what is taken off the front of names.
        dtype: what floating-point tensors are converted to: ``"float64"``, ``"float32"``, ``"float16"`` or
            ``"bfloat16"``.
        max_shard_size: bytes of tensors in a safetensors file at most; 5 GB where None.
        overwrite: replace a model that is there.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops the export.
        target_region: the destination's region, where it is another.
        target_endpoint_url: the destination's service, where it is another.
        target_s3client_config: the settings of its client, where they are others.

    Raises:
        NotFound: no checkpoint is there, or one that lacks a file.
        AlreadyExists: the destination has a model.
        Corrupt: what is stored does not fit the index.
        ConfigError: options that do not fit, and tensors that only torch reads; the message names them.
    """
    if format not in ("safetensors", "torch"):
        raise ConfigError(f"format={format!r}: must be 'safetensors' or 'torch'")
    if dtype is not None and dtype not in _FLOATS:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(map(repr, _FLOATS))}")
    if max_shard_size is not None and max_shard_size < 1:
        raise ConfigError(f"max_shard_size={max_shard_size!r}: must be a positive number of bytes")
    settings = (region, endpoint_url, s3client_config)
    places = _places(source, settings, target, (target_region, target_endpoint_url, target_s3client_config))
    renaming = (dict(names or {}), list(strip_prefixes))
    with reporting(progress, "export") as report:
        found = _native.export(*places, format, list(select), *renaming, dtype, max_shard_size, overwrite, report)
    return record(Exported, found)


def import_model(
    source: Path,
    target: Path,
    *,
    select: Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    strip_prefixes: Iterable[str] = (),
    overwrite: bool = False,
    progress: bool | ProgressCallback = False,
    region: str | None = None,
    endpoint_url: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    target_region: str | None = None,
    target_endpoint_url: str | None = None,
    target_s3client_config: S3ClientConfig | None = None,
) -> Imported:
    """Make a checkpoint of a model: of safetensors files, or of one of `torch.save`. Nothing in it is run.

    Args:
        source: the file, or the folder of the files.
        target: where the checkpoint goes.
        select: only these tensors: names, dotted prefixes or globs.
        names: new names by old ones; an old one may be what names begin with before a dot.
        strip_prefixes: what is taken off the front of names.
        overwrite: replace a checkpoint that is there.
        progress: True for a bar on standard error, or a callable ``(bytes_done, bytes_total)``, which is called in this
            thread; what it raises stops the import.
        target_region: the destination's region, where it is another.
        target_endpoint_url: the destination's service, where it is another.
        target_s3client_config: the settings of its client, where they are others.

    Raises:
        NotFound: no model is there.
        AlreadyExists: the destination has a checkpoint.
        Corrupt: the model is damaged.
        ConfigError: it holds more than tensors and plain values, or options do not fit; the message names them.
    """
    settings = (region, endpoint_url, s3client_config)
    places = _places(source, settings, target, (target_region, target_endpoint_url, target_s3client_config))
    renaming = (dict(names or {}), list(strip_prefixes))
    with reporting(progress, "import") as report:
        return record(Imported, _native.import_model(*places, list(select), *renaming, overwrite, report))


def _places(
    source: Path, settings: _Settings, target: Path, target_settings: _Settings
) -> tuple[tuple[_native.Client, str], tuple[_native.Client, str]]:
    """Both sides; by one client where nothing is said of the destination, so that the service can copy by itself."""
    from_place = reached(source, *settings)
    if target_settings == (None, None, None):
        return from_place, (from_place[0], os.fspath(target))
    (region, endpoint_url, config), (same_region, same_endpoint_url, same_config) = target_settings, settings
    return from_place, reached(target, region or same_region, endpoint_url or same_endpoint_url, config or same_config)
