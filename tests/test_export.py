"""``s3dcp export``: models that safetensors, transformers and torch load, with the checkpoint's own bits."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.tensor import DTensor, Shard, init_device_mesh

from s3dcp import testing
from support import command, hostile, jobs, parts, saved
from support.chance import how_many, new_seed
from support.states import DTYPES, assert_same, layouts, training_state, values
from support.store import Store, boto_client

MIB = 1 << 20
INDEX = "model.safetensors.index.json"


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors of the training state, whole, by their names in a checkpoint."""
    state = training_state(seed)
    model = {f"model.{name}": tensor for name, tensor in state.pop("model").items()}
    return model | {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def objects(store: Store, prefix: str) -> dict[str, bytes]:
    """The objects below a prefix, by the rest of their keys."""
    read = {}
    for key in store.all_keys(f"{prefix}/"):
        read[key.removeprefix(f"{prefix}/")] = store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
    return read


def model_in(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """All tensors of a folder, each in the file that the index says."""
    if INDEX not in files:
        assert list(files) == ["model.safetensors"]
        return load_safetensors(files["model.safetensors"])
    index = json.loads(files[INDEX])
    assert set(index["weight_map"].values()) == set(files) - {INDEX}
    loaded = {name: load_safetensors(body) for name, body in files.items() if name != INDEX}
    assert sum(len(file) for file in loaded.values()) == len(index["weight_map"])
    return {name: loaded[file][name] for name, file in index["weight_map"].items()}


@pytest.mark.parametrize("writer", saved.WRITERS_OF_JOBS)
def test_what_is_exported_has_the_bits_of_the_checkpoint(writer: str, store: Store, ranks: Any, tmp_path: Path) -> None:
    source = saved.save_by_ranks(writer, store, ranks, tmp_path / "source")
    told = command.told("export", source, f"s3://{store.bucket}/model")
    assert_same(model_in(objects(store, "model")), tensors())
    assert told["tensors"] == len(tensors())
    assert "step" in told["left_out"]
    command.told("export", source, tmp_path / "model", "--max-shard-size", "300B")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert len(files) > 2
    assert_same(model_in(files), tensors())
    command.told("export", source, tmp_path / "model.pt", "--format", "torch")
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), tensors())


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_a_file_of_torch_goes_to_a_bucket_too_and_is_a_sound_zip(store: Store) -> None:
    state = {str(dtype): values((3, 5), 2, dtype) for dtype in DTYPES} | {"large": values((9 * MIB,))}
    state |= {"nothing": torch.empty(0, 3), "scalar": values(())}
    jobs.save(state, store.uri)
    command.told("export", store.uri, f"s3://{store.bucket}/model.pt", "--format", "torch")
    body = store.client.get_object(Bucket=store.bucket, Key="model.pt")["Body"].read()
    assert zipfile.ZipFile(io.BytesIO(body)).testzip() is None
    assert_same(torch.load(io.BytesIO(body), weights_only=True), state)
    assert_same(torch.load(io.BytesIO(body), weights_only=True, mmap=False), state)


@pytest.mark.parametrize("name", ["layouts", "dtypes"])
@pytest.mark.parametrize("writer", ["ours", "torch's"])
def test_every_layout_and_dtype_that_safetensors_knows(name: str, writer: str, store: Store, tmp_path: Path) -> None:
    known = {"float8_e4m3fnuz", "float8_e5m2fnuz", "complex32", "complex128"}
    state = (
        layouts()
        if name == "layouts"
        else {
            f"{dtype}{shape}": values(shape, 3, dtype)
            for dtype in DTYPES
            if str(dtype).removeprefix("torch.") not in known
            for shape in ((7, 5), (), (0, 2))
        }
    )
    source: Any = store.uri
    if writer == "ours":
        jobs.save(dict(state), source)
    else:
        source = tmp_path / "source"
        # Those have a bit beside their values, which torch itself applies.
        state = {name: tensor for name, tensor in state.items() if not (tensor.is_conj() or tensor.is_neg())}
        dcp.save(dict(state), storage_writer=FileSystemWriter(source))
    command.told("export", source, tmp_path / "model")
    loaded = load_file(tmp_path / "model/model.safetensors")
    assert_same(loaded, {name: tensor.contiguous() for name, tensor in state.items()})


def test_names_are_mapped_and_items_selected(store: Store, tmp_path: Path) -> None:
    jobs.save(training_state(), store.uri)
    (tmp_path / "names.json").write_text(json.dumps({"plain": "head.weight"}))
    names = ("--strip-prefix", "model.", "--map-file", tmp_path / "names.json", "--map", "model.few=lm.few")
    command.told("export", store.uri, tmp_path / "model", "--select", "model", "plain", *names)
    want = {name.removeprefix("model."): tensor for name, tensor in tensors().items() if name.startswith("model.")}
    want["lm.few"] = want.pop("few")
    want["head.weight"] = tensors()["plain"]
    assert_same(load_file(tmp_path / "model/model.safetensors"), want)
    error = command.refused("export", store.uri, tmp_path / "other", "--map", "plain=scalar", code=2)
    assert "would both be called" in error
    command.refused("export", store.uri, tmp_path / "other", "--dtype", "int8", code=2)
    command.refused("export", store.uri, tmp_path / "other", "--map", "x", code=2)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_floating_point_tensors_are_converted_as_torch_converts_them(dtype: str, store: Store, tmp_path: Path) -> None:
    wide = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    state = {str(of): values((1000, 7), 5, of) * 100 for of in wide} | {"counts": values((9,), 1, torch.int64)}
    state["limits"] = torch.tensor([0.0, -0.0, 65520.0, 1e-8, 3.4e38, float("inf"), -1e-45])
    jobs.save(dict(state), store.uri)
    command.told("export", store.uri, tmp_path / "model", "--dtype", dtype)
    want = {name: of.to(getattr(torch, dtype)) if of.is_floating_point() else of for name, of in state.items()}
    assert_same(load_file(tmp_path / "model/model.safetensors"), want)


# -- what the service does


def save_fsdp(uri: str) -> None:
    jobs.save(fsdp_state(), uri)


def fsdp_state() -> dict[str, Any]:
    """As FSDP2 has it: rows on every rank, here with small tensors and one that is sharded by columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def sharded(tensor: torch.Tensor, dim: int) -> DTensor:
        local = tensor.chunk(dist.get_world_size(), dim)[dist.get_rank()]
        return DTensor.from_local(local.contiguous(), mesh, [Shard(dim)], run_check=False)

    return {name: sharded(tensor, 1 if name == "columns" else 0) for name, tensor in whole_fsdp_state().items()} | {
        "step": 7
    }


def whole_fsdp_state() -> dict[str, torch.Tensor]:
    large = {f"layers.{number}.weight": values((4096, 1536), number) for number in range(8)}
    small = {f"layers.{number}.bias": values((128,), number, torch.bfloat16) for number in range(8)}
    return large | small | {"columns": values((64, 256), 99)}


@pytest.mark.distributed
def test_a_service_puts_row_shards_together_by_itself(
    store: Store, groups: Any, s3dcp_server: testing.Server, tmp_path: Path
) -> None:
    groups(4).run(save_fsdp, store.uri)
    before = s3dcp_server.stats()
    told = command.told("export", store.uri, f"s3://{store.bucket}/model", "--max-shard-size", "110MB")
    after = s3dcp_server.stats()
    moved = after.bytes_sent - before.bytes_sent + after.bytes_received - before.bytes_received
    assert told["bytes"] > 192 * MIB
    assert len(told["files"]) == 2
    assert told["bytes_by_service"] > 170 * MIB
    assert moved < 2 * 2 * (5 + 4) * MIB, "no more than a part of 5 MiB for each file and size of elements"
    assert_same(model_in(objects(store, "model")), whole_fsdp_state())


def test_between_services_a_model_is_streamed(store: Store) -> None:
    state = {"large": values((9 * MIB,)), "small": values((3,), 1)}
    jobs.save(dict(state), store.uri)
    with testing.server(buckets=["elsewhere"], environment=False) as other:
        told = command.told("export", store.uri, "s3://elsewhere/m", "--to-endpoint-url", other.endpoint_url)
        assert told["bytes_by_service"] == 0
        body = boto_client(other.endpoint_url).get_object(Bucket="elsewhere", Key="m/model.safetensors")["Body"].read()
        assert_same(load_safetensors(body), state)


# -- what is there, and what cannot be exported


def test_a_model_is_replaced_only_when_told_to(store: Store, tmp_path: Path) -> None:
    jobs.save({f"t{number}": values((100,), number) for number in range(4)}, store.uri)
    model = tmp_path / "model"
    command.told("export", store.uri, model, "--max-shard-size", "400B")
    (model / "config.json").write_text("{}")
    assert "there is a model already" in command.refused("export", store.uri, model)
    command.told("export", store.uri, model, "--overwrite")
    assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]
    assert "there is a model already" in command.refused("export", store.uri, model)


def test_indexes_that_attack_are_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, body in hostile.some("refused", 9):
        (tmp_path / "source/.metadata").write_bytes(body)
        assert command.refused("export", tmp_path / "source", tmp_path / "model"), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_errors_say_what_is_wrong(store: Store, tmp_path: Path) -> None:
    assert "there is no checkpoint at" in command.refused("export", store.uri, tmp_path / "model")
    jobs.save({"a": values((300,)), "b": values((200,), 1, torch.complex128)}, store.uri)
    assert "safetensors has no name for complex128" in command.refused("export", store.uri, tmp_path / "model", code=2)
    (name,) = store.shards()
    body = store.read(name)
    store.write(name, body[:-100])
    assert "of a file of" in command.refused("export", store.uri, tmp_path / "model", "--format", "torch")
    damaged = bytearray(body)
    damaged[900] ^= 1
    store.write(name, bytes(damaged))
    assert "checksum" in command.refused("export", store.uri, tmp_path / "model", "--select", "a")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- stopped


def files_of(model: str, store: Store) -> dict[str, bytes]:
    """What is in a folder of a model, but for what was not finished."""
    if model.startswith("s3://"):
        return objects(store, model.removeprefix(f"s3://{store.bucket}/"))
    return {path.name: path.read_bytes() for path in Path(model).glob("model*")}


def test_an_export_that_is_killed_leaves_no_model_and_the_next_one_completes(store: Store, tmp_path: Path) -> None:
    state = {f"t{number}": values((2 * MIB,), number) for number in range(6)}
    jobs.save(dict(state), store.uri)
    chance = random.Random(new_seed())
    kills = how_many("KILLS", 20)
    early = 0
    for number in range(kills):
        to_folder = number % 2 == 1
        model = str(tmp_path / f"model-{number}") if to_folder else f"s3://{store.bucket}/model-{number}"
        size = ("--max-shard-size", "17MB")
        early += command.killed("export", store.uri, model, *size, longest=0.6, chance=chance)
        files = files_of(model, store)
        if INDEX in files:
            assert_same(model_in(files), state)
        command.told("export", store.uri, model, *size, "--overwrite")
        command.run("prune", model, "--older-than", "0s", "--all-uploads", "--delete")
        assert [*store.uploads(), *tmp_path.rglob("*.s3dcp-part-*")] == []
        assert_same(model_in(files_of(model, store)), state)
    print(f"{early} of {kills} exports were killed before their end")
    assert early > 0


def test_a_person_is_told_what_was_written(store: Store, tmp_path: Path) -> None:
    jobs.save({"a": torch.zeros(1000), "b": 7}, store.uri)
    lines = command.run("export", store.uri, tmp_path / "model").stdout.splitlines()
    assert lines[0] == f"wrote 1 tensor of 3.9 KiB in 1 file to {tmp_path / 'model'}"
    assert "through this machine" in lines[1]
    assert lines[2].endswith("left out, no tensors: 1 object (b)")


# -- an index for each rank


@pytest.fixture(params=["ours", "torch's"])
def source(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> str | Path:
    """Where ranks save alone: a bucket, or a folder in which torch's own writer does."""
    return tmp_path / "source" if request.param == "torch's" else store.uri


@pytest.mark.distributed
def test_what_ranks_saved_without_collectives_is_one_model(source: str | Path, groups: Any, tmp_path: Path) -> None:
    groups(2).run(parts.save, source)
    told = command.told("export", source, tmp_path / "model.safetensors")
    assert_same(load_file(tmp_path / "model.safetensors"), parts.whole(2))
    assert told["left_out"] == ["step"]


@pytest.mark.distributed
def test_different_tensors_by_one_name_are_no_model_and_each_rank_has_one(
    source: str | Path, groups: Any, tmp_path: Path
) -> None:
    groups(2).run(parts.save, source, buffer_of_each=True)
    told = command.refused("export", source, tmp_path / "model", code=2)
    assert "buffer: rank 1 saved another tensor by this name than rank 0" in told
    assert f"{source}/__0.metadata" in told
    command.told("export", source, tmp_path / "rest.safetensors", "--select", "layers", "own")
    rest = {name: tensor for name, tensor in parts.whole(2).items() if name != "buffer"}
    assert_same(load_file(tmp_path / "rest.safetensors"), rest)
    for rank in range(2):
        index, model = f"{source}/__{rank}.metadata", tmp_path / f"{rank}.safetensors"
        command.told("export", index, model, "--select", "buffer", "own")
        assert_same(load_file(model), {"buffer": values((3000,), rank), f"own.{rank}": values((50,), rank)})
    told = command.refused("export", f"{source}/__0.metadata", tmp_path / "half")
    assert "layers.rows: its chunks in the index do not hold" in told


@pytest.mark.distributed
def test_a_rank_without_its_index_is_missed(store: Store, groups: Any, tmp_path: Path) -> None:
    groups(2).run(parts.save, store.uri)
    store.delete("__1.metadata")
    told = command.refused("export", store.uri, tmp_path / "model", "--select", "own.0")
    assert "is incomplete: 2 ranks saved it, and 1 have an index" in told
