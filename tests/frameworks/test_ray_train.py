"""The example for Ray Train, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import pages
from support.store import Store

pytest.importorskip("ray.train", reason="ray is installed by `make test-frameworks`")

EXAMPLE = pages.ROOT / "examples/ray_train.py"


def run(store: Store, cwd: Path) -> list[int]:
    """The epochs that a run saved, by each of its workers."""
    variables = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", EXAMPLE, f"s3://{store.bucket}/run"],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [int(epoch) for epoch in re.findall(r"saved epoch (\d+)", done.stdout + done.stderr)]


@pytest.mark.slow
def test_a_second_run_goes_on_where_the_first_ended(store: Store, tmp_path: Path) -> None:
    assert max(run(store, tmp_path)) == 1
    keys = [key for key in store.all_keys() if not key.endswith(".metadata")]
    assert len(keys) == 2, "two workers saved a file each, and those of the first epoch are gone"
    second = run(store, tmp_path)
    assert (min(second), max(second)) == (2, 3)
    assert not any(tmp_path.iterdir())


def test_the_page_shows_the_training_of_the_example() -> None:
    [snippet] = [block for block in pages.blocks("docs/frameworks.md", "python") if "prepare_model" in block]
    assert snippet.strip() in EXAMPLE.read_text()
