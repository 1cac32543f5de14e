"""Tests of other projects that run with our classes in the place of theirs, and those of them that cannot pass.

``make test-upstream`` runs them from a clone of such a project. `plugin` puts our classes in place.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest

from s3dcp import NotFound


class Failing(NamedTuple):
    """A test that cannot pass, and why."""

    test: str
    reason: str
    # How it fails: another failure is not the expected one.
    error: pytest.RaisesExc[Exception]
    # It fails in the variants that have this in their names.
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tests of one project."""

    commit: str
    # What is copied from the clone, and the tests in there.
    folder: str
    paths: tuple[str, ...]
    count: int
    failing: tuple[Failing, ...]
    variants: tuple[str, ...] = ("",)

    def failing_in(self, variant: str) -> list[Failing]:
        """What cannot pass in this variant."""
        return [each for each in self.failing if each.variant in variant]


# What torchtitan's tests run with, and where.
THEIRS, OURS = "CheckpointManager", "S3CheckpointManager"
ON_DISK, ON_S3 = "on a disk", "on S3"

SUITES = {
    "s3torchconnector": Suite(
        commit="611b0ff",
        folder="s3torchconnector/tst",
        paths=(
            "e2e/test_e2e_s3checkpoint.py",
            "e2e/test_e2e_s3_lightning_checkpoint.py",
            "unit/test_checkpointing.py",
            "unit/lightning",
        ),
        count=48,
        failing=(
            Failing(
                "test_delete_checkpoint",
                "the class and the text of its client's error; here it is `NotFound`",
                pytest.RaisesExc(NotFound),
            ),
            Failing(
                "test_checkpoint_seek_logging",
                "the log line of its reader",
                pytest.RaisesExc(AssertionError, match="HeadObject"),
            ),
            Failing(
                "test_lightning_checkpointing_weights_only_version_aware_defaults[2.5.0-False]",
                "another default where `lightning.__version__` is patched; here Lightning's `load_checkpoint` is asked "
                "for the argument",
                pytest.RaisesExc(AssertionError, match="None == False"),
            ),
        ),
    ),
    "torchtitan": Suite(
        commit="c537bca",
        folder="tests/unit_tests",
        paths=("test_checkpoint.py",),
        count=36,
        variants=tuple(f"{manager} {place}" for manager in (THEIRS, OURS) for place in (ON_DISK, ON_S3)),
        failing=(
            Failing(
                "test_initial_load_path_used_when_folder_has_no_valid_checkpoints",
                "an empty folder, which S3 has not",
                pytest.RaisesExc(ValueError, match="initial_load_path is invalid"),
                ON_S3,
            ),
            Failing(
                "test_save_and_purge_keeps_last_k_checkpoints",
                "retention that counts its made-up checkpoints, which have no index",
                pytest.RaisesExc(AssertionError, match="Purge timed out"),
                OURS,
            ),
            Failing(
                "test_legacy_config_only_adds_dcp_specific_fields",
                "the fields that torchtitan's `Config` adds to its base; a subclass adds others",
                pytest.RaisesExc(AssertionError, match="async_mode"),
                OURS,
            ),
        ),
    ),
}
