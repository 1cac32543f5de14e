"""The demo runs and holds, and says so when something does not."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo" / "run.py"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(300)
def test_a_killed_save_is_invisible_and_the_job_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO), "--quick"], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 3 was killed (SIGKILL)" in done.stdout
    assert "✗" not in done.stdout
    assert done.stdout.count("✓") == 6
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_the_job_trains_on_a_text_of_its_own() -> None:
    """What it computes then changes with the demo alone, and not with a page of the project."""
    text = DEMO.with_name("text.txt").read_bytes()
    assert text.isascii()
    assert 5_000 < len(text) < 50_000
    source = DEMO.with_name("train.py").read_text()
    assert 'Path(__file__).with_name("text.txt")' in source
    assert source.count("Path(__file__)") == 1


@pytest.fixture(scope="module")
def demo() -> Any:
    spec = importlib.util.spec_from_file_location("demo_run", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@dataclasses.dataclass
class Seen:
    """What `check` asks of a bucket."""

    newest_step: int
    indexes: tuple[int, ...]

    def has_index(self, step: int) -> bool:
        return step in self.indexes


def good_runs(demo: Any) -> dict[str, Any]:
    """The arguments of `check` for a demo in which everything holds; saves every 3 steps."""
    return {
        "setting": demo.QUICK,
        "first": demo.Run(
            exit_status=1,
            losses={step: 5.0 - step / 10 for step in range(1, 10)},
            saves=[{"step": 3, "sha256": "aa"}, {"step": 6, "sha256": "bb"}],
            killed={"rank": 3, "bytes_sent": 5, "bytes_total": 9},
            resumed=None,
        ),
        "second": demo.Run(
            exit_status=0,
            losses={step: 5.0 - step / 10 for step in range(7, 13)},
            saves=[],
            killed=None,
            resumed={"step": 6, "ranks": 2, "sha256": "bb"},
        ),
        "after_crash": Seen(6, (3, 6)),
        "at_end": Seen(12, (3, 6, 9, 12)),
    }


def test_everything_holds_in_a_good_run(demo: Any) -> None:
    assert demo.check(**good_runs(demo)) == 0


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param({"first": {"exit_status": 0}}, id="the first job did not die"),
        pytest.param({"first": {"killed": {"bytes_sent": 9, "bytes_total": 9}}}, id="the save was over"),
        pytest.param({"after_crash": {"newest_step": 9}}, id="the broken save is the newest"),
        pytest.param({"after_crash": {"indexes": (3, 6, 9)}}, id="the broken save has an index"),
        pytest.param({"second": {"resumed": {"step": 3, "ranks": 2, "sha256": "bb"}}}, id="an older step"),
        pytest.param({"second": {"resumed": {"step": 6, "ranks": 2, "sha256": "bc"}}}, id="one bit differs"),
        pytest.param({"second": {"losses": {7: 4.301, 8: 4.2, 9: 4.1}}}, id="another loss"),
        pytest.param({"second": {"losses": {7: 4.3, 8: 4.2}}}, id="a step is missing"),
        pytest.param({"second": {"exit_status": 1}}, id="the second job failed"),
        pytest.param({"at_end": {"newest_step": 9}}, id="the last save is missing"),
    ],
)
def test_what_does_not_hold_is_counted(demo: Any, broken: dict[str, dict[str, Any]]) -> None:
    arguments = good_runs(demo)
    for name, changes in broken.items():
        arguments[name] = dataclasses.replace(arguments[name], **changes)
    assert demo.check(**arguments) == 1
