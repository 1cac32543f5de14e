"""`S3HuggingFaceReader`: loads safetensors files on S3, straight into tensors' memory.

What the headers of the files say becomes an index such as `S3StorageReader` reads, which does the rest.
"""

from __future__ import annotations

import os

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from .._progress import ProgressCallback
from ..client_config import S3ClientConfig
from ..errors import Corrupt, shown
from ..storage_reader import S3StorageReader
from .folder import Folder, StoredTensor

__all__ = ["S3HuggingFaceReader"]


class S3HuggingFaceReader(S3StorageReader):
    """Reads a folder of safetensors files on S3, as torch's ``HuggingFaceStorageReader`` does a local one.

    With a ``model.safetensors.index.json`` it reads the files that this names, else all ``*.safetensors`` directly in
    the folder, sharded ones too. Only ranges that are wanted leave S3.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        path: the folder, ``s3://bucket/some/path``.
        thread_count: accepted for compatibility and ignored: ranges are asked for at once.
        s3client_config: settings of the S3 client.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        progress: True for a progress bar on standard error, or a callable ``(bytes_done, bytes_total)``.

    Raises:
        ValueError: an argument cannot work; the message names it.

    A load raises `NotFound` where there are no such files, and `Corrupt` for files that are none, or are of several
    saves.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        thread_count: int = 1,
        *,
        s3client_config: S3ClientConfig | None = None,
        endpoint_url: str | None = None,
        progress: bool | ProgressCallback = False,
    ) -> None:
        super().__init__(region, path, s3client_config, endpoint_url=endpoint_url, progress=progress)
        self.thread_count = thread_count

    def _read_index(self, rank: int | None) -> Metadata:
        """An index of the files, made of their headers."""
        metadata = index_of(Folder(self.fs.client, os.fspath(self.path)).tensors())
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _read_whole_index(self) -> Metadata:
        return self._read_index(None)

    def _read_rank_index(self, rank: int, is_alone: bool) -> Metadata:
        return self._read_index(rank)


def index_of(tensors: list[StoredTensor]) -> Metadata:
    """`tensors` as an index of torch's.

    Raises:
        Corrupt: chunks of one tensor differ in dtype or dimensions.
    """
    contents: dict[str, TensorStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for each in tensors:
        at = MetadataIndex(each.name, each.offsets)
        if at in places:
            continue  # a replica
        ends = [offset + length for offset, length in zip(each.offsets, each.shape, strict=True)]
        chunk = ChunkStorageMetadata(torch.Size(each.offsets), torch.Size(each.shape))
        known = contents.get(each.name)
        if known is None:
            properties = TensorProperties(dtype=each.dtype)
            contents[each.name] = TensorStorageMetadata(properties, torch.Size(ends), [chunk])
        elif known.properties.dtype != each.dtype or len(known.size) != len(ends):
            raise Corrupt(f"{each.file}: the tensor {shown(each.name)} is of another kind than in another file")
        else:
            known.size = torch.Size(map(max, known.size, ends))
            known.chunks.append(chunk)
        info = _StorageInfo(each.file, each.start, each.nbytes)
        info.data_offset = 0  # type: ignore[attr-defined]
        places[at] = info
    return Metadata(contents, storage_data=places)  # type: ignore[arg-type]
