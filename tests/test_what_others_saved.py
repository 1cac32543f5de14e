"""What other writers, planners and trainers leave in a checkpoint: it is loaded as torch loads it.

What our writer writes, the default reader reads, or the writer has warned of it.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import io
import pathlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from s3dcp import Corrupt, FastSavePlanner, S3DcpError, S3StorageReader
from s3dcp._compat import SerializationFormat
from support import jobs
from support.indexes import sealed
from support.states import assert_same, blank, values
from support.store import REGION, Store


@pytest.fixture(params=["ours", "torch's", "the reference's"])
def save(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Any:
    """Saves a state at `store.uri`, with each writer."""

    def run(state: dict[str, Any], planner: Any = None) -> None:
        if request.param == "ours":
            jobs.save(state, store.uri, planner=planner)
        elif request.param == "torch's":
            dcp.save(state, storage_writer=FileSystemWriter(tmp_path), planner=planner, no_dist=True)
            store.upload(tmp_path)
        else:
            pytest.importorskip("s3torchconnector")
            writer = jobs.reference_writer(store.uri, ("Default", {}))
            dcp.save(state, storage_writer=writer, planner=planner, no_dist=True)

    run.writer = request.param  # type: ignore[attr-defined]
    return run


# -- plans in an index


class AsAttribute(DefaultSavePlanner):
    def create_global_plan(self, all_plans: Any) -> Any:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.all_local_plans = all_plans
        return plans, metadata


class InPlannerData(FastSavePlanner):
    def create_global_plan(self, all_plans: Any) -> Any:
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = {**metadata.planner_data, "cached plans": all_plans, "central": plans}
        return plans, metadata


@pytest.mark.parametrize("planner", [AsAttribute, InPlannerData])
def test_save_plans_in_an_index_are_no_reason_to_refuse_it(save: Any, store: Store, planner: Any) -> None:
    state = {"model": {"w": values((10, 10))}, "step": 7, "set": {1, 2}}
    save(state, planner())
    jobs.check(store.uri, state)
    metadata = S3StorageReader(REGION, store.uri).read_metadata()
    if planner is AsAttribute and save.writer != "ours" and not hasattr(metadata, "all_local_plans"):
        pytest.skip(f"the writer of torch {torch.__version__} leaves out what a planner adds to the index")
    plans = metadata.all_local_plans if planner is AsAttribute else metadata.planner_data["cached plans"]
    kinds = [item.type for plan in plans for item in plan.items]
    assert sorted(kinds, key=lambda kind: kind.value) == [
        WriteItemType.TENSOR,
        WriteItemType.BYTE_IO,
        WriteItemType.BYTE_IO,
    ]


def test_plans_as_our_writer_and_reader_hand_them_out_may_be_kept(store: Store) -> None:
    """A planner that keeps the plans it is given back, as they were last."""
    from s3dcp import S3StorageWriter

    kept: list[Any] = []

    class Keeps(DefaultSavePlanner):
        def create_global_plan(self, all_plans: Any) -> Any:
            plans, metadata = super().create_global_plan(all_plans)
            metadata.kept = list(kept)
            return plans, metadata

        def finish_plan(self, new_plan: Any) -> Any:
            kept.append(new_plan)
            return super().finish_plan(new_plan)

    class KeepsLoads(DefaultLoadPlanner):
        def finish_plan(self, new_plan: Any) -> Any:
            kept.append(new_plan)
            return super().finish_plan(new_plan)

    state = {"x": values((5,)), "n": 1}
    for _ in range(2):
        dcp.save(state, storage_writer=S3StorageWriter(REGION, store.uri, overwrite=True), planner=Keeps())
        jobs.load(blank(state), store.uri, planner=KeepsLoads())
        warnings.filterwarnings("ignore", "Detected an existing checkpoint")
    assert len(S3StorageReader(REGION, store.uri).read_metadata().kept) == 2


def test_saving_an_index_that_readers_refuse_warns_of_it(store: Store, failure: Any) -> None:
    class Dated(DefaultSavePlanner):
        def create_global_plan(self, all_plans: Any) -> Any:
            plans, metadata = super().create_global_plan(all_plans)
            metadata.planner_data = {**metadata.planner_data, "made": [datetime.date(2026, 1, 2)]}
            return plans, metadata

    with pytest.warns(UserWarning, match=r"allowed_globals=.*datetime\.date"):
        jobs.save({"x": torch.ones(2)}, store.uri, planner=Dated())
    error = failure(jobs.load, {"x": torch.zeros(2)}, store.uri)
    assert isinstance(error, Corrupt)
    assert "datetime.date" in str(error)
    assert "allowed_globals" in str(error)
    jobs.check(store.uri, {"x": torch.ones(2)}, allowed_globals=[datetime.date])


# -- another dtype than planned


class Converts(DefaultSavePlanner):
    """Halves what it saves, when it saves it: the index has the dtype from before."""

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        if isinstance(data, torch.Tensor) and data.dtype is torch.float32:
            return data.to(torch.bfloat16)
        return data


def converted() -> dict[str, Any]:
    big = values((1500, 1000), 3)
    return {"w": values((40, 3)), "strided": values((6, 8), 1).t(), "ids": torch.arange(5), "big": big, "s": big[0, 0]}


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float64])
def test_what_a_planner_converted_while_it_was_saved_is_loaded(save: Any, store: Store, target: torch.dtype) -> None:
    state = converted()
    save(state, Converts())
    want = {
        name: tensor.to(torch.bfloat16).to(target) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    assert_same(jobs.load(blank(want), store.uri), want)
    rows = {"big": torch.zeros(1500, 1000, dtype=target)}
    assert_same(jobs.load(rows, store.uri, verify=False), {"big": want["big"]})


def test_torch_reads_what_a_planner_converted_for_our_writer(store: Store, tmp_path: Path) -> None:
    state = converted()
    jobs.save(state, store.uri, planner=Converts())
    target = blank(state)
    dcp.load(target, storage_reader=FileSystemReader(store.download(tmp_path)), no_dist=True)
    want = {k: v.to(torch.bfloat16).to(v.dtype) for k, v in state.items()}
    assert_same(target, want)


def test_damage_to_what_a_planner_converted_is_found(store: Store, failure: Any) -> None:
    state = {"w": values((40, 3))}
    jobs.save(state, store.uri, planner=Converts())
    (shard,) = store.shards()
    body = bytearray(store.read(shard))
    body[body.index(state["w"].to(torch.bfloat16).view(torch.uint8).numpy().tobytes()) + 50] ^= 1
    store.write(shard, bytes(body))
    assert isinstance(failure(jobs.load, blank(state), store.uri), Corrupt)


def test_a_planner_that_converts_cannot_save_safetensors_and_is_told_so(store: Store, failure: Any) -> None:
    error = failure(
        jobs.save, converted(), store.uri, planner=Converts(), serialization_format=SerializationFormat.SAFETENSORS
    )
    assert isinstance(error, ValueError)
    assert "SAFETENSORS" in str(error)


def test_a_planner_that_changes_shapes_is_refused(store: Store, failure: Any) -> None:
    class Cuts(DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            return super().resolve_data(write_item)[:1]

    error = failure(jobs.save, {"w": values((4, 3))}, store.uri, planner=Cuts())
    assert isinstance(error, ValueError)
    assert "w: " in str(error)


def test_a_stored_tensor_of_another_shape_than_the_index_says_is_refused(
    store: Store, failure: Any, tmp_path: Path
) -> None:
    dcp.save({"a": values((3, 4)), "b": values((4, 3))}, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    (a, of_a), (b, of_b) = metadata.storage_data.items()
    metadata.storage_data = {a: of_b, b: of_a}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    store.upload(tmp_path)
    error = failure(jobs.load, {"a": torch.zeros(3, 4)}, store.uri)
    assert isinstance(error, Corrupt)
    assert "a: " in str(error)


# -- names that UTF-8 cannot say

LONE = ["\ud800", "a\udfffb", "\udc80.x", "é\ud83d", "\ude00\ud83d", "plain"]


def strange() -> dict[str, Any]:
    tensors = {name: values((5, number + 1), number) for number, name in enumerate(LONE)}
    return {**tensors, "nested": {LONE[0]: {LONE[1]: values((3,), 9), "\ud801 text": "\ud802"}}, "list\ud803": [1, "x"]}


@pytest.mark.parametrize("planner", [DefaultSavePlanner, FastSavePlanner, InPlannerData])
def test_names_with_lone_surrogates_are_saved_and_loaded(save: Any, store: Store, planner: Any) -> None:
    save(strange(), planner())
    jobs.check(store.uri, strange())
    jobs.check(store.uri, strange(), verify=False)


def test_torch_reads_our_names_with_lone_surrogates(store: Store, tmp_path: Path) -> None:
    jobs.save(strange(), store.uri)
    target = blank(strange())
    dcp.load(target, storage_reader=FileSystemReader(store.download(tmp_path)), no_dist=True)
    assert_same(target, strange())


def test_a_checkpoint_with_such_names_can_be_replaced(store: Store) -> None:
    jobs.save(strange(), store.uri)
    (before,) = store.shards()
    with pytest.warns(UserWarning, match="overwriting"):
        jobs.save(strange(), store.uri)
    (after,) = store.shards()
    assert before != after, "the index was read, and what it named deleted"


def test_such_names_work_in_safetensors_files(store: Store) -> None:
    tensors = {name: values((5, number + 1), number) for number, name in enumerate(LONE)}
    jobs.save(tensors, store.uri, serialization_format=SerializationFormat.SAFETENSORS)
    jobs.check(store.uri, tensors)


def test_errors_about_such_names_can_be_written_to_a_file(save: Any, store: Store, failure: Any) -> None:
    name = "w\ud800"
    save({name: values((40, 3)), "o\udfff": {"deep": [1]}})
    (shard,) = store.shards()
    whole, index = store.read(shard), store.read(".metadata")
    errors = []

    def attempt(state: dict[str, Any], **arguments: Any) -> None:
        errors.append(failure(jobs.load, state, store.uri, **arguments))

    raw = values((40, 3)).view(torch.uint8).numpy().tobytes()
    at = whole.index(raw)
    store.write(shard, whole[: at - 200] + b"\1" * 100 + whole[at - 100 :])
    attempt({name: torch.zeros(40, 3)})
    store.write(shard, whole[:400])
    attempt({name: torch.zeros(40, 3)})
    store.write(shard, whole)
    metadata = pickle.loads(index)
    metadata.state_dict_metadata[name].chunks.clear()
    store.write(".metadata", sealed(metadata))
    attempt({name: torch.zeros(40, 3)})
    metadata = pickle.loads(index)
    metadata.storage_data.pop(MetadataIndex(name, torch.Size((0, 0))))
    store.write(".metadata", sealed(metadata))
    attempt({name: torch.zeros(40, 3)})
    for error in errors:
        assert isinstance(error, S3DcpError), repr(error)
        str(error).encode()
    assert sum(r"w\ud800" in str(error) for error in errors) >= 3
    assert_same(pickle.loads(pickle.dumps(errors[0])).args, errors[0].args)


def test_warnings_and_wrong_arguments_with_such_names_can_be_written_to_a_file(store: Store, failure: Any) -> None:
    with pytest.warns(UserWarning, match="weights_only=False") as caught:
        jobs.save({"o\ud800": {"deep": Kind.ONE}}, store.uri)
    for warning in caught:
        str(warning.message).encode()

    class Gives(DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            return "nothing"

    for value in (torch.ones(2), {1}):
        error = failure(jobs.save, {"x\ud800": value}, f"{store.uri}/{type(value).__name__}", planner=Gives())
        assert isinstance(error, ValueError)
        str(error).encode()


# -- objects


class Kind(enum.Enum):
    ONE = 1


@dataclasses.dataclass
class Settings:
    depth: int = 3


def of_bytes(position: int = 0) -> io.BytesIO:
    stream = io.BytesIO(b"some bytes")
    stream.seek(position)
    return stream


def test_a_stream_of_bytes_is_loaded_by_the_default_reader(save: Any, store: Store) -> None:
    state = {"stream": of_bytes(), "deep": {"list": [1, of_bytes(3)]}, "x": values((3,))}
    before = set(torch.serialization.get_safe_globals())
    save(state)
    target: dict[str, Any] = {"stream": None, "deep": {"list": [None, None]}, "x": torch.zeros(3)}
    jobs.load(target, store.uri)
    assert target["stream"].getvalue() == b"some bytes"
    assert (target["deep"]["list"][1].getvalue(), target["deep"]["list"][1].tell()) == (b"some bytes", 3)
    # What torch imports meanwhile adds classes of its own.
    after = set(torch.serialization.get_safe_globals())
    assert before <= after
    assert io.BytesIO not in after


def test_what_the_process_calls_safe_itself_stays_safe(store: Store) -> None:
    jobs.save({"stream": of_bytes()}, store.uri)
    with torch.serialization.safe_globals([io.BytesIO]):
        jobs.load({"stream": None}, store.uri)
        assert io.BytesIO in torch.serialization.get_safe_globals()


def test_a_stream_of_bytes_lets_nothing_else_in(store: Store, failure: Any) -> None:
    with pytest.warns(UserWarning, match="o: .*weights_only=False"):
        jobs.save({"o": (of_bytes(), Settings())}, store.uri)
    error = failure(jobs.load, {"o": None}, store.uri)
    assert isinstance(error, Corrupt)


OBJECTS: dict[str, Any] = {
    "stream": of_bytes(),
    "numpy array": np.arange(5.0),
    "numpy scalar": np.float32(1.5),
    "numpy's random state": np.random.RandomState(3).get_state(),
    "torch's random state": torch.get_rng_state(),
    "python's random state": (3, (1, 2, 3), None),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "duration": datetime.timedelta(3),
    "path": pathlib.PurePosixPath("/x"),
    "deque": collections.deque([1, 2], 3),
    "default dict": collections.defaultdict(list, a=[1]),
    "ordered dict": collections.OrderedDict(a=1),
    "counter": collections.Counter("abc"),
    "enum": Kind.ONE,
    "dataclass": Settings(),
    "set": {1, 2},
    "frozen set": frozenset([1]),
    "bytes": b"\0\xff",
    "bytearray": bytearray(b"\0\xff"),
    "complex": 1 + 2j,
    "long": 1 << 200,
    "range": range(3),
    "slice": slice(1, 2),
    "class": Settings,
    "function": values,
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "size": torch.Size((1, 2)),
    "lone surrogate": "\ud800",
    "nested": ({"a": (1, [2.5, None, {"b": True}])},),
    "exception": ValueError("x"),
    "generator state": {"state": torch.Generator().get_state()},
}


@pytest.mark.parametrize("name", OBJECTS, ids=str)
@pytest.mark.parametrize("wrap", [False, True], ids=["alone", "in a tuple"])
def test_what_the_writer_writes_the_default_reader_reads_or_the_writer_warned(
    store: Store, name: str, wrap: bool
) -> None:
    value = (OBJECTS[name],) if wrap else OBJECTS[name]
    if name == "torch's random state" and not wrap:
        value = {"in": value}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jobs.save({"o": value}, store.uri)
    warned = [str(warning.message) for warning in caught if "weights_only=False" in str(warning.message)]
    try:
        jobs.load({"o": blank(value) if isinstance(value, dict) else None}, store.uri)
    except BaseException as error:
        said = "".join(str(failed[0]) for failed in getattr(error, "failures", {0: [error]}).values())
        assert warned, said
        for way_out in ("weights_only=False", "torch.serialization.safe_globals"):
            assert way_out in said
            assert way_out in warned[0]
    else:
        assert not warned
    jobs.load({"o": blank(value) if isinstance(value, dict) else None}, store.uri, weights_only=False)


class Subclass(torch.Tensor):
    """A tensor that only its own class can rebuild."""


def test_saving_a_tensor_of_a_class_that_readers_refuse_warns_of_it(store: Store, failure: Any) -> None:
    state = {"t": torch.ones(3).as_subclass(Subclass)}
    with pytest.warns(UserWarning, match=r"t: .*torch\.serialization\.safe_globals"):
        jobs.save(state, store.uri)
    error = failure(jobs.load, {"t": torch.zeros(3)}, store.uri)
    assert isinstance(error, Corrupt)
    assert "torch.serialization.safe_globals" in str(error)
    with torch.serialization.safe_globals([Subclass]):
        assert torch.equal(jobs.load({"t": torch.zeros(3)}, store.uri)["t"], torch.ones(3))
