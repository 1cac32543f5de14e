"""Asynchronous saves in ranks, and work in forked children."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed.checkpoint as dcp

from s3dcp import S3FileSystem, S3StorageWriter
from support.states import training_state
from support.store import REGION


def save_in_thread(uri: str) -> None:
    """``async_save`` in a thread."""
    dcp.async_save(training_state(), storage_writer=S3StorageWriter(REGION, uri)).result()


def save_in_process(uri: str) -> None:
    """``async_save`` in a process of its own, twice."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    for seed in (1, 0):
        dcp.async_save(
            training_state(seed),
            storage_writer=S3StorageWriter(REGION, uri),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        ).result()


def load_in_forked_child(uri: str) -> None:
    """Use the client, fork, and use it in the child and again in the parent, on the connections it has."""
    fs = S3FileSystem(REGION)
    assert _read_index(fs, uri)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if _read_index(fs, uri) else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    before = fs.client.stats().retries
    assert _read_index(fs, uri)
    assert fs.client.stats().retries == before


def _read_index(fs: S3FileSystem, uri: str) -> bytes:
    assert fs.exists(f"{uri}/.metadata")
    with fs.create_stream(f"{uri}/.metadata", "rb") as stream:
        return stream.read()


def save_in_process_with_spans(uri: str, folder: Path) -> int:
    """``async_save`` in a process that leaves its spans in a folder; the id of the span that it was called in."""
    from opentelemetry.sdk.trace import TracerProvider
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    from support.spans import Telling

    with TracerProvider().get_tracer("training").start_as_current_span("train step") as span:
        dcp.async_save(
            training_state(),
            storage_writer=S3StorageWriter(REGION, uri),
            planner=Telling(folder),
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        ).result()
    return span.get_span_context().span_id


def spans_of_a_save(uri: str) -> list[tuple[str, int | None, int | None]]:
    """The spans of a save: names, ranks and numbers of ranks."""
    from support.spans import Told

    told = Told()
    dcp.save(training_state(), storage_writer=S3StorageWriter(REGION, uri))
    facts = [(span, dict(span.attributes or {})) for span in told.exporter.spans]
    return [(span.name, each.get("s3dcp.rank"), each.get("s3dcp.world_size")) for span, each in facts]
