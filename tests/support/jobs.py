"""Saves and loads that tests run in ranks, or in their own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader, FileSystemWriter

from s3dcp import S3StorageReader, S3StorageWriter
from support import strategies
from support.states import DTYPES, assert_same, blank, layouts, training_state, values
from support.store import REGION
from support.strategies import Spec
from support.torch_versions import without_defaults


def save(
    state: dict[str, Any],
    uri: str,
    spec: Spec | None = None,
    *,
    planner: Any = None,
    use_collectives: bool = True,
    no_dist: bool = False,
    **arguments: Any,
) -> Any:
    """``dcp.save`` with our writer; `arguments` are the writer's."""
    if spec is not None:
        arguments["prefix_strategy"] = strategies.ours(spec)
    writer = S3StorageWriter(REGION, uri, **without_defaults(arguments))
    return dcp.save(state, storage_writer=writer, planner=planner, use_collectives=use_collectives, no_dist=no_dist)


def load(
    state: dict[str, Any], uri: str, *, planner: Any = None, no_dist: bool = False, **arguments: Any
) -> dict[str, Any]:
    """``dcp.load`` into `state` with our reader; `arguments` are the reader's."""
    reader = S3StorageReader(REGION, uri, **arguments)
    dcp.load(state, storage_reader=reader, planner=planner, no_dist=no_dist)
    return state


def check(uri: str, state: dict[str, Any], **arguments: Any) -> None:
    """Our reader gives `state` back, bit by bit."""
    assert_same(load(blank(state), uri, **arguments), state)


def save_training_state(uri: str, spec: Spec | None = None, seed: int = 0, **arguments: Any) -> None:
    """Save the training state of `seed` with our writer."""
    objects = arguments.pop("objects", True)
    save(training_state(seed, objects=objects), uri, spec, **arguments)


def check_training_state(uri: str, seed: int = 0, objects: bool = True, **arguments: Any) -> None:
    """Our reader gives the training state of `seed` back."""
    check(uri, training_state(seed, objects=objects), **arguments)


def peer_config() -> Any:
    """The reference client's settings for an endpoint of our own."""
    from s3torchconnector import S3ClientConfig

    return S3ClientConfig(force_path_style=True)


def reference_writer(uri: str, spec: Spec) -> Any:
    """The reference's writer."""
    from s3torchconnector.dcp import S3StorageWriter as Reference

    return Reference(REGION, uri, s3client_config=peer_config(), prefix_strategy=strategies.reference(spec))


def reference_reader(uri: str) -> Any:
    """The reference's reader."""
    from s3torchconnector.dcp import S3StorageReader as Reference

    return Reference(REGION, uri, s3client_config=peer_config())


def save_with_reference(uri: str, spec: Spec, seed: int = 0) -> None:
    """Save the training state with the reference's writer."""
    dcp.save(training_state(seed), storage_writer=reference_writer(uri, spec))


def check_with_reference(uri: str, seed: int = 0) -> None:
    """The reference's reader gives the training state back."""
    state = training_state(seed)
    loaded = blank(state)
    dcp.load(loaded, storage_reader=reference_reader(uri))
    assert_same(loaded, state)


def kinds(kind: str) -> dict[str, Any]:
    """Tensors of every layout or of every dtype."""
    if kind == "layouts":
        return dict(layouts())
    return {f"{dtype} {shape}": values(shape, 3, dtype) for dtype in DTYPES for shape in ((7, 5), (), (0, 2))}


def save_with_torch(folder: Path, seed: int = 0, objects: bool = True, **arguments: Any) -> None:
    """Save the training state into a folder with torch's own writer."""
    dcp.save(training_state(seed, objects=objects), storage_writer=FileSystemWriter(folder, **arguments))


def check_with_torch(folder: Path, seed: int = 0) -> None:
    """torch's own reader gives the training state back from a folder."""
    state = training_state(seed)
    loaded = blank(state)
    dcp.load(loaded, storage_reader=FileSystemReader(folder))
    assert_same(loaded, state)


def rank() -> int:
    """This process's rank; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


class InTheMiddle(DefaultSavePlanner):
    """Calls `action` once while the save writes, after it has seen what is at the path."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def resolve_data(self, write_item: Any) -> Any:
        action, self.action = self.action, None
        if action is not None:
            action()
        return super().resolve_data(write_item)
