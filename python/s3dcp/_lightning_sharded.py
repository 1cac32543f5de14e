"""Sharded checkpoints of Lightning's strategies: every rank its shards, by `S3StorageWriter` and `S3StorageReader`.

Lightning keeps what is neither model nor optimizer (epoch, loops, callbacks) in a file ``meta.pt`` beside the shards,
and writes it when they are there. A run that is killed in between would leave weights of one step with the loops of
another. Here it is part of the checkpoint, which becomes visible as a whole; a copy is put at ``meta.pt`` after that,
so that Lightning itself loads a downloaded folder. What Lightning wrote, and a tool uploaded, is read by its
``meta.pt``.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from . import _native
from ._remote import is_on_s3
from .errors import NotFound
from .file_system import split_path
from .storage_reader import S3StorageReader
from .storage_writer import S3StorageWriter

__all__ = ["ShardedOnS3"]

META_FILE = "meta.pt"
META_ITEM = "lightning.meta"
"""A tensor with the bytes of ``meta.pt``."""

logger = logging.getLogger(__name__)


class ShardedOnS3:
    """What both strategies have in common: where an S3 path goes. All other paths go to Lightning's own methods.

    A strategy gives `_state_to_save` and `_restore`, and has `_is_sharded`.
    """

    _files: Any  # the `S3LightningCheckpoint` for checkpoints in one file
    _storage: dict[str, Any]  # arguments of writer and reader
    _layout: dict[str, Any]  # arguments of the writer alone
    _has_own_path = False

    # What Lightning's strategies have.
    global_rank: int
    is_global_zero: bool

    def _is_sharded(self) -> bool:
        raise NotImplementedError

    def _state_to_save(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Takes model and optimizers out of `checkpoint`."""
        raise NotImplementedError

    def _restore(self, reader: S3StorageReader) -> None:
        """Load model and optimizers."""
        raise NotImplementedError

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """As Lightning's, but for the path of a file that each rank has of its own."""
        return obj if self._has_own_path else super().broadcast(obj, src)  # type: ignore[misc]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save `checkpoint` at `filepath`: each rank its shards, or rank 0 one file where the strategy says so.

        Args:
            checkpoint: what Lightning's trainer collected.
            filepath: an S3 URI, or a local path for Lightning's own way.
            storage_options: must be None.

        Raises:
            TypeError: there are `storage_options`, which have no meaning here.
            ConfigError: `filepath` begins as an S3 URI and is none.
        """
        if not is_on_s3(filepath, "filepath"):
            super().save_checkpoint(checkpoint, filepath, storage_options)  # type: ignore[misc]
            return
        if storage_options is not None:
            raise TypeError(f"storage_options={storage_options!r}: must be None")
        path = os.fspath(self.broadcast(filepath))
        if self._is_sharded():
            state = self._state_to_save(checkpoint)
            meta = b""
            if self.is_global_zero:
                stream = io.BytesIO()
                torch.save(checkpoint, stream)
                meta = stream.getvalue()
                state[META_ITEM] = torch.frombuffer(bytearray(meta), dtype=torch.uint8)
            save(state, storage_writer=_Writer(path, meta, **self._storage, **self._layout))
        elif self.is_global_zero:
            self._files.save_checkpoint(checkpoint, path)
            self._files.remove_folder(path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load model and optimizers from `checkpoint_path`, and give all else that was saved there.

        Args:
            checkpoint_path: an S3 URI, or a local path for Lightning's own way.
            weights_only: as for ``torch.load``; None for its default. False also loads what `S3StorageReader` refuses.

        Raises:
            NotFound: there is no checkpoint.
            ConfigError: `checkpoint_path` begins as an S3 URI and is none.
        """
        if not is_on_s3(checkpoint_path, "checkpoint_path"):
            return super().load_checkpoint(checkpoint_path, weights_only=weights_only)  # type: ignore[misc,no-any-return]
        path = os.fspath(self.broadcast(checkpoint_path))
        found = self.broadcast(self._look(path) if self.is_global_zero else None)
        if isinstance(found, Exception):
            raise found
        if not found.is_sharded:
            return self._load_file(path, weights_only)
        reader = S3StorageReader(path=path, weights_only=weights_only is not False, **self._storage)
        self._restore(reader)
        if found.meta_bytes is None:
            return self._files.load_checkpoint(_join(path, META_FILE), weights_only=weights_only)  # type: ignore[no-any-return]
        meta = torch.empty(found.meta_bytes, dtype=torch.uint8, device="cpu")
        load({META_ITEM: meta}, storage_reader=reader)
        loaded: dict[str, Any] = torch.load(io.BytesIO(meta.numpy().tobytes()), weights_only=weights_only)
        return loaded

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete the checkpoint at `filepath`, a file or a folder; its index goes first."""
        if not is_on_s3(filepath, "filepath"):
            super().remove_checkpoint(filepath)  # type: ignore[misc]
        elif self.is_global_zero:
            self._files.remove_checkpoint(filepath)

    def _look(self, path: str) -> _Found | Exception:
        """What there is; an error too, for rank 0 looks and all ranks must know."""
        try:
            try:
                metadata = S3StorageReader(path=path, **self._storage).read_metadata()
            except NotFound as error:
                if not self._files.is_file(path):
                    raise error.with_message(
                        f"no checkpoint at {path}: neither a file nor a folder with .metadata"
                    ) from None
                return _Found(False)
            return _Found(True, _meta_bytes(metadata))
        except Exception as error:
            return error

    def _load_file(self, path: str, weights_only: bool | None) -> dict[str, Any]:
        """Lightning's own way with a checkpoint in one file, which maps it into memory: each rank fetches it first."""
        with tempfile.TemporaryDirectory(prefix="s3dcp-") as folder:
            file = Path(folder) / "checkpoint"
            self._files.fetch(path, file)
            self._has_own_path = True
            try:
                return super().load_checkpoint(file, weights_only=weights_only)  # type: ignore[misc,no-any-return]
            finally:
                self._has_own_path = False


class _Found:
    """What lies at a path: a sharded checkpoint with so many bytes of ``meta.pt`` in it, or a file."""

    def __init__(self, is_sharded: bool, meta_bytes: int | None = None) -> None:
        self.is_sharded = is_sharded
        self.meta_bytes = meta_bytes


class _Writer(S3StorageWriter):
    """Puts ``meta.pt`` beside the shards once the index names them, and no older one stays while it does not."""

    def __init__(self, path: str, meta: bytes, **settings: Any) -> None:
        super().__init__(path=path, **settings)
        self._meta = meta

    def finish(self, metadata: Metadata, results: Any) -> None:
        bucket, key = split_path(self.path)
        meta_key = _native.join_key(key, META_FILE)
        client = self.fs.client
        client.delete_objects(bucket, [meta_key])
        super().finish(metadata, results)
        try:
            with self.fs.create_stream(f"s3://{bucket}/{meta_key}", "wb") as stream:
                stream.write(self._meta)
            client.delete_objects(bucket, [key])  # a checkpoint in one file that had this path
        except Exception as error:
            # The checkpoint is committed, and must not look failed.
            logger.warning(
                "%s is saved, but %s beside it is not, for Lightning's own loader: %s", self.path, META_FILE, error
            )


def _meta_bytes(metadata: Metadata) -> int | None:
    item = metadata.state_dict_metadata.get(META_ITEM)
    return item.size.numel() if isinstance(item, TensorStorageMetadata) else None


def _join(path: str, name: str) -> str:
    bucket, key = split_path(path)
    return f"s3://{bucket}/{_native.join_key(key, name)}"
