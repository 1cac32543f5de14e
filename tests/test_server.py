"""The embedded server's own ways: its options, directory, counters, environment, fixtures and command."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from s3dcp import testing
from support.by_hand import BUCKET, KEYS, MIB, Upload, connect, crc32, get, put, refusal


def test_requests_and_bytes_are_counted() -> None:
    with testing.Server(buckets=[BUCKET]) as server:
        s3 = connect(server)
        put(s3, "object", b"12345")
        assert get(s3, "object", Range="bytes=1-2") == b"23"
        refusal(s3.get_object, Bucket=BUCKET, Key="absent")
        stats = server.stats()
    assert stats.requests == {"PutObject": 1, "GetObject": 2}
    assert stats.responses == {200: 1, 206: 1, 404: 1}
    assert (stats.bytes_received, stats.bytes_sent) == (5, 2)
    with pytest.raises(RuntimeError, match="stopped"):
        server.stats()


def test_a_request_signed_for_another_region_learns_the_right_one() -> None:
    with testing.Server(buckets=[BUCKET], region="eu-central-1") as server:
        wrong = connect(server, region_name="us-west-2")
        with pytest.raises(ClientError) as caught:
            wrong.list_buckets()
        error = caught.value.response["Error"]
        assert (error["Code"], error["Region"]) == ("AuthorizationHeaderMalformed", "eu-central-1")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
        right = connect(server, region_name="eu-central-1")
        assert right.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] == "eu-central-1"


def test_etags_can_be_the_md5_of_the_content() -> None:
    with testing.Server(buckets=[BUCKET], md5_etags=True) as server:
        s3 = connect(server)
        assert put(s3, "object", b"body")["ETag"] == f'"{hashlib.md5(b"body").hexdigest()}"'
        upload = Upload(s3, "parts")
        bodies = [b"x" * 5 * MIB, b"end"]
        answer = upload.complete([upload.part(number, body) for number, body in enumerate(bodies, 1)])
        digests = b"".join(hashlib.md5(body).digest() for body in bodies)
        assert answer["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'


def test_a_directory_survives_its_server(tmp_path: Path) -> None:
    bodies = [os.urandom(5 * MIB), b"end"]
    with testing.Server(tmp_path, [BUCKET]) as server:
        s3 = connect(server)
        for key in KEYS:
            put(s3, key, key.encode(), Metadata={"a": "b"}, ChecksumAlgorithm="CRC32")
        upload = Upload(s3, "parts", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
        upload.complete([upload.part(number, body) for number, body in enumerate(bodies, 1)])
        put(s3, "gone", b"x")
        s3.delete_object(Bucket=BUCKET, Key="gone")
        put(s3, "plain", b"overwritten")
        Upload(s3, "unfinished").part(1, b"forgotten")
        before = {entry["Key"]: entry for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
        with pytest.raises(OSError, match="in use by another server"):
            testing.Server(tmp_path)
    with testing.Server(tmp_path, [BUCKET]) as server:
        s3 = connect(server)
        after = {entry["Key"]: entry for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]}
        assert after == before
        assert get(s3, "plain") == b"overwritten"
        assert get(s3, "parts", PartNumber=2) == b"end"
        head = s3.head_object(Bucket=BUCKET, Key="parts", ChecksumMode="ENABLED")
        assert head["ChecksumCRC32"] == crc32(b"".join(bodies))
        for key in KEYS[1:]:
            assert get(s3, key) == key.encode()
        assert len(list((tmp_path / "data").iterdir())) == len(KEYS) + 2, "nothing is kept that no object names"
        server.delete_bucket(BUCKET)
        assert not list((tmp_path / "data").iterdir())


MEMORY_PROGRAM = """
import resource, sys
from s3dcp import testing
with testing.Server(sys.argv[1], ["checkpoints"]) as server:
    print(server.endpoint_url, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
    sys.stdin.read()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


@pytest.mark.slow
def test_on_disk_a_large_object_costs_no_memory(tmp_path: Path) -> None:
    size = 2 << 30
    program = [sys.executable, "-c", MEMORY_PROGRAM, str(tmp_path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        endpoint, before = process.stdout.readline().split()
        s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="s3dcp",
            aws_secret_access_key="s3dcp-secret",
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )
        # A presigned request signs no body, so nothing has to be hashed.
        url = s3.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": "large"})
        piece = os.urandom(MIB)
        body = (piece for _ in range(size // MIB))
        request = urllib.request.Request(url, body, {"Content-Length": str(size)}, method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
        read = 0
        for chunk in s3.get_object(Bucket=BUCKET, Key="large")["Body"].iter_chunks(MIB):
            assert chunk == piece
            read += len(chunk)
        assert read == size
        process.stdin.close()
        after = process.stdout.readline()
    assert (int(after) - int(before)) * 1024 < 64 * MIB


def test_the_environment_is_set_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    before = dict(os.environ)
    with testing.server(buckets=["one", "two"]) as server:
        assert os.environ["AWS_ENDPOINT_URL"] == server.endpoint_url
        assert "AWS_SESSION_TOKEN" not in os.environ
        names = [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
        assert names == ["one", "two"]
    assert dict(os.environ) == before
    with testing.server(environment=False):
        assert dict(os.environ) == before


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='bucket name "No" is not valid'):
        testing.Server(buckets=["No"])
    with pytest.raises(ValueError, match="address must be"):
        testing.Server(address="localhost")
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(OSError, match="holds no objects of this server"):
        testing.Server(tmp_path)
    with testing.Server() as server, pytest.raises(OSError, match="cannot listen"):
        testing.Server(address=server.endpoint_url.removeprefix("http://"))


def test_a_forked_child_is_told_that_the_server_is_not_its_own() -> None:
    program = """
import os, sys, warnings
from s3dcp import testing
warnings.simplefilter("ignore")
server = testing.Server()
child = os.fork()
if child == 0:
    try:
        server.stats()
    except RuntimeError as error:
        assert "forked child" in str(error)
        del server
        sys.exit(7)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
server.stats()
server.stop()
server.stop()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_fixtures_give_an_empty_bucket(s3dcp_server: testing.Server, s3dcp_bucket: str) -> None:
    s3 = boto3.client("s3")
    assert s3.meta.endpoint_url == s3dcp_server.endpoint_url
    assert s3.list_objects_v2(Bucket=s3dcp_bucket)["KeyCount"] == 0
    s3.put_object(Bucket=s3dcp_bucket, Key="left behind", Body=b"")


def test_neither_the_command_nor_the_server_imports_torch() -> None:
    program = "import sys, s3dcp.testing, s3dcp.__main__, s3dcp.pytest_plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "s3dcp", *arguments], capture_output=True, text=True, timeout=60)


def test_the_command_tells_success_from_misuse() -> None:
    assert command("--version").stdout.startswith("s3dcp ")
    shown = command("strategies", "hex", "--ranks", "16", "--epoch", "5")
    assert shown.returncode == 0
    assert "a000000000/epoch_5/__10_" in shown.stdout
    misused = command("strategies", "numeric", "--ranks", "4", "--base", "99")
    assert misused.returncode == 2
    assert "base" in misused.stderr
    failed = command("serve", "--address", "127.0.0.1:0", "--bucket", "No")
    assert failed.returncode == 1
    assert "bucket name" in failed.stderr


def test_the_command_shows_a_tree(s3dcp_bucket: str) -> None:
    s3 = boto3.client("s3")
    for key in (".metadata", "0000000000/__0_0.distcp", "1000000000/__1_0.distcp"):
        s3.put_object(Bucket=s3dcp_bucket, Key=f"run 1/{key}", Body=b"x" * 2048)
    shown = command("tree", f"s3://{s3dcp_bucket}/run 1")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"s3://{s3dcp_bucket}/run 1/  3 objects, 6.0 KiB",
        "├── .metadata  2.0 KiB",
        "├── 0000000000/  1 object, 2.0 KiB",
        "│   └── __0_0.distcp  2.0 KiB",
        "└── 1000000000/  1 object, 2.0 KiB",
        "    └── __1_0.distcp  2.0 KiB",
    ]
    assert command("tree", f"s3://{s3dcp_bucket}/run").returncode == 1
    assert command("tree", "s3://no-such-bucket").returncode == 1
    misused = command("tree", "checkpoints/run")
    assert misused.returncode == 2
    assert "s3://" in misused.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, stop: signal.Signals) -> None:
    arguments = ["serve", "--address", "127.0.0.1:0", "--bucket", BUCKET, "--data", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-m", "s3dcp", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(5)]
        exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in said[1:])
        s3 = boto3.client(
            "s3",
            endpoint_url=exported["AWS_ENDPOINT_URL"],
            aws_access_key_id=exported["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exported["AWS_SECRET_ACCESS_KEY"],
            region_name=exported["AWS_REGION"],
        )
        put(s3, "object", b"body")
        process.send_signal(stop)
        assert process.wait(timeout=30) == 0
    with testing.Server(tmp_path) as server:
        assert get(connect(server), "object") == b"body"
