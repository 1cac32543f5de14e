"""One file out of a checkpoint of many, and back, beside torch's own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import format_utils as torchs

from s3dcp import ConfigError, NotFound, S3Checkpoint
from s3dcp.format_utils import dcp_to_torch_save, torch_save_to_dcp
from support import jobs
from support.states import assert_same, blank, training_state
from support.store import Store

STATE = {"model": {"weight": torch.arange(12.0).view(3, 4), "bias": torch.zeros(3)}, "step": 7, "names": ["a", "b"]}


def test_a_checkpoint_on_s3_becomes_the_file_that_torch_makes_of_it(store: Store, tmp_path: Path) -> None:
    jobs.save(STATE, f"{store.uri}/run")
    dcp.save(STATE, checkpoint_id=tmp_path / "run")
    torchs.dcp_to_torch_save(tmp_path / "run", tmp_path / "torchs.pt")
    dcp_to_torch_save(f"{store.uri}/run", f"{store.uri}/run.pt")
    dcp_to_torch_save(f"{store.uri}/run", tmp_path / "ours.pt")
    dcp_to_torch_save(tmp_path / "run", f"{store.uri}/local.pt")
    wanted = torch.load(tmp_path / "torchs.pt")
    assert_same(torch.load(tmp_path / "ours.pt"), wanted)
    for name in ("run.pt", "local.pt"):
        with S3Checkpoint(None).reader(f"{store.uri}/{name}") as reader:
            assert_same(torch.load(reader), wanted)


def test_a_file_becomes_the_checkpoint_that_torch_makes_of_it(store: Store, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "local.pt")
    with S3Checkpoint(None).writer(f"{store.uri}/remote.pt") as writer:
        torch.save(STATE, writer)
    for number, source in enumerate((tmp_path / "local.pt", f"{store.uri}/remote.pt")):
        torch_save_to_dcp(source, f"{store.uri}/run-{number}")
        jobs.check(f"{store.uri}/run-{number}", STATE)
    torch_save_to_dcp(f"{store.uri}/remote.pt", tmp_path / "run")
    loaded = blank(STATE)
    dcp.load(loaded, checkpoint_id=tmp_path / "run")
    assert_same(loaded, STATE)


def test_every_kind_of_state_goes_there_and_back(store: Store) -> None:
    jobs.save(training_state(), f"{store.uri}/run")
    dcp_to_torch_save(f"{store.uri}/run", f"{store.uri}/run.pt")
    torch_save_to_dcp(f"{store.uri}/run.pt", f"{store.uri}/again")
    jobs.check(f"{store.uri}/again", training_state())


class Custom:
    """What ``weights_only`` refuses."""


def test_code_in_a_file_runs_only_where_that_is_asked_for(store: Store) -> None:
    with S3Checkpoint(None).writer(f"{store.uri}/code.pt") as writer:
        torch.save({"custom": Custom()}, writer)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        torch_save_to_dcp(f"{store.uri}/code.pt", f"{store.uri}/run")
    assert store.names() == ["code.pt"]


def test_what_is_not_there_is_said_and_no_folder_is_made(store: Store, tmp_path: Path, monkeypatch, failure) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(failure(dcp_to_torch_save, f"{store.uri}/none", tmp_path / "x.pt"), NotFound)
    assert isinstance(failure(torch_save_to_dcp, f"{store.uri}/none.pt", tmp_path / "run"), NotFound)
    for function in (dcp_to_torch_save, torch_save_to_dcp):
        with pytest.raises(ConfigError, match="pathlib keeps one slash"):
            function(Path(f"{store.uri}/none"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
