"""Hugging Face's safetensors files on S3, sharded or whole, through ``torch.distributed.checkpoint``.

`S3HuggingFaceWriter` and `S3HuggingFaceReader` are to ``s3://`` what torch's ``HuggingFaceStorageWriter`` and
``HuggingFaceStorageReader`` are to a local folder; so are the functions that make whole tensors of shards.
"""

from __future__ import annotations

from ._huggingface.consolidate import consolidate_safetensors_files, consolidate_safetensors_files_on_every_rank
from ._huggingface.reader import S3HuggingFaceReader
from ._huggingface.writer import S3HuggingFaceWriter

__all__ = [
    "S3HuggingFaceReader",
    "S3HuggingFaceWriter",
    "consolidate_safetensors_files",
    "consolidate_safetensors_files_on_every_rank",
]
