"""``s3dcp.catalogue``: what the commands do, as functions with records."""

from __future__ import annotations

import dataclasses
import inspect as signatures
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from s3dcp import catalogue
from s3dcp.errors import AlreadyExists, ConfigError, Corrupt, NotFound
from support import command, jobs
from support.states import assert_same, blank, values
from support.store import Store


def state() -> dict[str, Any]:
    return {"model": {"w": values((40, 30)), "b": values((30,), 1, torch.bfloat16)}, "step": 7}


@pytest.fixture(params=["bucket", "folder"])
def place(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Any:
    """A checkpoint in a bucket or in a folder, and what makes another place beside it."""
    if request.param == "bucket":
        jobs.save(state(), f"{store.uri}/run")
        return lambda name: f"{store.uri}/{name}"
    dcp.save(state(), storage_writer=FileSystemWriter(tmp_path / "run"), no_dist=True)
    return lambda name: tmp_path / name


def as_told(record: Any) -> Any:
    """A record as the command tells it: without what is absent, and with its names."""
    if dataclasses.is_dataclass(record):
        names = {"source": "from", "target": "to"}
        fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        return {names.get(name, name): as_told(value) for name, value in fields.items() if value is not None}
    return [as_told(item) for item in record] if isinstance(record, list) else record


def present(told: Any) -> Any:
    if isinstance(told, dict):
        return {name: present(value) for name, value in told.items() if value is not None}
    return [present(item) for item in told] if isinstance(told, list) else told


def test_records_say_all_that_the_commands_say(place: Any) -> None:
    run = place("run")
    assert as_told(catalogue.inspect(run)) == present(command.told("inspect", run))
    assert as_told(catalogue.inspect(run, ["model.w"], statistics=True)) == present(
        command.told("inspect", run, "model.w", "--stats")
    )
    assert as_told(catalogue.verify(run)) == present(command.told("verify", run))
    assert as_told(catalogue.diff(run, run)) == present(command.told("diff", run, run))
    assert as_told(catalogue.copy(run, place("one"))) == present(
        {**command.told("cp", run, place("two")), "to": str(place("one"))}
    )
    exported = as_told(catalogue.export(run, place("model")))
    told = command.told("export", run, place("other"))
    assert exported == present({**told, "to": str(place("model")), "files": exported["files"]})
    imported = as_told(catalogue.import_model(place("model"), place("made")))
    assert imported == present({**command.told("import", place("model"), place("again")), "to": str(place("made"))})


def test_statistics_and_differences_are_numbers(place: Any, tmp_path: Path) -> None:
    (tensor,) = catalogue.inspect(place("run"), ["model.w"], statistics=True).tensors
    w = values((40, 30))
    assert tensor.statistics is not None
    assert tensor.statistics.max == w.max().item()
    assert tensor.statistics.mean == pytest.approx(w.double().mean().item())
    changed = state()
    changed["model"]["w"][3, 4] += 0.5
    dcp.save(changed, storage_writer=FileSystemWriter(tmp_path / "changed"), no_dist=True)
    found = catalogue.diff(place("run"), tmp_path / "changed")
    assert not found.equal
    (differs,) = [tensor for tensor in found.tensors if not tensor.equal]
    assert (differs.name, differs.by, differs.difference and differs.difference.differing) == ("model.w", "values", 1)


def test_what_is_damaged_is_told_and_not_copied(store: Store, tmp_path: Path) -> None:
    jobs.save(state(), store.uri)
    (name,) = store.shards()
    body = bytearray(store.read(name))
    body[len(body) // 3] ^= 1
    store.write(name, bytes(body))
    found = catalogue.verify(store.uri)
    assert found.faults
    assert not found.good
    with pytest.raises(Corrupt):
        catalogue.copy(store.uri, tmp_path / "copy", select=["model", "step"])
    assert not list(tmp_path.rglob(".metadata"))


def test_copies_and_models_hold_what_was_saved(place: Any, tmp_path: Path) -> None:
    copied = catalogue.copy(place("run"), tmp_path / "copy", select=["model"], spread="hex")
    assert (copied.items, copied.skipped_files) == (2, 0)
    target = blank({"model": state()["model"]})
    dcp.load(target, storage_reader=FileSystemReader(tmp_path / "copy"), no_dist=True)
    assert_same(target, {"model": state()["model"]})
    model = tmp_path / "model.safetensors"
    catalogue.export(place("run"), model, names={"model.w": "weight"}, strip_prefixes=["model."], dtype="float16")
    want = {"weight": state()["model"]["w"].half(), "b": state()["model"]["b"].half()}
    assert_same(load_file(model), want)
    save_file(want, tmp_path / "m.safetensors")
    made = catalogue.import_model(tmp_path / "m.safetensors", place("made"), names={"weight": "model.w"})
    assert (made.tensors, made.files) == (2, 1)
    assert {tensor.name for tensor in catalogue.inspect(place("made")).tensors} == {"b", "model.w"}


def test_a_service_copies_by_itself(store: Store) -> None:
    jobs.save({"w": values((3 << 20,))}, f"{store.uri}/run")
    for region in (None, "eu-west-1"):
        copied = catalogue.copy(f"{store.uri}/run", f"{store.uri}/copy to {region}", target_region=region)
        assert copied.bytes_by_service == copied.bytes > 3 << 20
        model = catalogue.export(f"{store.uri}/run", f"{store.uri}/model for {region}", target_region=region)
        assert model.bytes_by_service > 3 << 20


def test_errors_name_the_argument(place: Any, tmp_path: Path) -> None:
    run, other = place("run"), tmp_path / "other"
    with pytest.raises(NotFound):
        catalogue.inspect(place("absent"))
    for wrong, call in {
        'name "absent"': lambda: catalogue.inspect(run, ["absent"]),
        "spread='hex'": lambda: catalogue.copy(run, other, flatten=True, spread="hex"),
        "must be hex": lambda: catalogue.copy(run, other, spread="oct"),
        "dtype='int8'": lambda: catalogue.export(run, other, dtype="int8"),
        "format='onnx'": lambda: catalogue.export(run, other, format="onnx"),  # type: ignore[arg-type]
        "max_shard_size=0": lambda: catalogue.export(run, other, max_shard_size=0),
        "itself": lambda: catalogue.copy(run, run),
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            call()
    catalogue.copy(run, other)
    dcp.save({"x": values((3,))}, storage_writer=FileSystemWriter(tmp_path / "x"), no_dist=True)
    with pytest.raises(AlreadyExists):
        catalogue.copy(tmp_path / "x", other)
    assert json.dumps(as_told(catalogue.copy(run, other)))


def test_every_function_says_what_it_takes() -> None:
    for name in catalogue.__all__:
        public = getattr(catalogue, name)
        assert public.__doc__, name
        if signatures.isfunction(public):
            arguments = signatures.signature(public).parameters
            hints = typing.get_type_hints(public)
            assert hints.keys() == {*arguments, "return"}, name
