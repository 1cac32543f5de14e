"""The benchmark itself still runs: tiny sizes, ours and the floor, no figure looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "s3dcp-bench-server"


@pytest.mark.skipif(not SERVER.exists(), reason="the benchmark's server is not built (make test-rust builds it)")
def test_a_benchmark_measures_every_row_of_its_cases(tmp_path: Path) -> None:
    cases = ["large", "tiny"]
    small = ["--gib", "0.04", "--count", "50", "--runs", "1", "--only", "s3dcp,floor"]
    command = [sys.executable, str(ROOT / "bench" / "run.py"), *cases, *small, "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=240).stdout
    for case in cases:
        result = json.loads((tmp_path / f"{case}.json").read_text())
        assert f"## {result['title']}" in printed
        ours = {row["operation"] for row in result["rows"] if row["candidate"] == "s3dcp"}
        assert ours == {"save", "load"}
        for row in result["rows"]:
            (run,) = row["runs"]
            assert run["bytes"] > 0
            assert run["requests"] > 0 or row["candidate"] == "nothing"
