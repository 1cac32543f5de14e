"""Indexes that attack: refused by each line of defence alone, without anything run or much memory taken.

`crates/checkpoint/tests/data/hostile.py` makes them; crates/checkpoint/tests/hostile.rs holds the walk alone to them.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from s3dcp._load.index import read_index, unpickled
from s3dcp._native import StoredIndex
from s3dcp.errors import Corrupt
from support.hostile import CASES

MIB = 1024 * 1024


def cases(*groups: str) -> list[object]:
    return [pytest.param(bytes.fromhex(case), id=name) for group in groups for name, case in CASES[group].items()]


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The attacks would leave a file in the working directory, or empty it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").touch()
    yield
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture(autouse=True)
def in_little_memory():
    """What it takes to refuse an attack, or to read what only looks like one."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


@pytest.mark.parametrize("body", cases("refused"))
def test_the_unpickler_alone_refuses(body: bytes) -> None:
    with pytest.raises(Corrupt):
        unpickled(body, "here", frozenset())


@pytest.mark.parametrize("body", cases("refused", "refused by the walk"))
def test_the_reader_refuses(body: bytes) -> None:
    with pytest.raises(Corrupt):
        read_index(StoredIndex(body), "here", frozenset())


@pytest.mark.parametrize("body", cases("accepted"))
def test_the_reader_takes_what_only_looks_odd(body: bytes) -> None:
    assert read_index(StoredIndex(body), "here", frozenset()).state_dict_metadata == {}


CARELESS = """
import pickle, sys

class Stub:
    pass

class Careless(pickle.Unpickler):
    def find_class(self, module, name):
        return Stub if module.startswith("torch") else super().find_class(module, name)

Careless(sys.stdin.buffer).load()
"""


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "builtins.exec", "INST", "OBJ", "in protocol 0"])
def test_the_attacks_are_real(name: str, tmp_path: Path) -> None:
    """Unpickled carelessly, they run."""
    body = bytes.fromhex(CASES["refused"][name])
    subprocess.run([sys.executable, "-c", CARELESS], input=body, cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "RAN").unlink()


CHANGED = """
import sys
from torch.distributed.checkpoint.filesystem import _StorageInfo
from s3dcp._load.index import unpickled

unpickled(sys.stdin.buffer.read(), "here", frozenset())
assert _StorageInfo.__getstate__.__name__ == "Size"
"""


def test_without_the_walk_shared_objects_could_be_changed() -> None:
    """Why the walk looks beyond names: this passes the unpickler."""
    body = bytes.fromhex(CASES["refused by the walk"]["slots of a class"])
    subprocess.run([sys.executable, "-c", CHANGED], input=body, check=True, timeout=300)
