"""Importing: what needs torch and what does not, and what the package offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import s3dcp


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in which warnings are errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "code",
    [
        "import s3dcp",
        "import s3dcp, s3dcp.errors, s3dcp.s3_prefix_strategy, s3dcp.client_config, s3dcp.testing",
        "from s3dcp import S3ClientConfig, NotFound, HexPrefixStrategy, __version__",
        "import s3dcp; s3dcp.HexPrefixStrategy(prefix_count=4)(3); s3dcp.S3ClientConfig(); dir(s3dcp)",
        "import s3dcp.__main__",
    ],
)
def test_the_package_starts_without_torch(code: str) -> None:
    done = python("-c", f"{code}\nimport sys\nassert 'torch' not in sys.modules\nassert 'numpy' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_the_command_starts_without_torch() -> None:
    watch = "import sys; sys.argv = ['s3dcp', '--version']; import runpy\n"
    run = "try: runpy.run_module('s3dcp', run_name='__main__')\nexcept SystemExit as end: assert not end.code\n"
    done = python("-c", f"{watch}{run}assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr
    assert s3dcp.__version__ in done.stdout


def test_the_storage_classes_bring_torch_when_asked_for() -> None:
    done = python("-c", "import sys, s3dcp\ns3dcp.S3StorageWriter\nassert 'torch' in sys.modules")
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="S3StorageWrighter"):
        s3dcp.S3StorageWrighter  # noqa: B018


def test_every_exported_name_exists_and_is_documented() -> None:
    for name in s3dcp.__all__:
        value = getattr(s3dcp, name)
        assert name.startswith("__") or value.__doc__, name
        assert name in dir(s3dcp)


def test_strategies_are_importable_from_both_places() -> None:
    from s3dcp import s3_prefix_strategy

    for name in s3_prefix_strategy.__all__:
        assert getattr(s3dcp, name) is getattr(s3_prefix_strategy, name)
