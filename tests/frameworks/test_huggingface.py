"""Safetensors files on S3, beside torch's own writer and reader, the safetensors library and transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3dcp import Corrupt, NotFound
from s3dcp.huggingface import (
    S3HuggingFaceReader,
    S3HuggingFaceWriter,
    consolidate_safetensors_files,
    consolidate_safetensors_files_on_every_rank,
)
from support import pages
from support.scripts import that_ends
from support.store import Store

safetensors_torch = pytest.importorskip("safetensors.torch")
ROOT = Path(__file__).parents[2]

MAPPING = {"a": 1, "b": 2, "c": 1, "empty": 2, "flags": 2, "scalar": 1}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "a": torch.randn(10, 4),
        "b": torch.arange(7),
        "c": torch.randn(3, 5).to(torch.bfloat16),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
    }


def save(values: dict[str, Any], path: str, *args: Any, **kwargs: Any) -> None:
    dcp.save(values, storage_writer=S3HuggingFaceWriter(None, path, *args, **kwargs), no_dist=True)


def save_with_torch(path: Path, *args: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        dcp.save(state(), storage_writer=dcp.HuggingFaceStorageWriter(str(path), *args), no_dist=True)


def load(path: str) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    dcp.load(found, storage_reader=S3HuggingFaceReader(None, path), no_dist=True)
    return found


def is_state(found: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], tensor) for name, tensor in state().items())


def download(store: Store, folder: Path, prefix: str) -> None:
    for key in store.all_keys(f"{prefix}/"):
        file = folder / key.removeprefix(f"{prefix}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read())


def upload(store: Store, folder: Path, prefix: str) -> None:
    for file in filter(Path.is_file, folder.rglob("*")):
        store.client.put_object(Bucket=store.bucket, Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes())


def header(file: Path) -> dict[str, Any]:
    body = file.read_bytes()
    found: dict[str, Any] = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return found


@pytest.mark.parametrize("mapping", [None, MAPPING], ids=["one-file", "two-files"])
def test_files_are_those_of_torchs_own_writer(store: Store, tmp_path: Path, mapping: dict[str, int] | None) -> None:
    save(state(), store.uri, mapping)
    ours, torchs = tmp_path / "ours", tmp_path / "torchs"
    download(store, ours, store.path)
    save_with_torch(torchs, mapping)
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in torchs.iterdir())
    for file in ours.glob("*.safetensors"):
        assert {**header(file), "__metadata__": None} == {**header(torchs / file.name), "__metadata__": None}
        assert file.stat().st_size == (torchs / file.name).stat().st_size
        start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert file.read_bytes()[start:] == (torchs / file.name).read_bytes()[start:]
    name = "model.safetensors.index.json"
    assert json.loads((ours / name).read_text()) == json.loads((torchs / name).read_text())


def test_torch_and_s3dcp_read_what_the_other_wrote(store: Store, tmp_path: Path) -> None:
    save(state(), store.uri, MAPPING)
    download(store, tmp_path / "ours", store.path)
    # torch 2.8 can read neither a tensor without elements nor one of bool
    found = {name: torch.zeros_like(state()[name]) for name in ("a", "b", "c", "scalar")}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "ours")), no_dist=True)
    assert is_state({**state(), **found})
    save_with_torch(tmp_path / "theirs")
    upload(store, tmp_path / "theirs", "theirs")
    assert is_state(load(f"s3://{store.bucket}/theirs"))


def test_files_of_the_formats_own_library_are_read(store: Store, tmp_path: Path) -> None:
    safetensors_torch.save_file(state(), tmp_path / "model.safetensors")
    store.client.upload_file(str(tmp_path / "model.safetensors"), store.bucket, "single/model.safetensors")
    assert is_state(load(f"s3://{store.bucket}/single"))


def test_shards_become_whole_tensors_by_ranges(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3dcp._huggingface.consolidate.BLOCK_BYTES", 100)
    torch.manual_seed(2)
    whole = {"rows": torch.randn(9, 4), "columns": torch.randn(4, 9), "blocks": torch.randn(6, 4, 6), **state()}
    shards: list[dict[str, tuple[torch.Tensor, list[int]]]] = [{}, {}, {}, {}]
    for rank in range(3):
        shards[rank]["rows"] = whole["rows"][rank * 3 : rank * 3 + 3].contiguous(), [rank * 3, 0]
        shards[rank]["columns"] = whole["columns"][:, rank * 3 : rank * 3 + 3].contiguous(), [0, rank * 3]
    for rank in range(4):
        row, column = rank // 2 * 3, rank % 2 * 3
        block = whole["blocks"][row : row + 3, :, column : column + 3].contiguous()
        shards[rank]["blocks"] = block, [row, 0, column]
    for name, tensor in state().items():
        shards[0][name] = tensor, [0] * tensor.dim()
    for rank, shard in enumerate(shards, 1):
        offsets = {name: {"saved_offsets": at} for name, (_, at) in shard.items()}
        metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
        body = safetensors_torch.save({name: tensor for name, (tensor, _) in shard.items()}, metadata)
        store.client.put_object(
            Bucket=store.bucket, Key=f"shards/shard-{rank:05}-model-00001-of-00001.safetensors", Body=body
        )
    source = f"s3://{store.bucket}/shards"
    mapping = {name: 1 + number % 2 for number, name in enumerate(whole)}
    consolidate_safetensors_files(source, store.uri, mapping, 2)
    download(store, tmp_path, store.path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name, tensor in whole.items():
        file = tmp_path / index["weight_map"][name]
        assert file.name == f"model-{mapping[name]:05}-of-00002.safetensors"
        assert torch.equal(safetensors_torch.load_file(file)[name], tensor)

    consolidate_safetensors_files_on_every_rank(source, f"s3://{store.bucket}/again", mapping)
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        again = store.client.get_object(Bucket=store.bucket, Key=f"again/{name}")["Body"].read()
        assert again == (tmp_path / name).read_bytes()

    store.client.delete_object(Bucket=store.bucket, Key="shards/shard-00002-model-00001-of-00001.safetensors")
    with pytest.raises((Corrupt, ValueError), match="missing"):
        consolidate_safetensors_files(source, store.uri, mapping)
    assert "model.safetensors.index.json" not in store.names(), "an index without all its tensors"


def test_two_ranks_save_shards_and_whole_tensors(store: Store, tmp_path: Path) -> None:
    example = tmp_path / "huggingface.py"
    example.write_text(that_ends((ROOT / "examples/frameworks/huggingface.py").read_text()))
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        example,
        store.uri,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "2048 values are back" in done.stdout
    assert store.names() == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        *(f"sharded/shard-0000{rank}-model-0000{file}-of-00002.safetensors" for rank in (1, 2) for file in (1, 2)),
    ]


def test_a_save_that_fails_leaves_no_model(store: Store, s3dcp_server: Any, failure: Any) -> None:
    save(state(), store.uri, MAPPING)
    s3dcp_server.inject("error:AccessDenied on=PutObject key=*model-00002* times=99")
    try:
        failure(save, state(), store.uri, MAPPING)
    finally:
        s3dcp_server.clear_faults()
    assert store.names() == []


def test_a_save_over_another_leaves_only_its_own_files(store: Store) -> None:
    save(state(), store.uri, MAPPING)
    store.write("config.json", b"{}")
    store.write("tokenizer.safetensors", b"of somebody else")
    save(state(), store.uri)
    assert store.names() == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.safetensors",
    ]
    assert is_state(load(store.uri))


def test_files_of_two_saves_are_not_one_checkpoint(store: Store, failure: Any) -> None:
    save(state(), store.uri, MAPPING, save_distributed=True)
    older = store.read("shard-00001-model-00001-of-00002.safetensors")
    save(state(), store.uri, MAPPING, save_distributed=True)
    assert is_state(load(store.uri))
    store.write("shard-00001-model-00001-of-00002.safetensors", older)
    error = failure(load, store.uri)
    assert isinstance(error, Corrupt)
    assert "several saves" in str(error)


def damaged(body: bytes) -> dict[str, bytes]:
    longest = (2**40).to_bytes(8, "little")
    head = {"a": {"dtype": "F32", "shape": [10, 4], "data_offsets": [0, 999999]}}
    text = json.dumps(head).encode()
    return {
        "empty": b"",
        "a header longer than the file": longest + body[8:],
        "no JSON": body[:8] + b"x" * (len(body) - 8),
        "a list": (2).to_bytes(8, "little") + b"[]",
        "outside": len(text).to_bytes(8, "little") + text,
        "deep": (90_000).to_bytes(8, "little") + b"[" * 90_000,
    }


@pytest.mark.parametrize("kind", sorted(damaged(b"12345678")))
def test_damaged_files_are_refused(store: Store, failure: Any, kind: str) -> None:
    save(state(), store.uri)
    name = "model-00001-of-00001.safetensors"
    store.write(name, damaged(store.read(name))[kind])
    error = failure(load, store.uri)
    assert isinstance(error, Corrupt)
    assert name in str(error)


def test_what_is_missing_is_named(store: Store, failure: Any) -> None:
    error = failure(load, store.uri)
    assert isinstance(error, NotFound)
    assert store.uri in str(error)
    save(state(), store.uri, MAPPING)
    store.delete("model-00002-of-00002.safetensors")
    error = failure(load, store.uri)
    assert isinstance(error, NotFound)
    assert "model-00002-of-00002.safetensors" in str(error)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"path": "/tmp/model"}, "path"),
        ({"enable_consolidation": True}, "enable_consolidation"),
        ({"fqn_to_index_mapping": {"a": 0}}, "fqn_to_index_mapping"),
        ({"endpoint_url": "http://user:password@host"}, "endpoint_url"),
    ],
)
def test_bad_arguments_are_named(store: Store, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        S3HuggingFaceWriter(None, **{"path": store.uri, **arguments})


def test_what_no_file_can_hold_is_named(store: Store, failure: Any) -> None:
    assert "b: safetensors" in str(failure(save, {"a": torch.ones(1), "b": "text"}, store.uri))
    assert "fqn_to_index_mapping" in str(failure(save, {"a": torch.ones(1), "b": torch.ones(1)}, store.uri, {"a": 1}))
    assert store.all_keys() == []


def test_transformers_loads_the_snippet_of_the_page(store: Store, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is installed by `make test-frameworks`")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=20)
    model = transformers.GPT2LMHeadModel(config)
    snippet = pages.block("docs/frameworks.md", "S3HuggingFaceWriter(").replace(
        "s3://checkpoints/", f"s3://{store.bucket}/"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, without a process group
        exec(snippet, {"model": model})
    download(store, tmp_path, "model")
    config.save_pretrained(tmp_path)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
