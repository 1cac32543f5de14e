"""The source distribution and the crates: what they hold, and that they are enough to build from."""

from __future__ import annotations

import platform
import re
import tarfile
from pathlib import Path

import pytest

from s3dcp import __version__
from support import packages
from support.packages import DIST, ROOT, run

# Those that Python alone needs are not published.
PRIVATE = {"entry", "python"}
CRATES = {path.parent.name for path in ROOT.glob("crates/*/Cargo.toml")}
TOP = {"Cargo.lock", "Cargo.toml", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}


def files(folder: str, *suffixes: str) -> set[str]:
    """The files below a folder of the project."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if not suffixes or path.suffix in suffixes}


def of_crate(crate: str) -> set[str]:
    """What of a crate others get."""
    folder = ROOT / "crates" / crate
    top = {f"crates/{crate}/{name}" for name in ("Cargo.toml", "LICENSE", "README.md") if (folder / name).exists()}
    return top | files(f"crates/{crate}/src") | files(f"crates/{crate}/examples")


def locked(lock: Path) -> set[tuple[str, str]]:
    """Name and version of every package of a Cargo.lock."""
    return set(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', lock.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if DIST is not None:
        return packages.built("*.tar.gz")
    return packages.maturin("sdist", out=tmp_path_factory.mktemp("sdist"))


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.12 and 3.13 want one
        archive.extractall(tmp_path)
    return tmp_path / f"s3dcp-{__version__}"


def test_the_sdist_holds_the_sources_and_no_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"s3dcp-{__version__}/") for name in archive.getnames()}
    assert names == TOP | files("python", ".py", ".pyi", ".typed").union(*map(of_crate, CRATES))


def test_the_sdist_is_a_workspace_of_its_own_with_the_versions_of_ours(unpacked: Path) -> None:
    ours = locked(unpacked / "Cargo.lock")
    assert ours == locked(ROOT / "Cargo.lock")
    # What only our benchmarks use falls out, nothing comes in.
    run("cargo", "update", "--workspace", "--offline", "--quiet", cwd=unpacked)
    left = locked(unpacked / "Cargo.lock")
    assert left < ours
    assert {name for name, _ in left if name.startswith("s3dcp-")} == {f"s3dcp-{crate}" for crate in CRATES}


@packages.needs_dist
@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel_where_nothing_else_is(unpacked: Path, tmp_path: Path) -> None:
    programs = packages.empty_environment(tmp_path / "empty")
    # Crates of equal names that were compiled from files no older than these would pass for theirs.
    for source in unpacked.rglob("*.rs"):
        source.touch()
    target = packages.TARGET / "sdist"
    options = ("--quiet", "--no-cache-dir", "--no-deps", "--wheel-dir", tmp_path / "wheels")
    run(programs / "python", "-m", "pip", "wheel", *options, unpacked, timeout=3600, CARGO_TARGET_DIR=str(target))
    (wheel,) = (tmp_path / "wheels").iterdir()
    other, ours = (packages.checksums(each) for each in (wheel, packages.built(f"*_{platform.machine()}.whl")))
    assert set(other) == set(ours)
    # The module is linked elsewhere, and the metadata says where and when.
    differ = {name.rpartition("/")[2] for name in ours if ours[name] != other[name]}
    assert differ <= {"_native.abi3.so", "RECORD", "WHEEL", "s3dcp-python.cyclonedx.json"}


def test_the_crates_hold_what_builds_them_and_their_licence(tmp_path: Path) -> None:
    published = sorted(CRATES - PRIVATE)
    chosen = [f"--package=s3dcp-{crate}" for crate in published]
    options = ("--no-verify", "--locked", "--offline", "--allow-dirty", "--target-dir", tmp_path)
    run("cargo", "package", "--quiet", *options, *chosen)
    for crate in published:
        with tarfile.open(tmp_path / f"package/s3dcp-{crate}-{__version__}.crate") as archive:
            names = {name.removeprefix(f"s3dcp-{crate}-{__version__}/") for name in archive.getnames()}
            licence = archive.extractfile(f"s3dcp-{crate}-{__version__}/LICENSE")
            assert licence is not None
            assert licence.read() == (ROOT / "LICENSE").read_bytes()
        own = {name.removeprefix(f"crates/{crate}/") for name in of_crate(crate)} | {"README.md"}
        assert names - {"Cargo.lock", "Cargo.toml.orig", ".cargo_vcs_info.json"} == own
        # What is compiled in lies in the crate.
        for path in (ROOT / "crates" / crate / "src").rglob("*.rs"):
            for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', path.read_text()):
                assert str((path.parent / name).resolve().relative_to(ROOT / "crates" / crate)) in names
