"""Tensors are handed to the native writer many at a time: order, places, errors and interrupts in the middle."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import DefaultSavePlanner

from s3dcp import S3ClientConfig, _native
from s3dcp._client import client_for
from s3dcp._save import shards
from support import jobs
from support.states import values
from support.store import REGION, Store
from support.wire import Request, Scripted, error

COUNT = 2 * shards.BATCH_TENSORS + 300


def mixed() -> dict[str, Any]:
    """More than two batches of small tensors, with all that is no part of a batch in between."""
    state: dict[str, Any] = {}
    for number in range(COUNT):
        tensor = values((number % 7, 3), number, torch.bfloat16 if number % 3 else torch.float32)
        state[f"t{number:05}"] = tensor.t() if number % 5 == 0 else tensor
        if number % 500 == 250:
            state[f"t{number:05}.large"] = values((300, 301), number)
            state[f"t{number:05}.strided"] = values((300, 301), number).t()
            state[f"t{number:05}.edge"] = values((2048 + number % 2,), number)
            state[f"t{number:05}.sparse"] = torch.eye(4).to_sparse()
            state[f"t{number:05}.text"] = f"object {number}"
            state[f"t{number:05}.parameter"] = torch.nn.Parameter(values((5, 2), number))
    return state


def places(store: Store) -> list[tuple[int, int, int | None, str]]:
    """Offset, length, data offset and name of every item, in the order of the one shard file."""
    metadata = pickle.loads(store.read(".metadata"))
    return sorted(
        (info.offset, info.length, getattr(info, "data_offset", None), index.fqn)
        for index, info in metadata.storage_data.items()
    )


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
def test_items_of_a_batch_follow_each_other_and_are_what_torch_saves(store: Store) -> None:
    state = mixed()
    jobs.save(state, store.uri)
    (shard,) = store.shards()
    file = store.read(shard)
    end = 0
    for offset, length, data_offset, name in places(store):
        assert offset == end, name
        end = offset + length
        item, value = file[offset:end], state[name]
        if isinstance(value, str):
            assert torch.load(io.BytesIO(item), weights_only=True) == value
            continue
        value = value.detach()
        if value.layout is torch.strided:
            assert data_offset is not None
            raw = value.flatten().view(torch.uint8).numpy().tobytes()
            assert item[data_offset : data_offset + len(raw)] == raw, name
            value = value.clone(memory_format=torch.contiguous_format)
        assert torch.equal(torch.load(io.BytesIO(item), weights_only=True).to_dense(), value.to_dense()), name
        if torch.__version__.startswith("2.15."):
            stream = io.BytesIO()
            torch.save(value, stream)
            assert item == stream.getvalue(), name
    assert end == len(file)


def test_tensors_of_many_shapes_and_values_come_back(store: Store) -> None:
    state = {f"t{rows}": values((rows, 2), rows) for rows in range(700)}
    jobs.save(state, store.uri, thread_count=3)
    jobs.check(store.uri, state)


class Stop(Exception):
    """Raised by a planner to break a save off."""


def test_an_error_in_the_middle_of_a_batch_leaves_nothing(store: Store, failure) -> None:
    class Breaks(DefaultSavePlanner):
        def lookup_object(self, index: Any) -> Any:
            if index.fqn == "t1500":
                raise Stop
            return super().lookup_object(index)

    state = {f"t{number}": values((3,), number) for number in range(2000)}
    assert isinstance(failure(jobs.save, state, store.uri, planner=Breaks()), Stop)
    assert store.names() == []
    assert store.uploads() == []


@pytest.mark.parametrize("wrong", [torch.ones(4), torch.ones(3, dtype=torch.float64), "text"], ids=str)
def test_a_tensor_that_is_not_what_the_plan_says_is_refused_by_name(store: Store, failure, wrong: Any) -> None:
    class Replaces(DefaultSavePlanner):
        def finish_plan(self, new_plan: Any) -> Any:
            self.state_dict["t1500"] = wrong
            return super().finish_plan(new_plan)

    state = {f"t{number}": values((3,), number) for number in range(2000)}
    error = failure(jobs.save, state, store.uri, planner=Replaces())
    assert isinstance(error, ValueError)
    assert "t1500" in str(error)
    assert store.names() == []
    assert store.uploads() == []


def test_a_tensor_that_is_gone_is_missed_by_name(store: Store, failure) -> None:
    class Drops(DefaultSavePlanner):
        def finish_plan(self, new_plan: Any) -> Any:
            del self.state_dict["t7"]
            return super().finish_plan(new_plan)

    error = failure(jobs.save, {f"t{number}": values((3,), number) for number in range(9)}, store.uri, planner=Drops())
    assert isinstance(error, ValueError)
    assert "t7" in str(error)


def doubled(value: Any) -> Any:
    return value * 2 if isinstance(value, torch.Tensor) else value


class Resolves(DefaultSavePlanner):
    def resolve_data(self, write_item: Any) -> Any:
        return doubled(super().resolve_data(write_item))


class LooksUp(DefaultSavePlanner):
    def lookup_object(self, index: Any) -> Any:
        return doubled(super().lookup_object(index))


class Transforms(DefaultSavePlanner):
    def transform_object(self, write_item: Any, object: Any) -> Any:
        return doubled(super().transform_object(write_item, object))


def patched() -> DefaultSavePlanner:
    """A planner whose own attribute, and not its class, differs."""
    planner = DefaultSavePlanner()
    original = planner.lookup_object
    planner.lookup_object = lambda index: doubled(original(index))  # type: ignore[method-assign]
    return planner


@pytest.mark.parametrize("make", [Resolves, LooksUp, Transforms, patched], ids=lambda make: make.__name__)
def test_what_a_planner_makes_of_the_data_is_what_is_saved(store: Store, make: Any) -> None:
    state = {f"t{number}": values((3,), number) for number in range(20)} | {"text": "text"}
    jobs.save(state, store.uri, planner=make())
    jobs.check(store.uri, {name: doubled(value) for name, value in state.items()})


def test_a_tensor_that_says_it_is_a_part_is_saved_as_one(store: Store) -> None:
    if not hasattr(torch.distributed.checkpoint, "protocol"):
        pytest.skip("this torch has no tensors that describe their parts")
    part = values((6, 2), 1)
    part.global_shape = (4, 2)  # type: ignore[attr-defined]
    part.global_offsets = ((0, 0), (2, 0))  # type: ignore[attr-defined]
    part.local_offsets = ((3, 0), (1, 0))  # type: ignore[attr-defined]
    part.local_sizes = ((2, 2), (2, 2))  # type: ignore[attr-defined]
    jobs.save({"x": part}, store.uri)
    jobs.check(store.uri, {"x": torch.cat([part[3:5], part[1:3]])})


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where this process was started with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_batch_that_waits_for_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint does not answer until the interrupt has arrived, and refuses then."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    arrived, asked = threading.Event(), threading.Lock()

    def refuse(_: Request) -> bytes:
        if asked.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        arrived.wait(60)
        return error("403 Forbidden", "AccessDenied")

    with Scripted(refuse) as service:
        client = client_for(REGION, service.url, S3ClientConfig(force_path_style=True))
        writer = _native.Save(client, "bucket", "path", None, None, None, "0123456789abcdef").shard("__0_", 0, 1 << 40)
        large = torch.zeros(16 << 20, dtype=torch.uint8)
        item = ("uint8", large.shape, large.data_ptr(), large)
        try:
            with pytest.raises(KeyboardInterrupt):
                writer.tensors([item] * 4096)
        finally:
            arrived.set()
            writer.abort()
