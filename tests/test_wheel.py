"""The wheel, as it is built for a release, in an environment that holds nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from s3dcp import __version__, testing

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: object, **variables: str) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    build = ("build", "--locked", "--release", "--quiet", "--compatibility", "linux", "-i", sys.executable)
    run(sys.executable, "-m", "maturin", *build, "--out", out, CARGO_TARGET_DIR=target)
    (wheel,) = out.iterdir()
    return wheel


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.startswith(f"s3dcp-{__version__}-cp310-abi3-linux_")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"s3dcp", "s3dcp_autoload", f"s3dcp-{__version__}.dist-info"}
    assert {"s3dcp/_native.abi3.so", "s3dcp/_native.pyi", "s3dcp/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith(".pyc")]
    assert wheel.stat().st_size < 32 << 20


def test_the_command_needs_no_torch_and_the_quickstart_runs_with_it(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True, symlinks=True)
    python = tmp_path / "empty/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert "torch" not in run(python, "-m", "pip", "list")
    command = tmp_path / "empty/bin/s3dcp"
    assert run(command, "--version").strip() == f"s3dcp {__version__}"
    assert "a000000000" in run(command, "strategies", "hex", "--ranks", "16")
    assert run(python, "-c", "import s3dcp; print(s3dcp.__version__)").strip() == __version__
    # torch, as it is installed beside.
    (site,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with testing.server(buckets=["checkpoints"], environment=True):
        run(python, ROOT / "examples/quickstart.py")
        assert "1 shard file" not in run(command, "ls", "s3://checkpoints/quickstart")
        assert "good" in run(command, "verify", "s3://checkpoints/quickstart")
