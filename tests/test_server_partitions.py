"""The model of S3's partitions in front of the embedded server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from s3dcp import testing

BUCKET = "checkpoints"


def client() -> Any:
    return boto3.client("s3", config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))


def refused(s3: Any, operation: str, count: int, key: Any) -> int:
    """How many of `count` requests in a row are refused with a SlowDown as S3 sends it."""
    number = 0
    for turn in range(count):
        arguments = {"Bucket": BUCKET, "Key": key(turn)} | ({"Body": b"x"} if operation == "put_object" else {})
        try:
            getattr(s3, operation)(**arguments)
        except ClientError as error:
            response = error.response
            if response["Error"]["Code"] == "404":
                continue
            assert response["ResponseMetadata"]["HTTPStatusCode"] == 503
            assert int(response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) >= 1
            if operation == "put_object":
                assert response["Error"]["Code"] == "SlowDown"
                assert response["Error"]["Message"] == "Please reduce your request rate."
            number += 1
    return number


def test_what_is_too_much_for_a_partition_is_slowed_down() -> None:
    with testing.server([BUCKET], partitions=testing.Partitions(5, 50)) as server:
        s3 = client()
        assert 10 <= refused(s3, "put_object", 20, lambda turn: f"{turn}") < 20
        assert refused(s3, "head_object", 20, lambda turn: f"{turn}") == 0, "reads have a budget of their own"
        (partition,) = server.partitions()
        assert (partition.first_key, partition.end_key) == ("", None)
        assert partition.admitted + partition.refused == 40
        assert partition.load > 0
        time.sleep(1)
        assert refused(s3, "put_object", 4, lambda turn: f"{turn}") == 0


def test_prefixes_help_where_partitions_lie_between_them() -> None:
    starts = [f"{BUCKET}/{digit:x}" for digit in range(1, 4)]
    with testing.server([BUCKET], partitions=testing.Partitions(5, 50, first_keys=starts)) as server:
        assert refused(client(), "put_object", 20, lambda turn: f"{turn % 4}/x") == 0
        assert [partition.first_key for partition in server.partitions()] == ["", *starts]
        assert [partition.admitted for partition in server.partitions()] == [5, 5, 5, 5]


def test_a_partition_that_stays_hot_splits() -> None:
    partitions = testing.Partitions(20, 50, heat_window=0.2, split_after=0.5)
    with testing.server([BUCKET], partitions=partitions) as server:
        s3 = client()
        until = time.monotonic() + 20
        while len(server.partitions()) == 1 and time.monotonic() < until:
            refused(s3, "put_object", 16, lambda turn: f"{turn:x}/x")
        lower, upper = server.partitions()[:2]
        assert lower.end_key == upper.first_key
        assert upper.first_key.startswith(f"{BUCKET}/")


def test_the_figures_are_json_and_a_page_draws_them() -> None:
    with testing.server([BUCKET], partitions=testing.Partitions(5, 50)) as server:
        refused(client(), "put_object", 3, lambda turn: "k")
        with urllib.request.urlopen(f"{server.endpoint_url}/_s3dcp/partitions") as answer:
            figures = json.load(answer)
        assert (figures["writes_per_second"], figures["reads_per_second"]) == (5, 50)
        (partition,) = figures["partitions"]
        assert (partition["first_key"], partition["admitted"], partition["refused"]) == ("", 3, 0)
        with urllib.request.urlopen(f"{server.endpoint_url}/_s3dcp/") as answer:
            assert answer.headers["content-type"].startswith("text/html")
            assert b"<canvas" in answer.read()
    with testing.server([BUCKET]) as server:
        assert server.partitions() == []
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.endpoint_url}/_s3dcp/")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"writes_per_second": 0}, "writes_per_second"),
        ({"reads_per_second": float("nan")}, "reads_per_second"),
        ({"heat_window": 0}, "heat_window"),
        ({"split_after": -1}, "split_after"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        testing.Partitions(**arguments)


def test_the_command_puts_partitions_in_front() -> None:
    command = [sys.executable, "-m", "s3dcp", "serve", "--address", "127.0.0.1:0", "--bucket", BUCKET]
    command += ["--partitions", "0.001", "--partition-speed", "60", "--partition-at", f"{BUCKET}/8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        page = next(line.split()[-1] for line in process.stdout if "/_s3dcp/" in line)
        with urllib.request.urlopen(f"{page}partitions") as answer:
            figures = json.load(answer)
        process.terminate()
    assert figures["writes_per_second"] == 3.5
    assert [partition["first_key"] for partition in figures["partitions"]] == ["", f"{BUCKET}/8"]


SAMPLE = re.compile(r'(\w+?)(?:\{(\w+)="((?:[^"\\]|\\.)*)"\})? (\d+)')


def metrics(server: testing.Server) -> dict[tuple[str, str, str], int]:
    """Each sample by its name, its label and the label's value."""
    with urllib.request.urlopen(f"{server.endpoint_url}/_s3dcp/metrics") as answer:
        assert answer.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        *lines, end = answer.read().decode().splitlines()
    assert end == "# EOF"
    found = [SAMPLE.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(found), lines
    return {(each[1], each[2] or "", each[3] or ""): int(each[4]) for each in found if each}


def test_prometheus_is_told_what_the_server_did() -> None:
    first_key = f'{BUCKET}/"8'
    with testing.server([BUCKET], partitions=testing.Partitions(2, 50, first_keys=[first_key])) as server:
        assert refused(client(), "put_object", 5, lambda turn: "k") == 3
        client().get_object(Bucket=BUCKET, Key="k")["Body"].read()
        told, stats = metrics(server), server.stats()
        for operation, count in stats.requests.items():
            assert told["s3dcp_server_requests_total", "operation", operation] == count
        for status, count in stats.responses.items():
            assert told["s3dcp_server_responses_total", "status", str(status)] == count
        assert told["s3dcp_server_responses_total", "status", "503"] == 3
        assert told["s3dcp_server_received_bytes_total", "", ""] == stats.bytes_received > 0
        assert told["s3dcp_server_sent_bytes_total", "", ""] == stats.bytes_sent > 0
        for partition in server.partitions():
            label = partition.first_key.replace('"', '\\"')
            assert told["s3dcp_server_partition_admitted_total", "first_key", label] == partition.admitted
            assert told["s3dcp_server_partition_refused_total", "first_key", label] == partition.refused
    with testing.server([BUCKET]) as server:
        assert not [name for name, _, _ in metrics(server) if "partition" in name]
