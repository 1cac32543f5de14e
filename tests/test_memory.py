"""A save or load never holds a second copy of the state.

The endpoint is another process that keeps objects on disk. The process that saves is another one too, and
counts the growth of its own resident memory from just before the call to its peak.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024 * 1024
TESTS = Path(__file__).parent
LIMIT = 64 * MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc"),
]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of an endpoint in a process of its own; its objects are deleted afterwards."""
    folder = tmp_path / "objects"
    code = (
        "import json, sys\n"
        "from s3dcp import testing\n"
        "with testing.server(buckets=['memory'], data=sys.argv[1]) as server:\n"
        "    print(json.dumps([server.endpoint_url, server.access_key, server.secret_key]), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        url, access_key, secret_key = json.loads(process.stdout.readline())
        yield {
            **os.environ,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": "us-east-1",
        }
        assert process.stdin
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def measure(environment: dict[str, str], kind: str, mib: int) -> dict[str, int]:
    """Extra bytes at the peak of a save and of a load, from `support.memory_job`."""
    done = subprocess.run(
        [sys.executable, "-m", "support.memory_job", kind, str(mib)],
        cwd=TESTS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_saving_and_loading_two_gib_needs_less_than_64_mib_more(remote: dict[str, str]) -> None:
    extra = measure(remote, "plain", 2048)
    assert extra["save"] < LIMIT, extra
    assert extra["load"] < LIMIT, extra


def test_views_that_must_be_copied_need_no_more(remote: dict[str, str]) -> None:
    extra = measure(remote, "strided", 512)
    assert extra["save"] < LIMIT, extra
    assert extra["load"] < LIMIT, extra


def test_converting_on_load_needs_no_more(remote: dict[str, str]) -> None:
    extra = measure(remote, "converted", 512)
    assert extra["save"] < LIMIT, extra
    assert extra["load"] < LIMIT, extra
