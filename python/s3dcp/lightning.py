"""Lightning's checkpoints on S3: ``Trainer(plugins=[S3LightningCheckpoint("us-east-1")])`` for one file each, and
``Trainer(strategy=S3ModelParallelStrategy(region="us-east-1"))`` for sharded ones.

Importing this module makes ``s3://`` ours in fsspec, through which Lightning lists and looks. Lightning forgets the
protocol of what it lists when it looks for ``ckpt_path="last"``, and starts anew; that is mended here too, and folders
of saves that were killed are no checkpoints to it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from typing import Any, cast

import fsspec
import torch
from torch.distributed.checkpoint.state_dict_loader import load

try:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import CheckpointIO
    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
    from lightning.pytorch.trainer.states import TrainerFn
except ImportError:
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.plugins.io import CheckpointIO
    from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
    from pytorch_lightning.trainer.states import TrainerFn

from ._lightning_sharded import ShardedOnS3
from .checkpoint import S3Checkpoint
from .client_config import S3ClientConfig
from .file_system import split_path
from .fsspec import S3FsspecFileSystem, register
from .s3_prefix_strategy import S3PrefixStrategyBase
from .storage_reader import S3StorageReader

__all__ = ["S3FSDPStrategy", "S3LightningCheckpoint", "S3ModelParallelStrategy"]


def _says_weights_only() -> bool:
    """Lightning from 2.6 on says what a checkpoint may hold."""
    return "weights_only" in inspect.signature(CheckpointIO.load_checkpoint).parameters


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
            TypeError: there are `storage_options`, which have no meaning here, or `path` is no string.
            ConfigError: `path` is no S3 URI.
        """
        path = _uri(path)
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: must be None")
        with self._checkpoint.writer(path) as writer:
            torch.save(checkpoint, cast(Any, writer))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """What was saved at `path`.

        Args:
            path: the S3 URI.
            map_location: as for ``torch.load``.
            weights_only: as for ``torch.load``; None for its default. With Lightning before 2.6 None is False, as for
                Lightning's own plugin.

        Raises:
            NotFound: nothing was.
            TypeError: `path` is no string.
            ConfigError: `path` is no S3 URI.
        """
        path = _uri(path)
        if weights_only is None and not _says_weights_only():
            weights_only = False
        with self._checkpoint.reader(path) as reader:
            loaded: dict[str, Any] = torch.load(reader, map_location=map_location, weights_only=weights_only)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Delete what is at `path`, a file or a folder; nothing is fine too.

        Raises:
            TypeError: `path` is no string.
            ConfigError: `path` is no S3 URI.
        """
        path = _uri(path)
        split_path(path)
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(path, recursive=True)

    def remove_folder(self, path: str) -> None:
        """Delete what is below `path`, and not the file that has this path."""
        self._files._client.remove(*split_path(path))

    def is_file(self, path: str) -> bool:
        """Whether there is a file at `path`."""
        return self._files.isfile(path)

    def fetch(self, path: str, local: str | os.PathLike[str]) -> None:
        """Copy the file at `path` to the local file `local`."""
        self._files.get_file(path, os.fspath(local))


def _uri(path: Any) -> str:
    """`path` as text. pathlib takes a slash from a URI, so its paths never are one."""
    uri = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(uri, str) or (uri is not path and "://" not in uri):
        raise TypeError(
            f"{type(path).__name__} is not a supported type for 'path'. Must be a string formatted as an S3 uri, not "
            f"path={path!r}"
        )
    return uri


class _OnS3(ShardedOnS3):
    """The arguments that both strategies take beside Lightning's."""

    def __init__(
        self,
        *args: Any,
        region: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        endpoint: str | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._files = S3LightningCheckpoint(region, s3client_config, endpoint)
        self._storage = {"region": region, "s3client_config": s3client_config, "endpoint_url": endpoint}
        self._layout = {"prefix_strategy": prefix_strategy, "thread_count": thread_count}


class S3ModelParallelStrategy(_OnS3, ModelParallelStrategy):  # type: ignore[misc]
    """Lightning's ``ModelParallelStrategy`` with its checkpoints on S3, and local paths as they were.

    Args:
        args: those of Lightning's strategy, ``kwargs`` too.
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        s3client_config: settings of the S3 client.
        endpoint: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        prefix_strategy: as for `S3StorageWriter`; `DefaultPrefixStrategy` when None.
        thread_count: shard files per rank at most.

    With ``save_distributed_checkpoint=True`` (Lightning's default) each rank saves its shards, and a checkpoint
    becomes visible as a whole. Else it is one file, which each rank fetches into its temporary directory to load it.
    """

    def _is_sharded(self) -> bool:
        return bool(self._save_distributed_checkpoint)

    def _state_to_save(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return {"state_dict": checkpoint.pop("state_dict"), **_optimizers(checkpoint)}

    def _restore(self, reader: S3StorageReader) -> None:
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_model_state_dict,
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        optimizers = {f"optimizer_{number}": each for number, each in enumerate(self.optimizers)}
        state: dict[str, Any] = {"state_dict": get_model_state_dict(self.model)}
        state.update({name: get_optimizer_state_dict(self.model, each) for name, each in optimizers.items()})
        load(state, storage_reader=reader)
        self.model.load_state_dict(state["state_dict"], strict=self.lightning_module.strict_loading)
        options = StateDictOptions(cpu_offload=True)
        for name, each in optimizers.items():
            set_optimizer_state_dict(self.model, each, optim_state_dict=state[name], options=options)


class S3FSDPStrategy(_OnS3, FSDPStrategy):  # type: ignore[misc]
    """Lightning's ``FSDPStrategy`` with its checkpoints on S3, and local paths as they were.

    Args:
        args: those of Lightning's strategy, ``kwargs`` too.
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        s3client_config: settings of the S3 client.
        endpoint: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        prefix_strategy: as for `S3StorageWriter`; `DefaultPrefixStrategy` when None.
        thread_count: shard files per rank at most.

    With ``state_dict_type="sharded"`` (not Lightning's default) each rank saves its shards, and a checkpoint
    becomes visible as a whole. Else it is one file, which each rank fetches into its temporary directory to load it.
    """

    def _is_sharded(self) -> bool:
        return bool(self._state_dict_type == "sharded")

    def _state_to_save(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        return {"model": checkpoint.pop("state_dict"), **_optimizers(checkpoint)}

    def _restore(self, reader: S3StorageReader) -> None:
        from torch.distributed.checkpoint.optimizer import load_sharded_optimizer_state_dict
        from torch.distributed.fsdp import (
            FullyShardedDataParallel,
            ShardedOptimStateDictConfig,
            ShardedStateDictConfig,
            StateDictType,
        )

        configs = ShardedStateDictConfig(offload_to_cpu=True), ShardedOptimStateDictConfig(offload_to_cpu=True)
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.SHARDED_STATE_DICT, *configs):
            state = {"model": self.model.state_dict()}
            load(state, storage_reader=reader)
            self.model.load_state_dict(state["model"], strict=self.lightning_module.strict_loading)
            if self.lightning_module.trainer.state.fn != TrainerFn.FITTING:
                return
            for number, optimizer in enumerate(self.optimizers):
                name = f"optimizer_{number}"
                loaded = load_sharded_optimizer_state_dict(state["model"], name, reader)
                flat = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, loaded[name])
                optimizer.load_state_dict(flat)


def _optimizers(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The optimizers' states, taken out of `checkpoint`."""
    return {f"optimizer_{number}": each for number, each in enumerate(checkpoint.pop("optimizer_states", []))}


def _keep_the_protocol() -> None:
    """Have Lightning look for its last checkpoint where it lists it."""
    lightnings = ModelCheckpoint._find_last_checkpoints

    @functools.wraps(lightnings)
    def find_last_checkpoints(self: Any, trainer: Any) -> set[str]:
        found: set[str] = lightnings(self, trainer)
        if not isinstance(self._fs, S3FsspecFileSystem):
            return found
        # A folder without an index is of a save that was killed.
        return {
            path if "://" in path else f"s3://{path}"
            for path in found
            if not self._fs.isdir(path) or self._fs.isfile(f"{path}/.metadata")
        }

    ModelCheckpoint._find_last_checkpoints = find_last_checkpoints


if hasattr(ModelCheckpoint, "_find_last_checkpoints"):
    _keep_the_protocol()
register()
