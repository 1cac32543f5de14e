"""The memory that a state is copied into for an asynchronous save: when it is used again, and when it must not be."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from s3dcp import CheckpointManager
from s3dcp._save.host_copy import HostCopy
from support.states import assert_same, training_state, values
from support.store import Store


def state(number: int = 0) -> dict[str, Any]:
    return {
        "model": OrderedDict(weight=torch.nn.Parameter(values((4, 3), number)), flag=torch.tensor([True, False])),
        "optimizer": {"states": [{"step": torch.tensor(float(number)), "lr": 0.1 * number}, (values((2,), 9), None)]},
        "rows": values((8, 6), number)[:, ::2],
        "step": number,
    }


def addresses(of: Any) -> list[int]:
    if isinstance(of, torch.Tensor):
        return [of.data_ptr()]
    inner = of.values() if isinstance(of, dict) else of if isinstance(of, (list, tuple)) else ()
    return [address for each in inner for address in addresses(each)]


def test_memory_is_used_again_while_the_state_looks_the_same() -> None:
    memory = HostCopy()
    first = memory.of(state(1))
    assert_same(first, state(1))
    where = addresses(first)
    second = memory.of(state(2))
    assert_same(second, state(2))
    assert second["step"] == 2
    assert addresses(second) == where
    assert not set(where) & set(addresses(state(2)))


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    other = state(3)
    change(other)
    return other


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a dtype": lambda it: it.update(rows=it["rows"].to(torch.float64)),
    "a shape that broadcasts": lambda it: it.update(rows=it["rows"][:1]),
    "one row more": lambda it: it.update(rows=torch.cat([it["rows"], it["rows"][:1]])),
    "a key more": lambda it: it["model"].update(bias=values((3,))),
    "a key less": lambda it: it["model"].pop("flag"),
    "a tensor that was none": lambda it: it.update(step=torch.tensor(3)),
    "none that was a tensor": lambda it: it.update(rows=None),
    "a dict that was a tensor": lambda it: it.update(rows={"a": values((2,))}),
    "one more in a list": lambda it: it["optimizer"]["states"].append({"step": torch.tensor(1.0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_looks_other_gets_memory_of_its_own(change: str) -> None:
    memory = HostCopy()
    memory.of(state(1))
    other = changed(CHANGES[change])
    copied = memory.of(other)
    assert_same(copied, other)
    where = addresses(copied)
    assert addresses(memory.of(other)) == where


def test_memory_does_not_travel_and_can_be_let_go() -> None:
    memory = HostCopy()
    memory.of({"x": torch.zeros(1 << 16)})
    assert len(pickle.dumps(memory)) < 1000
    assert_same(pickle.loads(pickle.dumps(memory)).of(state(1)), state(1))
    memory.free()
    assert_same(memory.of(state(2)), state(2))


def test_sharded_tensors_keep_theirs(groups: Any) -> None:
    groups(2).run(_copy_of_a_dtensor)


def _copy_of_a_dtensor() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, memory = init_device_mesh("cpu", (2,)), HostCopy()
    first = memory.of({"x": distribute_tensor(values((4, 2), 1), mesh, [Shard(0)])})["x"]
    where = first.to_local().data_ptr()
    second = memory.of({"x": distribute_tensor(values((4, 2), 2), mesh, [Shard(0)])})["x"]
    assert second.to_local().data_ptr() == where
    assert torch.equal(second.full_tensor(), values((4, 2), 2))
    for placement in (Shard(1), Replicate()):
        other = memory.of({"x": distribute_tensor(values((4, 2), 3), mesh, [placement])})["x"]
        assert other.placements == (placement,)
        assert torch.equal(other.full_tensor(), values((4, 2), 3))


def test_a_manager_keeps_the_memory_until_it_is_closed(store: Store) -> None:
    with CheckpointManager(store.uri, async_=True) as manager:
        for step in range(3):
            saved = training_state(step)
            manager.save(step, saved)
            manager.wait()
        kept = manager._writer._host_copy
        assert kept._kept is not None
    assert kept._kept is None
    with CheckpointManager(f"{store.uri}/other", async_=True, cache_staged_state_dict=False) as manager:
        manager.save(0, saved)
        manager.wait()
        assert manager._writer._host_copy._kept is None
