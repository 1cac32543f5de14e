"""The wheel, as it is built for a release, in an environment that holds nothing else."""

from __future__ import annotations

import platform
import re
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from s3dcp import __version__, testing
from support import packages
from support.packages import DIST, ROOT, run

pytestmark = pytest.mark.slow

EM_AARCH64, EM_X86_64 = 183, 62


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For this machine: the one of `make wheels`, else one that is built here, which other machines may not take."""
    if DIST is not None:
        return packages.built(f"*_{platform.machine()}.whl")
    options = ("--locked", "--release", "--quiet", "--compatibility", "linux", "-i", sys.executable)
    return packages.maturin("build", *options, out=tmp_path_factory.mktemp("wheel"))


def holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(packages.checksums(wheel))
    assert {name.split("/")[0] for name in names} == {"s3dcp", "s3dcp_autoload", f"s3dcp-{__version__}.dist-info"}
    assert {"s3dcp/_native.abi3.so", "s3dcp/_native.pyi", "s3dcp/py.typed"} <= names
    assert not [name for name in names if name.endswith(".pyc")]
    assert wheel.stat().st_size < 32 << 20


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.startswith(f"s3dcp-{__version__}-cp310-abi3-")
    holds_the_package_and_nothing_else(wheel)


@packages.needs_dist
@pytest.mark.parametrize(("machine", "elf"), [("x86_64", EM_X86_64), ("aarch64", EM_AARCH64)])
def test_each_machines_wheel_asks_for_no_newer_glibc_than_it_says(machine: str, elf: int) -> None:
    wheel = packages.built(f"*_{machine}.whl")
    assert wheel.name == f"s3dcp-{__version__}-cp310-abi3-manylinux2014_{machine}.manylinux_2_17_{machine}.whl"
    holds_the_package_and_nothing_else(wheel)
    with zipfile.ZipFile(wheel) as archive:
        module = archive.read("s3dcp/_native.abi3.so")
    assert module[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
    assert int.from_bytes(module[18:20], "little") == elf
    versions = {tuple(map(int, each.split(b"."))) for each in re.findall(rb"\0GLIBC_([0-9.]+)\0", module)}
    assert (2, 17) in versions
    assert max(versions) == (2, 17)


def test_the_command_needs_no_torch_and_the_quickstart_runs_with_it(wheel: Path, tmp_path: Path) -> None:
    programs = packages.empty_environment(tmp_path / "empty")
    python, command = programs / "python", programs / "s3dcp"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert "torch" not in run(python, "-m", "pip", "list")
    assert run(command, "--version").strip() == f"s3dcp {__version__}"
    assert "a000000000" in run(command, "strategies", "hex", "--ranks", "16")
    assert run(python, "-c", "import s3dcp; print(s3dcp.__version__)").strip() == __version__
    # torch, as it is installed beside.
    (site,) = (tmp_path / "empty/lib").glob("python*/site-packages")
    (site / "torch.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    with testing.server(buckets=["checkpoints"], environment=True):
        run(python, ROOT / "examples/quickstart.py")
        assert "1 shard file" not in run(command, "ls", "s3://checkpoints/quickstart")
        assert "good" in run(command, "verify", "s3://checkpoints/quickstart")
