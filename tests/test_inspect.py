"""``s3dcp inspect`` says what a checkpoint holds, whoever wrote it, and nothing in it is run."""

from __future__ import annotations

import json
import math
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from support import hostile, saved
from support.command import run, told
from support.states import DTYPES, values
from support.store import Store
from support.torch_versions import needs_rank_indexes


def state() -> dict[str, Any]:
    return {
        "model": {"layers": {"0": {"w": values((40, 30)), "b": values((30,), 1, torch.bfloat16)}}},
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "step": 7,
    }


@pytest.mark.parametrize("writer", saved.WRITERS)
def test_what_each_writer_saved_is_listed_with_its_places(writer: str, store: Store, tmp_path: Path) -> None:
    uri = saved.save(writer, state(), store, tmp_path)
    found = told("inspect", uri)
    tensors = {tensor["name"]: tensor for tensor in found["tensors"]}
    assert {name: (tensor["dtype"], tensor["shape"], tensor["bytes"]) for name, tensor in tensors.items()} == {
        "model.layers.0.w": ("float32", [40, 30], 4800),
        "model.layers.0.b": ("bfloat16", [30], 60),
        "scalar": ("float64", [], 8),
        "empty": ("float32", [0, 4], 0),
    }
    assert [item["name"] for item in found["objects"]] == ["step"]
    for tensor in tensors.values():
        for chunk in tensor["chunks"]:
            assert (chunk["offsets"], chunk["sizes"]) == ([0] * len(tensor["shape"]), tensor["shape"])
            assert chunk["saved_by"] == 0
            assert chunk["has_checksums"] is writer.startswith("ours")
    if uri.startswith("/"):
        chunk = tensors["model.layers.0.w"]["chunks"][0]
        item = Path(chunk["file"]).read_bytes()[chunk["offset"] :][: chunk["length"]]
        assert values((40, 30)).numpy().tobytes() in item
    text = run("inspect", uri).stdout
    assert re.search(r"^model\.layers\.0\.w( \(rank 0\))?  float32   \[40, 30\]  all  ", text, re.MULTILINE)
    assert f"{uri}" in text.splitlines()[-1]
    assert "4 tensors, 1 object" in text.splitlines()[-1]


def test_chunks_and_ranks_are_told(store: Store, groups: Any) -> None:
    from support import jobs

    groups(4).run(jobs.save_training_state, store.uri, ("Hex", {}))
    found = told("inspect", store.uri)
    assert found["ranks"] == 4
    assert {total["of"] for total in found["by_rank"]} == {f"rank {rank}" for rank in range(4)}
    assert found["total"]["bytes"] == sum(total["bytes"] for total in found["by_rank"])
    assert found["total"]["tensors"] == len(found["tensors"]) == sum(t["tensors"] for t in found["by_dtype"])
    sharded = [tensor for tensor in found["tensors"] if len(tensor["chunks"]) > 1]
    assert sharded
    for tensor in sharded:
        elements = sum(math.prod(chunk["sizes"]) for chunk in tensor["chunks"])
        assert elements == math.prod(tensor["shape"])
    assert "rank 3" in run("inspect", store.uri).stdout


@needs_rank_indexes
def test_the_indexes_of_all_ranks_are_shown_together(store: Store, groups: Any) -> None:
    from support import jobs

    groups(4).run(jobs.save_training_state, store.uri, ("Hex", {}), use_collectives=False)
    found = told("inspect", store.uri)
    assert [index["rank"] for index in found["indexes"]] == [0, 1, 2, 3]
    assert {tensor["rank"] for tensor in found["tensors"]} == {0, 1, 2, 3}
    one = told("inspect", f"{store.uri}/__2.metadata")
    assert {tensor["rank"] for tensor in one["tensors"]} == {2}
    assert "(rank 2)" in run("inspect", store.uri).stdout


def test_a_checkpoint_is_named_by_its_folder_or_its_index(store: Store, tmp_path: Path) -> None:
    uri = saved.save("ours, by epochs", state(), store, tmp_path)
    names = [tensor["name"] for tensor in told("inspect", uri)["tensors"]]
    for same in (f"{uri}/", f"{uri}/.metadata", uri.removesuffix("/epoch_3")):
        assert [tensor["name"] for tensor in told("inspect", same)["tensors"]] == names
    local = saved.save("torch's, local", state(), store, tmp_path, "local")
    assert len(told("inspect", f"{local}/.metadata")["tensors"]) == len(names)
    assert told("inspect", uri)["epoch"] == 3


def test_where_no_checkpoint_is_those_nearby_are_named(store: Store, tmp_path: Path) -> None:
    uri = saved.save("ours", state(), store, tmp_path, "run/step-7")
    above = uri.removesuffix("/step-7")
    assert f"no checkpoint at {above}; there is a checkpoint below it, at {uri}" in run("inspect", above, code=1).stderr
    assert f"above it, at {uri}" in run("inspect", f"{uri}/deeper", code=1).stderr
    assert "no checkpoint at" in run("inspect", str(tmp_path), code=1).stderr
    assert run("inspect", str(tmp_path / "absent"), code=2).stderr.startswith("error: there is no ")


def test_names_are_filtered_by_name_prefix_and_glob(store: Store, tmp_path: Path) -> None:
    local = saved.save("torch's, local", state(), store, tmp_path)

    def names(*wanted: str) -> list[str]:
        found = told("inspect", local, *wanted)
        return [item["name"] for item in found["tensors"] + found["objects"]]

    assert names("scalar") == ["scalar"]
    assert names("model.layers") == ["model.layers.0.b", "model.layers.0.w"]
    assert names("*.w", "step") == ["model.layers.0.w", "step"]
    assert 'name "model.lay"' in run("inspect", local, "model.lay", code=2).stderr
    assert "a*[" in run("inspect", local, "a*[", code=2).stderr


def test_the_tree_stands_in_the_order_of_the_layers(store: Store, tmp_path: Path) -> None:
    layers = {"layers": {str(number): values((2, 2), number) for number in (0, 2, 10)}}
    local = saved.save("torch's, local", layers, store, tmp_path)
    lines = run("inspect", local, "--tree").stdout.splitlines()
    assert [line.split("── ")[1].split()[0] for line in lines[1:5]] == ["layers", "0", "2", "10"]
    assert "── 2" not in run("inspect", local, "--tree", "--depth", "1").stdout


@pytest.mark.parametrize("writer", ["ours", "torch's, local"])
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
def test_statistics_are_those_of_torch(writer: str, store: Store, tmp_path: Path) -> None:
    tensors = {str(dtype).removeprefix("torch."): values((130, 70), 5, dtype) for dtype in DTYPES}
    tensors["bad"] = torch.tensor([1.0, float("nan"), float("inf"), -3.0, float("-inf")])
    tensors["wide"] = values((3000, 3000), 6)
    tensors["nothing"] = torch.zeros(0, 3)
    tensors["turned"] = values((50, 20), 7).t()
    uri = saved.save(writer, tensors, store, tmp_path)
    found = {tensor["name"]: tensor["statistics"] for tensor in told("inspect", uri, "--stats")["tensors"]}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        statistics = found[name]
        assert statistics["count"] == tensor.numel()
        if tensor.is_complex():
            tensor = tensor.to(torch.complex128).abs()
        exact = tensor.dtype if tensor.dtype in (torch.int64, torch.uint64) else torch.float64
        numbers = tensor.to(exact).flatten().tolist()
        finite = [number for number in numbers if math.isfinite(number)]
        assert statistics["nan"] == sum(map(math.isnan, numbers)), name
        assert statistics["inf"] == sum(map(math.isinf, numbers)), name
        if not finite:
            assert statistics["min"] is statistics["mean"] is None
            continue
        # JSON has the shortest text of a float; complex magnitudes may differ in their last bit.
        assert statistics["min"] == pytest.approx(min(finite), rel=1e-15 if tensor.is_floating_point() else 0), name
        assert statistics["max"] == pytest.approx(max(finite), rel=1e-15 if tensor.is_floating_point() else 0), name
        mean = sum(map(int, finite)) / len(finite) if exact is not torch.float64 else math.fsum(finite) / len(finite)
        assert statistics["mean"] == pytest.approx(mean, rel=1e-9, abs=1e-12), name
    table = run("inspect", uri, "bad", "--stats").stdout.splitlines()
    assert table[1].split() == ["bad", "float32", "[5]", "-3", "1", "-1", "1", "2"]


def test_statistics_of_sharded_tensors_are_of_all_chunks(store: Store, groups: Any) -> None:
    from support import jobs

    groups(4).run(jobs.save_training_state, store.uri, ("Hex", {}))
    for tensor in told("inspect", store.uri, "--stats")["tensors"]:
        assert "fault" not in tensor, tensor
        assert tensor["statistics"]["count"] == math.prod(tensor["shape"])


def test_what_cannot_be_read_is_told_beside_what_can(store: Store, tmp_path: Path) -> None:
    local = Path(saved.save("torch's, local", {"a": values((300, 300)), "z": values((5,))}, store, tmp_path))
    (shard,) = local.glob("*.distcp")
    place = told("inspect", str(local), "z")["tensors"][0]["chunks"][0]
    body = bytearray(shard.read_bytes())
    body[place["offset"] : place["offset"] + 200] = bytes(200)
    shard.write_bytes(body)
    good, bad = told("inspect", str(local), "--stats")["tensors"]
    assert good["statistics"]["count"] == 90_000
    assert "statistics" not in bad
    assert bad["fault"]
    assert "cannot be read z" in run("inspect", str(local), "--stats").stdout


def test_a_name_cannot_play_with_the_terminal(store: Store, tmp_path: Path) -> None:
    local = saved.save("torch's, local", {"\x1b[2J": values((2,)), "a" * 5000: values((2,))}, store, tmp_path)
    for options in ((), ("--tree",), ("--stats",)):
        assert "\x1b" not in run("inspect", local, *options).stdout


@pytest.mark.parametrize("group", ["refused", "refused by the walk"])
def test_hostile_indexes_are_refused(group: str, tmp_path: Path) -> None:
    index = tmp_path / ".metadata"
    for name, body in hostile.some(group, 7):
        index.write_bytes(body)
        assert run("inspect", str(tmp_path), code=1).stderr.startswith("error: "), name
    assert [path.name for path in tmp_path.iterdir()] == [".metadata"]


def test_an_index_that_speaks_of_more_than_there_is_ends_soon(tmp_path: Path) -> None:
    """Tensors of 2^60 elements in a file of a few bytes."""
    size = torch.Size((1 << 30, 1 << 30))
    chunk = ChunkStorageMetadata(torch.Size((0, 0)), size)
    metadata = Metadata(
        {"huge": TensorStorageMetadata(TensorProperties(torch.uint8), size, [chunk])},
        storage_data={MetadataIndex("huge", torch.Size((0, 0))): _StorageInfo("__0_0.distcp", 0, 1 << 60)},
    )
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    (tmp_path / "__0_0.distcp").write_bytes(bytes(2000))
    (tensor,) = told("inspect", str(tmp_path), "--stats")["tensors"]
    assert tensor["bytes"] == 1 << 60
    assert "ends at byte 2000" in tensor["fault"]


def test_a_hundred_thousand_items_are_listed_at_once(tmp_path: Path) -> None:
    size, offset = torch.Size((64, 64)), torch.Size((0, 0))
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), size, [ChunkStorageMetadata(offset, size)])
    names = [f"model.layers.{number // 10}.block{number % 10}.weight" for number in range(100_000)]
    places = {
        MetadataIndex(name, offset): _StorageInfo(f"__{number % 64}_0.distcp", number // 64 * 17_000, 17_000)
        for number, name in enumerate(names)
    }
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(dict.fromkeys(names, tensor), storage_data=places)))
    begin = time.perf_counter()
    lines = run("inspect", str(tmp_path)).stdout.splitlines()
    taken = time.perf_counter() - begin
    assert sum(line.startswith("model.layers.") for line in lines) == 100_000
    assert taken < 15, "a second or less on a machine that does nothing else"
    assert len(json.loads(run("inspect", str(tmp_path), "--json").stdout)["tensors"]) == 100_000
