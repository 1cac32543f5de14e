"""What each writer saves, in a bucket or a local folder, for what reads checkpoints without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from s3dcp._compat import SerializationFormat
from support import jobs
from support.store import Store

WRITERS = ["ours", "ours, by epochs", "ours, as safetensors", "ours, by rank", "torch's", "torch's, local", "theirs"]


def save(writer: str, state: dict[str, Any], store: Store, folder: Path, name: str = "ckpt") -> str:
    """Save `state` with a writer; the URI or local path of the checkpoint."""
    uri = f"{store.uri}/{name}"
    if writer == "ours":
        jobs.save(state, uri)
    elif writer == "ours, by epochs":
        jobs.save(state, uri, ("Hex", {"epoch_num": 3}))
        return f"{uri}/epoch_3"
    elif writer == "ours, as safetensors":
        jobs.save(state, uri, serialization_format=SerializationFormat.SAFETENSORS)
    elif writer == "ours, by rank":
        jobs.save(state, uri, use_collectives=False)
    elif writer == "theirs":
        pytest.importorskip("s3torchconnector")
        dcp.save(state, storage_writer=jobs.reference_writer(uri, ("Hex", {})), no_dist=True)
    else:
        options = {"serialization_format": SerializationFormat.SAFETENSORS} if writer.endswith("safetensors") else {}
        dcp.save(state, storage_writer=FileSystemWriter(folder / name, **options), no_dist=True)
        if writer == "torch's, local":
            return str(folder / name)
        for path in (folder / name).iterdir():
            store.write(f"{name}/{path.name}", path.read_bytes())
    return uri


WRITERS_OF_JOBS = ["ours", "an epoch of ours", "theirs", "torch's"]


def save_by_ranks(writer: str, store: Store, ranks: Any, folder: Path) -> str:
    """Save the training state from every rank with a writer; the URI or local path of the checkpoint."""
    if writer == "ours":
        ranks.run(jobs.save_training_state, store.uri, ("Binary", {}))
        return store.uri
    if writer == "an epoch of ours":
        ranks.run(jobs.save_training_state, store.uri, ("Hex", {"epoch_num": 5}))
        return f"{store.uri}/epoch_5"
    if writer == "theirs":
        ranks.run(jobs.save_with_reference, store.uri, ("Hex", {}))
        return store.uri
    ranks.run(jobs.save_with_torch, folder)
    return str(folder)
