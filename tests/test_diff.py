"""``s3dcp diff`` says how two checkpoints differ, whoever wrote them and however they are cut."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from support import hostile, jobs, saved
from support.command import run, told
from support.states import DTYPES, training_state, values
from support.store import Store
from support.torch_versions import needs_rank_indexes


def state() -> dict[str, Any]:
    return {
        "w": values((300, 200), 3),
        "half": values((40, 7), 1, torch.bfloat16),
        "ids": torch.arange(50),
        "empty": torch.zeros(0, 4),
        "object": {"text": ["x" * 300, 1, 2]},
    }


def changed() -> dict[str, Any]:
    other = copy.deepcopy(state())
    other["w"][7, 3] += 0.5
    other["w"][200] *= 1.5
    other["ids"][3] = -1
    other["object"]["text"][1] = 9
    return other


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {tensor["name"]: tensor for tensor in found["tensors"]}


@pytest.mark.parametrize("writer", saved.WRITERS)
@pytest.mark.parametrize("other", ["ours", "torch's, local"])
def test_equal_checkpoints_of_any_two_writers_are_equal(writer: str, other: str, store: Store, tmp_path: Path) -> None:
    one = saved.save(writer, state(), store, tmp_path, "one")
    two = saved.save(other, state(), store, tmp_path, "two")
    found = told("diff", one, two)
    assert found["equal"]
    assert [tensor["name"] for tensor in found["tensors"]] == ["empty", "half", "ids", "w"]
    assert [item["name"] for item in found["objects"]] == ["object.text"]
    assert run("diff", one, two).stdout.startswith("equal: 5 items")


def test_what_has_the_same_checksums_is_not_read(store: Store, tmp_path: Path) -> None:
    one = saved.save("ours", state(), store, tmp_path, "one")
    two = saved.save("ours", changed(), store, tmp_path, "two")
    assert told("diff", one, one)["read_bytes"] == 0
    assert {tensor["by"] for tensor in told("diff", one, one)["tensors"]} == {"checksums"}
    found = told("diff", one, two, code=1)
    by = {tensor["name"]: tensor["by"] for tensor in found["tensors"]}
    assert by == {"w": "values", "half": "checksums", "ids": "values", "empty": "checksums"}
    assert found["read_bytes"] == 2 * (300 * 200 * 4 + 50 * 8)
    assert found["objects"] == [{"name": "object.text", "rank": None, "equal": False, "by": "checksums", "fault": None}]


@pytest.mark.parametrize("writer", saved.WRITERS)
def test_differences_are_those_of_torch(writer: str, store: Store, tmp_path: Path) -> None:
    one = saved.save("ours", state(), store, tmp_path, "one")
    two = saved.save(writer, changed(), store, tmp_path, "two")
    found = told("diff", one, two, code=1)
    tensors = by_name(found)
    assert not found["equal"]
    assert [name for name, tensor in tensors.items() if not tensor["equal"]] == ["ids", "w"]
    assert [item["equal"] for item in found["objects"]] == [False]
    for name in ("w", "ids"):
        a, b = state()[name].double(), changed()[name].double()
        apart = (a - b).abs()
        scale = torch.maximum(a.abs(), b.abs())
        difference = tensors[name]["difference"]
        assert difference["count"] == a.numel()
        assert difference["differing"] == int((a != b).sum())
        assert difference["not_finite"] == 0
        assert difference["largest_absolute"] == pytest.approx(float(apart.max()), rel=1e-12)
        assert difference["largest_relative"] == pytest.approx(float((apart / scale).nan_to_num().max()), rel=1e-12)
    text = run("diff", one, two, code=1).stdout
    assert "other object: object.text" in text
    assert "different: 3 items, 2 items equal" in text


def test_names_shapes_and_dtypes_are_told(store: Store, tmp_path: Path) -> None:
    a = {"same": values((4,)), "gone": values((2,)), "shape": values((4, 3)), "dtype": torch.ones(5), "kind": 3}
    b = {"same": values((4,)), "new": 1, "shape": values((3, 4)), "dtype": torch.ones(5).half(), "kind": torch.ones(1)}
    b["dtype"][2] = 1.5
    one = saved.save("ours", a, store, tmp_path, "one")
    two = saved.save("torch's, local", b, store, tmp_path, "two")
    found = told("diff", one, two, code=1)
    assert [item["name"] for item in found["only_first"]] == ["gone"]
    assert [item["name"] for item in found["only_second"]] == ["new"]
    assert [item["name"] for item in found["objects"] if not item["equal"]] == ["kind"]
    tensors = by_name(found)
    assert tensors["same"]["equal"]
    assert (tensors["shape"]["by"], tensors["shape"]["shapes"]) == ("shapes", [[4, 3], [3, 4]])
    assert tensors["dtype"]["dtypes"] == ["float32", "float16"]
    assert not tensors["dtype"]["equal"]
    assert tensors["dtype"]["difference"]["differing"] == 1
    assert tensors["dtype"]["difference"]["largest_absolute"] == 0.5
    text = run("diff", one, two, code=1).stdout
    assert "only in A: gone" in text
    assert "only in B: new" in text
    assert "float32 / float16" in text
    assert "[4, 3] / [3, 4]" in text


def test_another_number_of_ranks_makes_no_difference(store: Store, groups: Any) -> None:
    one, two = f"{store.uri}/four", f"{store.uri}/one"
    groups(4).run(jobs.save_training_state, one, ("Hex", {}))
    jobs.save(training_state(0), two)
    found = told("diff", one, two)
    cut = {tensor["name"] for tensor in told("inspect", one)["tensors"] if len(tensor["chunks"]) > 1}
    assert cut
    assert {tensor["by"] for tensor in found["tensors"] if tensor["name"] in cut} == {"values"}
    assert {tensor["by"] for tensor in found["tensors"] if tensor["name"] not in cut} == {"checksums"}
    jobs.save(training_state(1), f"{store.uri}/other")
    found = by_name(told("diff", one, f"{store.uri}/other", code=1))
    assert any(tensor["difference"] and tensor["difference"]["differing"] for tensor in found.values())


@needs_rank_indexes
def test_ranks_with_indexes_of_their_own_are_compared_rank_by_rank_or_together(store: Store, groups: Any) -> None:
    four = groups(4)
    one, two, whole = (f"{store.uri}/{name}" for name in ("one", "two", "whole"))
    four.run(jobs.save_training_state, one, ("Hex", {}), use_collectives=False)
    four.run(jobs.save_training_state, two, ("Hex", {}), use_collectives=False)
    jobs.save(training_state(0), whole)
    found = told("diff", one, two)
    assert {tensor["rank"] for tensor in found["tensors"]} == {0, 1, 2, 3}
    assert {tensor["rank"] for tensor in told("diff", one, whole)["tensors"]} == {None}
    four.run(jobs.save_training_state, f"{store.uri}/seed", ("Hex", {}), seed=1, use_collectives=False)
    found = told("diff", one, f"{store.uri}/seed", code=1)
    assert not any(tensor["fault"] for tensor in found["tensors"])
    assert any(tensor["difference"] and tensor["difference"]["differing"] for tensor in found["tensors"])


@pytest.mark.parametrize("writer", ["ours", "torch's, local"])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_every_dtype_and_layout_is_compared(writer: str, store: Store, tmp_path: Path) -> None:
    tensors = {f"{dtype}": values((13, 7), 5, dtype) for dtype in DTYPES}
    tensors |= {name: tensor for name, tensor in jobs.kinds("layouts").items() if isinstance(tensor, torch.Tensor)}
    one = saved.save("ours", tensors, store, tmp_path, "one")
    other = {
        name: values((13, 7), 6, tensor.dtype) if name.startswith("torch.") else tensor
        for name, tensor in tensors.items()
    }
    two = saved.save(writer, other, store, tmp_path, "two")
    found = by_name(told("diff", one, two, code=1 if writer == "ours" else 3))
    for name, tensor in found.items():
        if name.startswith("conjugate") and writer != "ours":
            assert "only torch reads" in tensor["fault"], "torch stores the view"
            continue
        assert tensor["fault"] is None, name
        if not name.startswith("torch."):
            assert tensor["equal"], name
            continue
        a, b = tensors[name], other[name]
        if a.dtype.itemsize == 1 and a.is_floating_point():
            a, b = a.float(), b.float()
        same = (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b
        assert tensor["difference"]["differing"] == int((~same).sum()), name


def test_what_is_larger_than_its_bands_is_compared_whole(store: Store, tmp_path: Path) -> None:
    big = values((6000, 2000), 4)
    other = big.clone()
    other[0, 0] += 1
    other[5999, 1999] -= 2
    other[3000, :10] = float("nan")
    one = saved.save("ours", {"big": big}, store, tmp_path, "one")
    two = saved.save("torch's, local", {"big": other}, store, tmp_path, "two")
    difference = by_name(told("diff", one, two, code=1))["big"]["difference"]
    assert (difference["count"], difference["differing"], difference["not_finite"]) == (12_000_000, 12, 10)
    assert difference["largest_absolute"] == pytest.approx(2, rel=1e-6)


def test_what_cannot_be_compared_has_a_code_of_its_own(store: Store, tmp_path: Path) -> None:
    one = saved.save("torch's, local", {"a": values((30,)), "b": values((9,))}, store, tmp_path, "one")
    two = saved.save("torch's, local", {"a": values((30,)), "b": values((9,))}, store, tmp_path, "two")
    (shard,) = Path(one).glob("*.distcp")
    place = by_name(told("inspect", one))["b"]["chunks"][0]
    body = bytearray(shard.read_bytes())
    body[place["offset"] : place["offset"] + 100] = bytes(100)
    shard.write_bytes(body)
    found = told("diff", one, two, code=3)
    assert by_name(found)["a"]["equal"]
    assert by_name(found)["b"]["fault"]
    assert "cannot be compared: b" in run("diff", one, two, code=3).stdout
    assert "no checkpoint at" in run("diff", one, str(tmp_path), code=3).stderr
    assert run("diff", one, "ftp://x", code=2).stderr.startswith("error: ")
    assert "<B>" in run("diff", one, code=2).stderr


@pytest.mark.parametrize("group", ["refused", "refused by the walk"])
def test_hostile_indexes_are_refused(group: str, store: Store, tmp_path: Path) -> None:
    good = saved.save("torch's, local", {"a": values((3,))}, store, tmp_path, "good")
    bad = tmp_path / "bad"
    bad.mkdir()
    for name, body in hostile.some(group, 9):
        (bad / ".metadata").write_bytes(body)
        for arguments in ((good, str(bad)), (str(bad), good)):
            assert run("diff", *arguments, code=3).stderr.startswith("error: "), name
