"""`CheckpointManager`: saves, retention, restoring, and that one writes to a path at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from s3dcp import AlreadyExists, CheckpointManager, ConfigError, Conflict, Keep, NotFound, S3StorageWriter
from s3dcp.catalogue import list_checkpoints
from support.ranks import Ranks
from support.states import values
from support.store import REGION, Store

BEAT = 0.2


def state_of(step: int) -> dict[str, Any]:
    return {"weight": values((128, 16), step), "step": torch.tensor(step)}


def blank() -> dict[str, Any]:
    return {"weight": torch.zeros(128, 16), "step": torch.tensor(-1)}


def manager(store_or_uri: Any, **arguments: Any) -> CheckpointManager:
    uri = store_or_uri if isinstance(store_or_uri, str) else store_or_uri.uri
    return CheckpointManager(uri, region=REGION, beat_seconds=BEAT, **arguments)


def restored(checkpoints: CheckpointManager, step: int | None = None) -> int:
    state = blank()
    found = checkpoints.restore(state, step)
    assert found is not None
    assert found.step == state["step"].item()
    assert torch.equal(state["weight"], values((128, 16), found.step))
    return found.step


def test_a_training_saves_keeps_and_restores(store: Store) -> None:
    with manager(store, keep=Keep(last=2, every=40, best={"loss": "min"})) as checkpoints:
        state = blank()
        assert checkpoints.restore(state) is None
        assert checkpoints.latest() is None
        for step in range(0, 100, 10):
            report = checkpoints.save(step, state_of(step), metrics={"loss": abs(step - 33)}).result()
            assert report.bytes > 128 * 16 * 4
            assert report.requests >= 3
            assert report.stall_seconds == report.seconds
            assert f"step {step}: " in str(report)
        assert [each.step for each in checkpoints] == [0, 30, 40, 80, 90]
        assert checkpoints.latest().step == 90
        assert checkpoints.latest().notes == {"step": 90, "metrics": {"loss": 57}}
        assert restored(checkpoints) == 90
        assert restored(checkpoints, 30) == 30
        with pytest.raises(NotFound, match="step=20"):
            restored(checkpoints, 20)
    with manager(store) as again:
        assert restored(again) == 90
    assert not [key for key in store.all_keys() if key.endswith(".s3dcp-writer")]


def test_a_report_says_how_long_s3_took_to_answer(store: Store, s3dcp_server: Any) -> None:
    with manager(store) as checkpoints:
        checkpoints.save(0, state_of(0))
        s3dcp_server.inject("delay:700ms on=PutObject key=*.metadata times=1")
        slow = checkpoints.save(1, state_of(1)).result()
        assert 0 < slow.latency.p50 < 0.5
        assert 0.69 < slow.latency.max < slow.seconds
        assert slow.latency.p50 <= slow.latency.p90 <= slow.latency.p99 <= slow.latency.max
        assert f"(median {slow.latency.p50:.3f} s, 99 % {slow.latency.p99:.3f} s)" in str(slow)
        after = checkpoints.save(2, state_of(2)).result()
        assert after.latency.max < 0.69, "of this save alone"


def test_an_asynchronous_save_ends_in_the_background(store: Store) -> None:
    with manager(store, async_=True, keep=Keep(last=1)) as checkpoints:
        state = state_of(1)
        future = checkpoints.save(1, state)
        state["weight"].zero_()
        report = future.result(60)
        assert report.stall_seconds <= report.seconds
        checkpoints.save(2, state_of(2))
        assert checkpoints.wait().step == 2
        assert checkpoints.wait() is None
        assert [each.step for each in checkpoints] == [2]
        assert restored(checkpoints) == 2


def test_a_failure_in_the_background_reaches_the_caller(
    store: Store, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    def finish(*_: Any, **__: Any) -> None:
        raise ArithmeticError("broken on purpose")

    with manager(store, async_=True) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(S3StorageWriter, "finish", finish)
            checkpoints.save(1, state_of(1))
            assert isinstance(failure(checkpoints.wait), ArithmeticError)
        checkpoints.save(2, state_of(2))
        assert restored(checkpoints) == 2


def test_a_second_writer_is_refused_as_long_as_the_first_lives(store: Store) -> None:
    with manager(store) as first, manager(store) as second:
        first.save(1, state_of(1))
        time.sleep(2 * BEAT)
        with pytest.raises(AlreadyExists, match=r"another writer of this path is at work: .* process"):
            second.save(2, state_of(2))
        assert restored(second) == 1
        first.save(3, state_of(3))
    with manager(store) as third:
        third.save(4, state_of(4))
    assert [each.step for each in list_checkpoints(store.uri)] == [1, 3, 4]


KILLED = """
import sys, time, torch
from s3dcp import CheckpointManager
manager = CheckpointManager(sys.argv[1], region="us-east-1", beat_seconds=0.2)
manager.save(1, {"weight": torch.zeros(128, 16), "step": torch.tensor(1)})
print("saved", flush=True)
time.sleep(60)
"""


def test_after_a_kill_the_next_writer_takes_over(store: Store) -> None:
    command = [sys.executable, "-c", KILLED, store.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "saved\n"
            process.send_signal(signal.SIGSTOP)
            with manager(store) as checkpoints:
                checkpoints.save(2, state_of(2))
                # The first writer was only asleep: it has lost the path.
                process.send_signal(signal.SIGCONT)
                time.sleep(3 * BEAT)
                checkpoints.save(3, state_of(3))
        finally:
            process.kill()
    assert [each.step for each in list_checkpoints(store.uri)] == [1, 2, 3]


def test_a_writer_that_lost_the_path_saves_no_more(store: Store) -> None:
    with manager(store) as checkpoints:
        checkpoints.save(1, state_of(1))
        key = f"{store.path}/.s3dcp-writer"
        store.client.put_object(Bucket=store.bucket, Key=key, Body=b"somebody else\n")
        with pytest.raises(Conflict, match="another writer has taken this path over"):
            checkpoints.save(2, state_of(2))
    # What is another's stays.
    assert key in store.all_keys()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"keep": Keep()}, "keep"),
        ({"overwrite": False}, "overwrite"),
        ({"notes": {}}, "notes"),
        ({"strategy": lambda rank: str(rank)}, "strategy"),
    ],
)
def test_an_argument_that_cannot_work_is_named(store: Store, arguments: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        manager(store, **arguments)


@pytest.mark.parametrize("step", [-1, 1.5, True, "1"])
def test_a_step_is_a_number(store: Store, step: Any) -> None:
    with manager(store) as checkpoints, pytest.raises(ConfigError, match="step"):
        checkpoints.save(step, state_of(1))


def train_on_ranks(uri: str, async_: bool) -> list[int]:
    """A training on all ranks; which steps stay."""
    rank = dist.get_rank()
    with manager(uri, keep=Keep(last=2), async_=async_) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {f"of {rank}": values((64,), 10 * step + rank), "step": torch.tensor(step)})
        checkpoints.wait()
        state = {f"of {rank}": torch.zeros(64), "step": torch.tensor(-1)}
        found = checkpoints.restore(state)
        assert found.step == 3
        assert torch.equal(state[f"of {rank}"], values((64,), 30 + rank))
        # Retention is rank 0's, and may still be at work where the save was asynchronous.
        dist.barrier()
        return [each.step for each in checkpoints]


@pytest.mark.parametrize("async_", [False, True])
def test_ranks_save_and_restore_together(store: Store, groups: Callable[[int], Ranks], async_: bool) -> None:
    assert groups(2).run(train_on_ranks, store.uri, async_) == [[2, 3], [2, 3]]
