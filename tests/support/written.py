"""Checkpoints of every writer, and indexes that attack, for what reads checkpoints without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import jobs
from support.store import Store

_CASES = json.loads((Path(__file__).parents[2] / "crates/checkpoint/tests/data/hostile.json").read_text())
ATTACKS = [pytest.param(bytes.fromhex(case), id=name) for name, case in _CASES["refused"].items()]
WRITERS = ["ours", "an epoch of ours", "theirs", "torch's"]


def saved(writer: str, store: Store, ranks: Any, folder: Path) -> str:
    """A checkpoint of the training state; where it is."""
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
