"""Indexes that attack, by name, in groups; `crates/checkpoint/tests/data/hostile.py` makes them."""

from __future__ import annotations

import json
from pathlib import Path

CASES: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[2] / "crates/checkpoint/tests/data/hostile.json").read_text()
)


def some(group: str, every: int) -> list[tuple[str, bytes]]:
    """Every so manieth of a group, for tests that start a process for each."""
    return [(name, bytes.fromhex(case)) for name, case in list(CASES[group].items())[::every]]
