"""The benchmark itself still runs: tiny sizes, ours and the floor, no figure looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.torch_versions import needs

ROOT = Path(__file__).resolve().parent.parent
SERVER = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "s3dcp-bench-server"


@needs("no_dist")
@pytest.mark.skipif(not SERVER.exists(), reason="the benchmark's server is not built (make test-rust builds it)")
def test_a_benchmark_measures_every_row_of_its_case(tmp_path: Path) -> None:
    small = ["--gib", "0.04", "--runs", "1", "--only", "s3dcp,floor", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "https", *small]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=240).stdout
    result = json.loads((tmp_path / "https.json").read_text())
    assert f"## {result['title']}" in printed
    rows = {(row["operation"], row["candidate"]): row["runs"] for row in result["rows"]}
    assert list(rows) == [("save", "s3dcp"), ("load", "s3dcp"), ("save", "floor"), ("load", "floor")]
    for (run,) in rows.values():
        assert run["bytes"] > 0
        assert run["requests"] > 0
