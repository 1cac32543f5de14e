"""OLMo-core's checkpoints and ours, each loaded by the other."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import s3dcp
from support import pages
from support.store import Store

pytest.importorskip("olmo_core", reason="OLMo-core asks for an older torch, so it is not installed here")

EXAMPLE = pages.ROOT / "examples/olmo.py"


def state(value: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((100, 100), float(value))}, "step": value}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting outlives its test."""
    monkeypatch.setenv("S3DCP_CONFIGURED", "")


def test_what_the_example_saves_is_loaded_by_olmo_core(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLE, f"s3://{store.bucket}/run"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "the same weights: True" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_what_olmo_core_saves_is_loaded_once_its_entries_are_allowed(store: Store) -> None:
    from olmo_core.distributed.checkpoint import save_state_dict

    path = f"s3://{store.bucket}/run"
    save_state_dict(path, state(3))
    into = state(0)
    with pytest.raises(dcp.api.CheckpointException, match="allowed_globals"):
        dcp.load(into, checkpoint_id=path)
    s3dcp.configure(allowed_globals=["olmo_core.distributed.checkpoint.filesystem._StorageInfo"])
    dcp.load(into, checkpoint_id=path)
    assert into["model"]["weight"].eq(3).all()
    assert into["step"] == 3


def test_the_page_shows_the_save_of_the_example() -> None:
    [snippet] = [block for block in pages.blocks("docs/frameworks.md", "python") if "get_optimizer_state_dict" in block]
    assert snippet.strip() in EXAMPLE.read_text()
