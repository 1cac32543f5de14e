"""What the embedded server says when its disk is full, or refuses otherwise, and what it keeps then."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from botocore.exceptions import ClientError

import s3dcp
from s3dcp import testing
from support import jobs
from support.by_hand import BUCKET, MIB, Upload, connect, get, put

pytestmark = pytest.mark.s3("embedded")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``mounted("size=8m")``: a small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def mount(options: str) -> Path:
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no small disk can be mounted here: {error}")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder / "data"

        yield mount


def told(call: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[int, str, str]:
    """Status, code and message."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **named)
    error = caught.value.response["Error"]
    return caught.value.response["ResponseMetadata"]["HTTPStatusCode"], error["Code"], error["Message"]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_is_told_as_such_and_keeps_what_it_has(mounted: Callable[[str], Path]) -> None:
    data = mounted("size=8m")
    with testing.Server(data, [BUCKET]) as server:
        s3 = connect(server)
        before = os.urandom(3 * MIB)
        put(s3, "object", before)
        upload = Upload(s3, "upload")
        kept = files(data)
        for call, arguments in [
            (put, (s3, "object", os.urandom(16 * MIB))),
            (put, (s3, "another", os.urandom(6 * MIB))),
            (upload.part, (1, os.urandom(6 * MIB))),
        ]:
            status, code, message = told(call, *arguments)
            assert (status, code) == (507, "InsufficientStorage")
            assert "disk is full" in message
            assert str(data) in message
            assert "No space left on device" in message
            assert files(data) == kept
        assert get(s3, "object") == before
        # With room again, everything goes on.
        s3.delete_object(Bucket=BUCKET, Key="object")
        after = os.urandom(6 * MIB)
        upload.complete([upload.part(1, after)])
        assert get(s3, "upload") == after
    with testing.Server(data) as server:
        assert get(connect(server), "upload") == after


def room_for(s3: Any, key: str) -> bool:
    try:
        put(s3, key, b"body")
    except ClientError:
        return False
    return True


def test_a_disk_without_room_for_names_is_full_too(mounted: Callable[[str], Path]) -> None:
    data = mounted("size=8m,nr_inodes=40")
    with testing.Server(data, [BUCKET]) as server:
        s3 = connect(server)
        stored = 0
        while stored < 100 and room_for(s3, f"object-{stored}"):
            stored += 1
        assert 2 < stored < 100
        status, code, message = told(put, s3, f"object-{stored}", b"body")
        assert (status, code) == (507, "InsufficientStorage")
        assert "disk is full" in message
        assert told(s3.create_bucket, Bucket="another")[0] == 507
        for number in range(stored):
            assert get(s3, f"object-{number}") == b"body"
        assert not [name for name in files(data) if name.endswith("unfinished")]
        s3.delete_object(Bucket=BUCKET, Key="object-0")
        s3.delete_object(Bucket=BUCKET, Key="object-1")
        put(s3, "object-2", b"after")
        assert get(s3, "object-2") == b"after"


def test_a_save_to_a_full_disk_says_so_once_and_leaves_the_checkpoint_before(
    mounted: Callable[[str], Path], failure: Callable[..., BaseException]
) -> None:
    data = mounted("size=24m")
    with testing.server([BUCKET], data) as server:
        state = {"weight": torch.arange(1 << 20, dtype=torch.float32)}
        uri = f"s3://{BUCKET}/run"
        jobs.save(state, uri)
        larger = {"weight": torch.zeros(8 << 20, dtype=torch.float32)}
        asked = server.stats().responses.get(507, 0)
        error = failure(jobs.save, larger, uri)
        assert isinstance(error, s3dcp.S3DcpError)
        assert "disk is full" in str(error)
        assert str(data) in str(error)
        assert error.attempts == 1
        assert server.stats().responses[507] > asked
        loaded = {"weight": torch.zeros(1 << 20, dtype=torch.float32)}
        jobs.load(loaded, uri)
        assert torch.equal(loaded["weight"], state["weight"])
        jobs.save(loaded, f"s3://{BUCKET}/another")


LIMITED = f"""
import os, resource, sys
from s3dcp import testing
with testing.Server(sys.argv[1], ["{BUCKET}"]) as server:
    print(server.endpoint_url, flush=True)
    for line in sys.stdin:
        name, limit = line.split()
        if limit == "none":
            limit = resource.getrlimit(getattr(resource, name))[1]
        elif limit == "now":
            with open("/dev/null") as file:
                limit = file.fileno()
        resource.setrlimit(getattr(resource, name), (int(limit), resource.getrlimit(getattr(resource, name))[1]))
        print("done", flush=True)
"""


class Limited:
    """A server on disk in a process of its own, whose limits can be set."""

    access_key, secret_key = "s3dcp", "s3dcp-secret"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.endpoint_url = process.stdout.readline().strip()

    def limit(self, name: str, value: int | str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {value}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    program = [sys.executable, "-c", LIMITED, str(tmp_path / "data")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        yield Limited(process)
        process.stdin.close()
    assert process.returncode == 0


def test_a_file_that_may_not_grow_is_told_as_such(limited: Limited, tmp_path: Path) -> None:
    s3 = connect(limited)  # type: ignore[arg-type]
    put(s3, "object", b"before")
    kept = files(tmp_path / "data")
    limited.limit("RLIMIT_FSIZE", MIB)
    status, code, message = told(put, s3, "object", os.urandom(3 * MIB))
    assert (status, code) == (507, "InsufficientStorage")
    assert "larger than a file may be" in message
    assert str(tmp_path / "data") in message
    assert files(tmp_path / "data") == kept
    assert get(s3, "object") == b"before"
    limited.limit("RLIMIT_FSIZE", "none")
    put(s3, "object", os.urandom(3 * MIB))


def test_a_server_out_of_file_descriptors_says_so_of_writes_and_of_reads(limited: Limited) -> None:
    s3 = connect(limited)  # type: ignore[arg-type]
    put(s3, "object", b"body")
    limited.limit("RLIMIT_NOFILE", "now")
    for call, arguments in [(put, (s3, "another", b"body")), (get, (s3, "object"))]:
        status, code, message = told(call, *arguments)
        assert (status, code) == (503, "ServiceUnavailable")
        assert "too many files open" in message
    limited.limit("RLIMIT_NOFILE", "none")
    assert get(s3, "object") == b"body"
    put(s3, "another", b"body")


def test_a_disk_that_became_read_only_is_told_as_such(mounted: Callable[[str], Path]) -> None:
    data = mounted("size=8m")
    with testing.Server(data, [BUCKET]) as server:
        s3 = connect(server)
        put(s3, "object", b"body")
        # The lock is a file that is open for writing, which a remount would wait for; a bind mount does not.
        subprocess.run(["mount", "--bind", str(data), str(data)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(data)], check=True)
            for call, arguments in [
                (put, (s3, "object", b"after")),
                (lambda: s3.delete_object(Bucket=BUCKET, Key="object"), ()),
                (lambda: s3.create_bucket(Bucket="another"), ()),
            ]:
                status, code, message = told(call, *arguments)
                assert (status, code) == (500, "InternalError")
                assert "disk is read-only" in message
                assert str(data) in message
            assert get(s3, "object") == b"body"
        finally:
            subprocess.run(["umount", str(data)], check=True)
        put(s3, "object", b"after")
        assert get(s3, "object") == b"after"


def test_a_read_of_bytes_that_are_gone_is_an_error_and_no_shorter_body(tmp_path: Path) -> None:
    with testing.Server(tmp_path / "data", [BUCKET]) as server:
        s3 = connect(server)
        put(s3, "object", b"body")
        for file in (tmp_path / "data" / "data").iterdir():
            file.unlink()
        status, code, message = told(get, s3, "object")
        assert (status, code) == (500, "InternalError")
        assert "No such file" in message
        assert (
            told(s3.copy_object, Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/object", ChecksumAlgorithm="SHA256")[
                0
            ]
            == 500
        )
