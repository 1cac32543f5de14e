"""Lightning's checkpoints on S3: ``Trainer(plugins=[S3LightningCheckpoint("us-east-1")])``.

Importing this module makes ``s3://`` ours in fsspec, through which Lightning lists and looks. Lightning forgets the
protocol of what it lists when it looks for ``ckpt_path="last"``, and starts anew; that is mended here too.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import fsspec
import torch

try:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import CheckpointIO
except ImportError:
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.plugins.io import CheckpointIO

from .checkpoint import S3Checkpoint
from .client_config import S3ClientConfig
from .file_system import split_path
from .fsspec import S3FsspecFileSystem, register

__all__ = ["S3LightningCheckpoint"]


class S3LightningCheckpoint(CheckpointIO):  # type: ignore[misc]
    """Saves, loads and removes what Lightning's trainer keeps; drop-in for the class of ``s3torchconnector.lightning``.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        s3client_config: settings of the S3 client.
        endpoint: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.

    Make it before callbacks with an ``s3://`` path where `region`, `s3client_config` or `endpoint` matter: they list
    with the settings that fsspec has when they are made.
    """

    def __init__(
        self, region: str | None = None, s3client_config: S3ClientConfig | None = None, endpoint: str | None = None
    ) -> None:
        self._checkpoint = S3Checkpoint(region, endpoint, s3client_config)
        settings: dict[str, Any] = {
            "region": region or None,
            "s3client_config": s3client_config,
            "endpoint_url": endpoint,
        }
        fsspec.config.conf["s3"] = settings
        self._files = S3FsspecFileSystem(**settings)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; what is there is replaced once all of it is up.

        Raises:
            TypeError: there are `storage_options`, which have no meaning here.
            ConfigError: `path` is no S3 URI.
        """
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: must be None")
        with self._checkpoint.writer(path) as writer:
            torch.save(checkpoint, cast(Any, writer))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """What was saved at `path`.

        Args:
            path: the S3 URI.
            map_location: as for ``torch.load``.
            weights_only: as for ``torch.load``; None for its default.

        Raises:
            NotFound: nothing was.
            ConfigError: `path` is no S3 URI.
        """
        with self._checkpoint.reader(path) as reader:
            loaded: dict[str, Any] = torch.load(reader, map_location=map_location, weights_only=weights_only)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Delete what is at `path`, a file or a folder; nothing is fine too."""
        split_path(path)
        if self._files.exists(path):
            self._files.rm(path, recursive=True)


def _keep_the_protocol() -> None:
    """Have Lightning look for its last checkpoint where it lists it."""
    lightnings = ModelCheckpoint._find_last_checkpoints

    @functools.wraps(lightnings)
    def find_last_checkpoints(self: Any, trainer: Any) -> set[str]:
        found: set[str] = lightnings(self, trainer)
        ours = isinstance(self._fs, S3FsspecFileSystem)
        return {f"s3://{path}" if ours and "://" not in path else path for path in found}

    ModelCheckpoint._find_last_checkpoints = find_last_checkpoints


if hasattr(ModelCheckpoint, "_find_last_checkpoints"):
    _keep_the_protocol()
register()
