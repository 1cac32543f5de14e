"""What a save and a load say in the log."""

from __future__ import annotations

import logging
import re

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from support import jobs
from support.states import values
from support.store import Store

MOVED = (
    r"(save|load) of (s3://\S.*), rank (\d+): ([\d.]+) GiB in [\d.]+ s \([\d.]+ GiB/s\), "
    r"(\d+) requests, (\d+) retries, (\d+) SlowDowns"
)


def moved(log: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    return [found.groups() for record in log.records if (found := re.fullmatch(MOVED, record.getMessage()))]


def test_a_save_and_a_load_say_what_they_moved(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    state = {"w": values((16 << 20,))}
    with caplog.at_level(logging.INFO, logger="s3dcp"):
        jobs.save(state, store.uri)
        jobs.check(store.uri, state)
    (save, load) = moved(caplog)
    assert save[:4] == ("save", store.uri, "0", "0.06")
    assert load[:4] == ("load", store.uri, "0", "0.06")
    assert int(save[4]) > 1
    assert (save[5:], load[5:]) == (("0", "0"), ("0", "0"))
    assert any(
        re.fullmatch(rf"committed {re.escape(store.uri)}: an index of 1 items in [\d.]+ s", record.getMessage())
        for record in caplog.records
    )


def test_what_failed_is_not_told_of_as_moved(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    jobs.save({"w": values((1000,))}, store.uri)
    (name,) = store.shards()
    store.delete(name)
    with caplog.at_level(logging.INFO, logger="s3dcp"), pytest.raises(CheckpointException):
        jobs.check(store.uri, {"w": values((1000,))})
    assert moved(caplog) == []
