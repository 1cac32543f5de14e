"""Whatever torch's default device, default dtype or modes are, saves and loads move the same bytes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.utils._device
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemWriter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import s3dcp
from s3dcp import S3StorageWriter, planner
from s3dcp._compat import SerializationFormat
from s3dcp.planner import FastLoadPlanner, FastSavePlanner
from support import jobs
from support.states import DTYPES, assert_same, blank, layouts, training_state, values
from support.store import REGION, Store


@contextmanager
def default_device() -> Iterator[None]:
    """``torch.set_default_device`` with a device whose tensors have no memory."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype() -> Iterator[None]:
    """``torch.set_default_dtype`` with another than the usual."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class PassingFunctions(TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class PassingOperations(TorchDispatchMode):
    """A mode that changes nothing, one layer below."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "set_default_device": default_device,
    "with torch.device": lambda: torch.device("meta"),
    "set_default_dtype": default_dtype,
    "TorchFunctionMode": PassingFunctions,
    "TorchDispatchMode": PassingOperations,
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
}

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")


def states() -> dict[str, Any]:
    """Every kind of state; what is small, large, strided, and what holds tensors in objects."""
    return {
        "training": training_state(),
        "layouts": layouts(),
        "dtypes": {str(dtype): values((9, 5), 1, dtype) for dtype in DTYPES},
        "large": {"whole": values((1500, 1000), 2), "strided": values((1000, 1500), 3).t()},
        "objects": {"tuple": (values((4,), 4), "text")},
    }


@pytest.mark.parametrize("planners", [(DefaultSavePlanner, DefaultLoadPlanner), (FastSavePlanner, FastLoadPlanner)])
@pytest.mark.parametrize("at", ["save", "load"])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_nothing(store: Store, mode: str, at: str, planners: tuple[Any, Any]) -> None:
    around_save = MODES[mode] if at == "save" else nullcontext
    around_load = MODES[mode] if at == "load" else nullcontext
    for name, state in states().items():
        loaded = blank(state)
        with around_save():
            jobs.save(state, f"{store.uri}/{name}", planner=planners[0]())
        with around_load():
            jobs.load(loaded, f"{store.uri}/{name}", planner=planners[1]())
        assert_same(loaded, state, name)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_nothing_in_safetensors(store: Store, mode: str) -> None:
    state = {"whole": values((1500, 1000), 2), "strided": values((1000, 1500), 3).t(), "small": values((3,), 4)}
    loaded = blank(state)
    with MODES[mode]():
        jobs.save(state, store.uri, serialization_format=SerializationFormat.SAFETENSORS)
        jobs.load(loaded, store.uri)
    assert_same(loaded, state)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_nothing_in_what_torch_wrote(store: Store, tmp_path: Path, mode: str) -> None:
    state = {**layouts(), "text": "x"}
    loaded = blank(state)
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    for file in tmp_path.iterdir():
        store.write(file.name, file.read_bytes())
    with MODES[mode]():
        jobs.load(loaded, store.uri)
    assert_same(loaded, state)


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_changes_nothing_in_an_async_save(store: Store, mode: str) -> None:
    state = training_state()
    loaded = blank(state)
    with MODES[mode]():
        dcp.async_save(state, storage_writer=S3StorageWriter(REGION, store.uri), no_dist=True).result()
        jobs.load(loaded, store.uri)
    assert_same(loaded, state)


@pytest.mark.parametrize("mode", ["set_default_device", "with torch.device"])
def test_a_default_device_changes_nothing_for_other_dtypes_and_layouts_of_targets(store: Store, mode: str) -> None:
    state = {"x": values((1500, 1000), 2), "y": values((1500, 1000), 3)}
    jobs.save(state, store.uri)
    loaded = {"x": torch.zeros(1500, 1000, dtype=torch.float64), "y": torch.zeros(1000, 1500).t()}
    with MODES[mode]():
        jobs.load(loaded, store.uri)
    assert_same(loaded, {"x": state["x"].double(), "y": state["y"]})


IMPORTED = f"""
import torch
torch.set_default_device("meta")
from s3dcp import planner
assert planner._unfit == {planner._unfit}, planner._unfit
"""


def test_a_default_device_at_import_leaves_the_fast_planners_fast() -> None:
    ended = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


# What makes a tensor on the default device unless told otherwise.
FACTORIES = frozenset(torch.utils._device._device_constructors())


def test_no_tensor_of_the_package_is_made_without_a_device() -> None:
    names = {factory.__name__ for factory in FACTORIES}
    for file in Path(s3dcp.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "torch"
                and node.func.attr in names
            ):
                given = {keyword.arg for keyword in node.keywords}
                assert given & {"device", "map_location"}, f"{file.name}:{node.lineno}: torch.{node.func.attr}"
