"""Folders per step: saved on prefixes that stay the same, read, listed and removed where they are."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

import s3dcp
from s3dcp import (
    BinaryPrefixStrategy,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    RoundRobinPrefixStrategy,
    S3StorageReader,
    S3StorageWriter,
)
from s3dcp.errors import AlreadyExists, ConfigError
from support import jobs
from support.states import assert_same, blank, training_state
from support.store import REGION, Store

STEPS = "step-{}"


def save_step(store: Store, step: int, seed: int = 0, folder: str | None = None, **options) -> None:
    uri = f"{store.uri}/{folder or f'step-{step}'}"
    dcp.save(training_state(seed), storage_writer=S3StorageWriter(REGION, uri, step_folders=STEPS, **options))


def test_prefixes_are_the_same_at_every_step_and_readers_need_no_option(store: Store, ranks, tmp_path) -> None:
    for step in (1, 700):
        ranks.run(jobs.save, training_state(step), f"{store.uri}/step-{step}", step_folders=STEPS)
    names = sorted(store.names())
    assert [name for name in names if name.endswith(".metadata")] == ["step-1/.metadata", "step-700/.metadata"]
    patterns = {step: {name.split("/epoch_")[0] for name in names if f"/epoch_{step}/" in name} for step in (1, 700)}
    assert patterns[1] == patterns[700]
    assert patterns[1]
    for step in (1, 700):
        ranks.run(jobs.check, f"{store.uri}/step-{step}", training_state(step))
    store.download(tmp_path)
    loaded = blank(training_state(700))
    dcp.load(loaded, storage_reader=FileSystemReader(tmp_path / "step-700"))
    assert_same(loaded, training_state(700))


@pytest.mark.parametrize(
    "strategy",
    [None, HexPrefixStrategy(), BinaryPrefixStrategy(prefix_count=4), RoundRobinPrefixStrategy(["p", "q"])],
    ids=lambda strategy: type(strategy).__name__,
)
def test_every_strategy_with_epochs_takes_steps(store: Store, strategy) -> None:
    save_step(store, 3, prefix_strategy=strategy)
    assert any("/epoch_3/__0_" in name for name in store.names())
    jobs.check(f"{store.uri}/step-3", training_state())
    assert strategy is None or strategy.epoch_num is None


def test_a_folder_of_another_name_is_saved_as_ever(store: Store) -> None:
    save_step(store, 0, folder="final")
    assert all(name.startswith("final/") for name in store.names())
    jobs.check(f"{store.uri}/final", training_state())


def test_a_step_that_is_saved_again_replaces_itself_alone(store: Store, failure) -> None:
    for step in (1, 2):
        save_step(store, step, seed=step)
    shards = set(store.shards())
    error = failure(save_step, store, 1, overwrite=False)
    assert isinstance(error, AlreadyExists)
    assert set(store.shards()) == shards
    with pytest.warns(UserWarning, match="Detected an existing checkpoint"):
        save_step(store, 1, seed=3)
    assert len(store.shards()) == len(shards)
    jobs.check(f"{store.uri}/step-1", training_state(3))
    jobs.check(f"{store.uri}/step-2", training_state(2))


def test_a_checkpoint_saved_without_the_option_is_replaced_with_it(store: Store) -> None:
    jobs.save(training_state(1), f"{store.uri}/step-5")
    with pytest.warns(UserWarning, match="Detected an existing checkpoint"):
        save_step(store, 5, seed=2)
    jobs.check(f"{store.uri}/step-5", training_state(2))
    assert not any(name.startswith("step-5/__") for name in store.names())


def test_a_prune_within_the_path_spares_what_a_step_names(store: Store) -> None:
    save_step(store, 1)
    client = s3dcp.S3FileSystem(REGION).client
    for shard in store.shards():
        client.remove(store.bucket, f"{store.path}/{shard.split('/')[0]}")
    jobs.check(f"{store.uri}/step-1", training_state())


def test_fsspec_lists_a_step_and_removes_it_with_its_files(store: Store) -> None:
    fsspec = pytest.importorskip("fsspec")
    for step in (1, 2):
        save_step(store, step)
    files = fsspec.filesystem("s3dcp")
    assert {f"{store.bucket}/{store.path}/step-{step}" for step in (1, 2)} <= set(files.ls(store.uri, detail=False))
    assert files.exists(f"{store.uri}/step-1/.metadata")
    assert not files.exists(f"{store.uri}/step-3")
    files.rm(f"{store.uri}/step-1", recursive=True)
    assert not files.exists(f"{store.uri}/step-1")
    assert not any("epoch_1/" in name or "step-1" in name for name in store.names())
    jobs.check(f"{store.uri}/step-2", training_state())


def test_one_writer_saves_steps_that_calls_name(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri, step_folders=STEPS)
    for step in (1, 2):
        dcp.save({"x": torch.full((3,), float(step))}, checkpoint_id=f"{store.uri}/step-{step}", storage_writer=writer)
    for step in (1, 2):
        loaded = {"x": torch.zeros(3)}
        dcp.load(loaded, storage_reader=S3StorageReader(REGION, f"{store.uri}/step-{step}"))
        assert_same(loaded, {"x": torch.full((3,), float(step))})


@pytest.mark.parametrize("how", ["configure", "variable"])
def test_the_option_reaches_saves_that_name_a_path_alone(store: Store, monkeypatch, how: str) -> None:
    if how == "variable":
        monkeypatch.setenv("S3DCP_STEP_FOLDERS", "global_step{}")
    else:
        monkeypatch.delenv("S3DCP_CONFIGURED", raising=False)
        s3dcp.configure(step_folders="global_step{}")
    try:
        dcp.save(training_state(), checkpoint_id=f"{store.uri}/global_step12")
    finally:
        s3dcp.configure()
    assert any("/epoch_12/__0_" in name for name in store.names())
    jobs.check(f"{store.uri}/global_step12", training_state())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_folders": "step"}, "must have {}"),
        ({"step_folders": "step-{}/x"}, "must be the name of one folder"),
        ({"step_folders": 7}, "step_folders=7: must be a string"),
        ({"step_folders": STEPS, "prefix_strategy": DefaultPrefixStrategy()}, "has no epoch_num"),
        ({"step_folders": STEPS, "prefix_strategy": HexPrefixStrategy(epoch_num=1)}, "has an epoch_num"),
    ],
)
def test_what_cannot_work_is_refused_when_the_writer_is_made(options, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        S3StorageWriter(REGION, "s3://bucket/run/step-1", **options)
    assert words in str(raised.value)


def test_a_number_that_is_written_in_another_way_is_refused(store: Store, failure) -> None:
    with pytest.raises(ConfigError, match="step 700 has the folder step-700"):
        S3StorageWriter(REGION, f"{store.uri}/step-0700", step_folders=STEPS)
    writer = S3StorageWriter(REGION, store.uri, step_folders=STEPS)
    error = failure(dcp.save, training_state(), checkpoint_id=f"{store.uri}/step-0700", storage_writer=writer)
    assert "step 700 has the folder step-700" in str(error)
    assert store.names() == []
