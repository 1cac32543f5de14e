"""``s3dcp bench`` measures what it says, and leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from s3dcp import testing
from support.command import refused, run, told
from support.store import Store

SMALL = ("--connections", "1,3", "--total", "3MiB", "--object-size", "1MiB")


def test_each_round_is_told_and_nothing_is_left(store: Store) -> None:
    found = told("bench", store.uri, *SMALL)
    assert [each["connections"] for each in found["rounds"]] == [1, 3]
    assert (found["total_bytes"], found["object_bytes"]) == (3 << 20, 1 << 20)
    for each in found["rounds"]:
        assert each["write_bytes_per_second"] > 1 << 20
        assert each["read_bytes_per_second"] > 1 << 20
        assert 0 < each["write"]["median"] <= each["write"]["p99"] < 3
        assert (each["slow_downs"], each["retries"]) == (0, 0)
    assert 0 < found["small_read"]["median"] <= found["small_read"]["p99"]
    assert store.all_keys() == []


def test_the_chart_fits_and_its_longest_bar_is_the_fastest(store: Store) -> None:
    lines = run("bench", store.uri, *SMALL).stdout.splitlines()
    assert lines[0].split()[:3] == ["connections", "write", "read"]
    assert max(line.count("\u2588") for line in lines) >= 24
    assert max(map(len, lines)) < 160
    assert "objects of 1.0 MiB" in lines[3]


def test_slow_downs_are_counted() -> None:
    with testing.server(buckets=["slow"], faults=["error:SlowDown on=PutObject skip=2 times=3"]):
        found = told("bench", "s3://slow/x", *SMALL)
        assert sum(each["slow_downs"] for each in found["rounds"]) > 0


def test_one_that_is_interrupted_deletes_its_objects(store: Store) -> None:
    command = [sys.executable, "-m", "s3dcp", "bench", store.uri, "--connections", "1", "--total", "16GiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while len(store.all_keys()) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped" in error
    assert store.all_keys() == []


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--connections", "0"), "max_connections"),
        (("--total", "0"), "--total"),
        (("--object-size", "x"), "--object-size"),
    ],
)
def test_arguments_that_make_no_sense_are_named(store: Store, arguments: tuple[str, ...], names: str) -> None:
    assert names in refused("bench", store.uri, *arguments, code=2)
    assert "s3://" in refused("bench", "/tmp", code=2)
