"""The pages that the server and the simulator draw, in a real browser where one is installed (Debian's `chromium`)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from s3dcp import S3FileSystem, testing

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)")

Look = Callable[[str], str]


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """``look(url)``: the document after two seconds of its scripts."""

    def dom(url: str) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}"]
        command = [str(CHROMIUM), *options, "--virtual-time-budget=2000", "--dump-dom", url]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    return dom


def cells(document: str) -> list[list[str]]:
    """The rows of the table's body."""
    body = re.search(r'<tbody id="rows">(.*?)</tbody>', document, re.DOTALL)
    assert body, document
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body[1])]


def test_the_servers_page_counts_what_its_partitions_admit(look: Look) -> None:
    partitions = testing.Partitions(100, 100, first_keys=["checkpoints/m"])
    with testing.server(partitions=partitions) as server:
        files = S3FileSystem("us-east-1")
        for key in ("a", "b", "z"):
            with files.create_stream(f"s3://checkpoints/{key}", "wb") as stream:
                stream.write(b"x")
        lowest, highest = cells(look(f"{server.endpoint_url}/_s3dcp/"))
        expected = [partition.admitted for partition in server.partitions()]
    assert (lowest[0], highest[0]) == ("(lowest)", "checkpoints/m")
    assert [int(row[4]) for row in (lowest, highest)] == expected
    assert expected[0] >= 2


def test_a_report_draws_every_case(look: Look, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    job = ["--ranks", "64", "--bytes-per-rank", "1GiB", "--strategy", "default,hex", "--html", str(report)]
    subprocess.run([sys.executable, "-m", "s3dcp", "simulate", *job], check=True, stdout=subprocess.PIPE)
    document = look(report.as_uri())
    assert [row[0] for row in cells(document)] == ["default", "hex"]
    assert document.count("<canvas") == 3
    assert "Key space, hex" in document
