"""Packages as they are built for a release, and environments that hold nothing else."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# What `make wheels` built, where its tests run.
DIST = Path(os.environ["S3DCP_DIST"]) if "S3DCP_DIST" in os.environ else None
needs_dist = pytest.mark.skipif(DIST is None, reason="`make test-wheels` runs it")


def run(*command: object, cwd: Path = ROOT, timeout: float = 900, **variables: str) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(
        [str(each) for each in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(pattern: str) -> Path:
    """The one file of `DIST`."""
    assert DIST is not None
    found = list(DIST.glob(pattern))
    assert len(found) == 1, f"{len(found)} files {pattern} in {DIST}: run `make wheels`"
    return found[0]


def maturin(*arguments: object, out: Path) -> Path:
    """The one file that maturin builds; dependencies that the tests' own build compiled are not compiled again."""
    # The environment of another torch sees maturin's package, and has its program nowhere that the package looks.
    program = next(file for file in metadata.files("maturin") or () if file.name == "maturin").locate()
    run(program, *arguments, "--out", out, CARGO_TARGET_DIR=str(TARGET))
    (file,) = out.iterdir()
    return file


def empty_environment(folder: Path) -> Path:
    """The folder of the programs of an environment without packages."""
    venv.create(folder, with_pip=True, symlinks=True)
    return folder / "bin"


def checksums(wheel: Path) -> dict[str, int]:
    """The CRC-32 of every file of a wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: each.CRC for each in archive.infolist()}
