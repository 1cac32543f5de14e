"""``progress=`` of the functions of ``s3dcp.catalogue``: what it hears, and how it stops them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from s3dcp import CheckpointManager, ConfigError, S3StorageReader, S3StorageWriter, catalogue
from support import jobs
from support.states import blank, values
from support.store import REGION, Store

MIB = 1 << 20
STATE = {f"layer{number}": values((MIB,), number) for number in range(4)}
BYTES = 16 * MIB
SILENCE = "silence on=GetObject,PutObject,CreateMultipartUpload key=*.distcp"
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_faults_afterwards(s3dcp_server: Any) -> Iterator[None]:
    yield
    s3dcp_server.clear_faults()


def _calls(store: Store, folder: Path) -> dict[str, Call]:
    """What moves or reads all of a checkpoint."""
    run = f"{store.uri}/run"
    if not store.names():
        jobs.save(STATE, run)
        jobs.save({**STATE, "layer0": values((MIB,), 9)}, f"{store.uri}/other")
        save_file(STATE, folder / "model.safetensors")
    return {
        "verify": lambda progress: catalogue.verify(run, progress=progress),
        "inspect": lambda progress: catalogue.inspect(run, statistics=True, progress=progress),
        "diff": lambda progress: catalogue.diff(run, f"{store.uri}/other", progress=progress),
        "copy": lambda progress: catalogue.copy(run, folder / "copy", overwrite=True, progress=progress),
        "export": lambda progress: catalogue.export(run, folder / "model", progress=progress),
        "import": lambda progress: catalogue.import_model(
            folder / "model.safetensors", f"{store.uri}/made", progress=progress
        ),
    }


@pytest.mark.parametrize("name", ["verify", "inspect", "copy", "export", "import"])
def test_a_callable_hears_of_all_bytes(store: Store, tmp_path: Path, s3dcp_server: Any, name: str) -> None:
    calls = _calls(store, tmp_path)
    seen: list[tuple[int, int]] = []
    s3dcp_server.inject("delay:300ms on=GetObject,PutObject,UploadPart")
    calls[name](lambda done, total: seen.append((done, total)))
    assert len(seen) > 1, "also in between"
    done = [bytes_done for bytes_done, _ in seen]
    assert done == sorted(done)
    # What an import hands to the upload, and at most 128 MiB wait there, counts as done.
    assert done[0] < done[-1] or name == "import"
    [total] = {bytes_total for _, bytes_total in seen}
    assert done[-1] == total
    assert BYTES <= total < 1.1 * BYTES


def test_a_comparison_that_reads_nothing_says_so_once(store: Store, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run = f"{store.uri}/run"
    jobs.save(STATE, run)
    catalogue.copy(run, tmp_path / "copy")
    assert catalogue.diff(run, tmp_path / "copy", progress=lambda *told: seen.append(told)).read_bytes == 0
    assert seen == [(0, 0)]


@pytest.mark.parametrize("name", ["verify", "inspect", "diff", "copy", "export", "import"])
def test_what_a_callable_raises_stops_the_work(store: Store, tmp_path: Path, s3dcp_server: Any, name: str) -> None:
    calls = _calls(store, tmp_path)

    def full(done: int, total: int) -> None:
        raise OverflowError(f"{done} of {total}")

    before = store.all_keys()
    s3dcp_server.inject(SILENCE)
    with pytest.raises(OverflowError, match=r"^\d+ of \d+$"):
        calls[name](full)
    assert store.all_keys() == before
    assert not (tmp_path / "copy" / ".metadata").exists()


def test_an_interrupt_stops_the_work(store: Store, tmp_path: Path, s3dcp_server: Any) -> None:
    calls = _calls(store, tmp_path)

    def interrupt(done: int, total: int) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        s3dcp_server.inject(SILENCE)
        with pytest.raises(KeyboardInterrupt):
            calls["copy"](interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_bar_is_drawn_on_standard_error(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, call in _calls(store, tmp_path).items():
        if name != "diff":
            call(True)
            told = capsys.readouterr()
            assert told.err.startswith(name)
            assert "16.0 of 16.0 MiB" in told.err
            assert told.out == ""


@pytest.mark.parametrize("progress", [None, 1, "bar"])
def test_what_is_no_progress_is_refused(store: Store, tmp_path: Path, progress: Any) -> None:
    refused = [
        *_calls(store, tmp_path).values(),
        lambda progress: S3StorageWriter(REGION, store.uri, progress=progress),
        lambda progress: S3StorageReader(REGION, store.uri, progress=progress),
    ]
    for call in refused:
        with pytest.raises(ConfigError, match=r"^progress="):
            call(progress)


def test_a_manager_tells_of_what_it_restores(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    with CheckpointManager(store.uri, region=REGION) as checkpoints:
        checkpoints.save(1, STATE)
        state = blank(STATE)
        checkpoints.restore(state, progress=lambda *told: seen.append(told))
    assert torch.equal(state["layer3"], STATE["layer3"])
    assert seen[-1] == (BYTES, BYTES)
