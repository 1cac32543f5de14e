"""``s3dcp import``: models of safetensors and torch.save become checkpoints that torch.distributed.checkpoint loads."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader

from support import command, jobs
from support.chance import how_many, new_seed
from support.states import DTYPES, assert_same, blank, training_state, values
from support.store import Store

MIB = 1 << 20
TORCH_ALONE = {"float8_e4m3fnuz", "float8_e5m2fnuz", "complex32", "complex128"}


def check(where: str | Path, state: dict[str, torch.Tensor]) -> None:
    """A checkpoint holds these tensors, and nothing else."""
    loaded = blank(state)
    if str(where).startswith("s3://"):
        jobs.load(loaded, str(where))
    else:
        reader = FileSystemReader(where)
        dcp.load(loaded, storage_reader=reader)
        assert set(reader.read_metadata().state_dict_metadata) == set(state)
    assert_same(loaded, state)


@pytest.fixture(params=["bucket", "folder"])
def target(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> str:
    return store.uri if request.param == "bucket" else str(tmp_path / "checkpoint")


def test_a_safetensors_file_is_a_checkpoint(target: str, tmp_path: Path) -> None:
    state = {
        f"{dtype}{shape}": values(shape, 3, dtype)
        for dtype in DTYPES
        if str(dtype).removeprefix("torch.") not in TORCH_ALONE
        for shape in ((7, 5), (), (0, 2))
    } | {"large": values((5 * MIB,))}
    save_file(state, tmp_path / "model.safetensors")
    told = command.told("import", tmp_path / "model.safetensors", target)
    assert (told["tensors"], told["files"]) == (len(state), 1)
    check(target, state)


def test_a_folder_is_read_by_its_index(target: str, tmp_path: Path) -> None:
    parts = [{f"t{part}.{number}": values((100, 3), 10 * part + number) for number in range(3)} for part in range(3)]
    folder = tmp_path / "model"
    folder.mkdir()
    names = [f"model-0000{part + 1}-of-00003.safetensors" for part in range(3)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    save_file({"stray": torch.zeros(3)}, folder / "stray.safetensors")
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    state = {key: tensor for part in parts for key, tensor in part.items()}
    assert command.told("import", folder, target)["files"] == 3
    check(target, state)
    (folder / "model.safetensors.index.json").unlink()
    command.told("import", folder, target, "--overwrite", "--select", "stray", "t0")
    check(target, parts[0] | {"stray": torch.zeros(3)})


@pytest.mark.filterwarnings("ignore:ComplexHalf support:UserWarning")
def test_a_file_of_torch_is_a_checkpoint(target: str, tmp_path: Path) -> None:
    shared = values((40, 6), 1)
    model = collections.OrderedDict(
        weight=torch.nn.Parameter(values((300, 7))),
        rows=shared[3:9],
        turned=shared.t(),
        column=shared[:, 2],
        nothing=torch.empty(0, 4),
        scalar=values((), 4),
        **{str(dtype): values((5, 3), 2, dtype) for dtype in DTYPES},
    )
    torch.save(
        {"model": model, "states": [{"m": values((9,))}], "step": 7, "args": {"lr": 0.1, "name": "x"}},
        tmp_path / "m.pt",
    )
    told = command.told("import", tmp_path / "m.pt", target)
    assert told["left_out"] == ["step", "args.lr", "args.name"]
    want = {f"model.{name}": tensor.detach().contiguous() for name, tensor in model.items()}
    check(target, want | {"states.0.m": values((9,))})


def test_a_module_comes_back_from_export_and_from_import(store: Store, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(9, 5), torch.nn.BatchNorm1d(5))
    torch.save(module.state_dict(), tmp_path / "m.pt")
    command.told("import", tmp_path / "m.pt", store.uri, "--map", "0=first")
    command.told("export", store.uri, tmp_path / "back.pt", "--format", "torch", "--map", "first=0")
    module.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True), strict=True)
    assert_same(dict(torch.load(tmp_path / "back.pt", weights_only=True)), dict(module.state_dict()))


@pytest.mark.distributed
def test_ranks_load_what_was_imported(store: Store, groups: Any, tmp_path: Path) -> None:
    state = training_state(0)
    torch.save({name: value for name, value in state.items() if isinstance(value, dict | torch.Tensor)}, tmp_path / "m")
    command.told("import", tmp_path / "m", store.uri)
    groups(4).run(jobs.check_training_state, store.uri, objects=False)


def test_what_is_imported_has_checksums_and_is_ours(store: Store, tmp_path: Path) -> None:
    save_file({"a": values((3 * MIB,))}, tmp_path / "m.safetensors")
    command.told("import", tmp_path / "m.safetensors", store.uri)
    (name,) = store.shards()
    body = bytearray(store.read(name))
    body[len(body) // 2] ^= 1
    store.write(name, bytes(body))
    with pytest.raises(BaseException, match="checksum"):
        check(store.uri, {"a": values((3 * MIB,))})


# -- what is there


def test_a_checkpoint_is_replaced_only_when_told_to(target: str, tmp_path: Path) -> None:
    for number in range(2):
        save_file({"a": values((30,), number)}, tmp_path / f"{number}.safetensors")
    command.told("import", tmp_path / "0.safetensors", target)
    assert "Checkpoint already exists" in command.refused("import", tmp_path / "1.safetensors", target)
    command.told("import", tmp_path / "1.safetensors", target, "--overwrite")
    check(target, {"a": values((30,), 1)})
    assert command.told("ls", target)["unnamed_files"] == 0


# -- what is refused


class Attack:
    """Unpickled carelessly, it leaves a file."""

    def __reduce__(self) -> Any:
        return os.system, ("touch RAN",)


@pytest.mark.parametrize(
    "held",
    [Attack(), {"a": Attack()}, {"a": torch.zeros(3), "b": [Attack()]}, {"a": torch.nn.Linear(2, 2)}, {(1, 2): 3}],
    ids=["alone", "in a dict", "in a list", "a module", "an odd key"],
)
def test_what_is_not_plain_is_refused(held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(held, tmp_path / "m.pt")
    done = command.run("import", tmp_path / "m.pt", tmp_path / "checkpoint", code=None)
    assert done.returncode in (1, 2)
    assert "more than tensors and plain values" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_pickle_that_shares_itself_ends_soon(tmp_path: Path) -> None:
    value: Any = {"x": 1}
    for _ in range(50):
        value = {"a": value, "b": value}
    endless: dict[str, Any] = {}
    endless["again"] = endless
    for held in (value, endless):
        torch.save(held, tmp_path / "m.pt")
        assert "torch file" in command.refused("import", tmp_path / "m.pt", tmp_path / "checkpoint")


def test_files_that_are_cut_or_changed_are_refused_or_read_as_they_are(tmp_path: Path) -> None:
    state = {"a": values((40, 3)), "b": values((7,), 1, torch.int64)}
    torch.save(state, tmp_path / "m.pt")
    save_file(state, tmp_path / "m.safetensors")
    chance = random.Random(new_seed())
    for name in ("m.pt", "m.safetensors"):
        sound = (tmp_path / name).read_bytes()
        for number in range(how_many("FLIPS", 30)):
            body = bytearray(sound)
            if number % 3 == 0:
                del body[chance.randrange(len(body)) :]
            else:
                body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            (tmp_path / "damaged").write_bytes(body)
            done = command.run("import", tmp_path / "damaged", tmp_path / "checkpoint", "--overwrite", code=None)
            assert done.returncode in (0, 1, 2), done.stderr


def test_an_archive_whose_records_reach_outside_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": values((4000,))}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        names = {name: archive.read(name) for name in archive.namelist()}
    small = {name: body[:100] if name.endswith("data/0") else body for name, body in names.items()}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name, body in small.items():
            archive.writestr(name, body)
    assert "too few bytes" in command.refused("import", tmp_path / "m.pt", tmp_path / "checkpoint")
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in names.items():
            archive.writestr(name, body)
    assert "compressed" in command.refused("import", tmp_path / "m.pt", tmp_path / "checkpoint", code=2)


def test_errors_say_what_is_wrong(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no model at" in command.refused("import", tmp_path / "empty", store.uri)
    (tmp_path / "text").write_text("no model")
    assert "neither a safetensors file nor" in command.refused("import", tmp_path / "text", store.uri)
    (tmp_path / "old").write_bytes(pickle.dumps({"a": 1}))
    assert "neither a safetensors file nor" in command.refused("import", tmp_path / "old", store.uri)
    torch.save({"step": 1}, tmp_path / "m.pt")
    assert "no tensor to import" in command.refused("import", tmp_path / "m.pt", store.uri, code=2)
    (tmp_path / "empty/model.safetensors.index.json").write_text('{"weight_map": {"a": "../m.pt"}}')
    assert "outside its folder" in command.refused("import", tmp_path / "empty", store.uri)
    assert store.all_keys() == []


# -- stopped


def test_an_import_that_is_killed_leaves_no_checkpoint(store: Store, tmp_path: Path) -> None:
    state = {f"t{number}": values((2 * MIB,), number) for number in range(6)}
    save_file(state, tmp_path / "m.safetensors")
    chance = random.Random(new_seed())
    for _ in range(how_many("KILLS", 6)):
        command.killed("import", tmp_path / "m.safetensors", store.uri, longest=0.4, chance=chance)
        if ".metadata" in store.names():
            check(store.uri, state)
        command.told("import", tmp_path / "m.safetensors", store.uri, "--overwrite")
        command.run("prune", store.uri, "--older-than", "0s", "--delete")
        check(store.uri, state)
        assert len(store.names()) == 2
        assert store.uploads() == []
        store.delete(".metadata")
        command.run("prune", store.uri, "--older-than", "0s", "--delete")


def test_a_person_is_told_what_was_imported(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000), "b": 7}, tmp_path / "m.pt")
    lines = command.run("import", tmp_path / "m.pt", tmp_path / "checkpoint").stdout.splitlines()
    assert lines[0] == f"imported 1 tensor of 3.9 KiB in 1 file to {tmp_path / 'checkpoint'}"
    assert lines[1].endswith("left out, no tensors: 1 value (b)")
