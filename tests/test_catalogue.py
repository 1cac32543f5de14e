"""The checkpoints of a path: ``s3dcp ls``, ``s3dcp keep`` and `s3dcp.catalogue`, on checkpoints of every writer."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter

from s3dcp import AlreadyExists, ConfigError, Corrupt, HexPrefixStrategy, S3StorageWriter
from s3dcp.catalogue import keep, list_checkpoints
from support import jobs
from support.chance import how_many, new_seed
from support.command import killed, run, told
from support.states import training_state, values
from support.store import REGION, Store

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(*arguments, code=None)


def small(seed: int = 0) -> dict[str, Any]:
    return {"weight": values((64, 8), seed), "bias": values((8,), seed + 1)}


def save_epochs(store: Store, epochs: range, notes: Any = lambda epoch: None) -> None:
    for epoch in epochs:
        strategy = HexPrefixStrategy(epoch_num=epoch)
        jobs.save(small(epoch), store.uri, prefix_strategy=strategy, notes=notes(epoch), overwrite=True)


def save_steps(store: Store, steps: range, notes: Any = lambda step: None) -> None:
    for step in steps:
        jobs.save(small(step), f"{store.uri}/step-{step}", step_folders="step-{}", notes=notes(step))


def steps(checkpoints: Any) -> list[int | None]:
    return [checkpoint.step for checkpoint in checkpoints]


def shard_of(store: Store, epoch: int) -> str:
    """The key of a shard file of an epoch."""
    return next(key for key in store.all_keys() if f"/epoch_{epoch}/" in key and key.endswith(".distcp"))


def save_locally(folder: Path, seed: int = 0) -> None:
    dcp.save(small(seed), storage_writer=FileSystemWriter(folder), no_dist=True)


# -- ls


def test_ls_tells_of_every_checkpoint_below_a_path(store: Store) -> None:
    save_epochs(store, range(3))
    jobs.save(training_state(0), f"{store.uri}/export")
    found = told("ls", store.uri)["checkpoints"]
    assert [(each["uri"].removeprefix(store.uri), each["step"]) for each in found] == [
        ("/export", None),
        ("/epoch_0", 0),
        ("/epoch_1", 1),
        ("/epoch_2", 2),
    ]
    sizes = {key: size for key, (size, _) in store.listing(store.path).items() if key.endswith(".distcp")}
    of_epoch = [size for key, size in sizes.items() if "/epoch_1/" in key]
    assert found[2]["bytes"] == sum(of_epoch)
    assert found[2]["files"] == len(of_epoch)
    assert (found[2]["items"], found[2]["ranks"]) == (2, 1)
    assert sum(each["bytes"] for each in found) == sum(sizes.values())
    assert all(each["complete"] for each in found)
    assert [each["newest"] for each in found].count(True) == 1


def test_ls_tells_what_is_missing_and_what_no_index_names(store: Store) -> None:
    save_epochs(store, range(2))
    lost = shard_of(store, 0)
    store.client.copy_object(
        Bucket=store.bucket,
        CopySource={"Bucket": store.bucket, "Key": lost},
        Key=f"{store.path}/0000/__0_0-0123456789abcdef.distcp",
    )
    store.client.delete_object(Bucket=store.bucket, Key=lost)
    found = told("ls", store.uri)
    assert found["unnamed_files"] == 1
    assert [(each["complete"], each["newest"]) for each in found["checkpoints"]] == [(False, False), (True, True)]
    assert found["checkpoints"][0]["missing"] == [f"s3://{store.bucket}/{lost}"]
    text = command("ls", store.uri)
    assert re.search(r"^ +0 .* incomplete +epoch_0$", text.stdout, re.MULTILINE)
    assert f"1 file missing, such as s3://{store.bucket}/{lost}" in text.stdout
    assert "1 shard file that no index names" in text.stdout
    assert "\x1b" not in text.stdout


def test_an_index_that_cannot_be_read_is_a_fault_of_its_checkpoint(store: Store) -> None:
    save_steps(store, range(1, 3))
    store.client.put_object(Bucket=store.bucket, Key=f"{store.path}/step-1/.metadata", Body=b"no index")
    found = told("ls", store.uri)["checkpoints"]
    assert found[0]["fault"]
    assert not found[0]["complete"]
    assert found[1]["complete"]
    with pytest.raises(Corrupt, match="nothing is deleted"):
        keep(store.uri, last=1, delete=True)
    assert len(list_checkpoints(store.uri)) == 2


def test_ls_reads_what_ranks_saved_for_themselves(store: Store) -> None:
    jobs.save(small(), store.uri, use_collectives=False)
    (found,) = list_checkpoints(store.uri)
    assert (found.ranks, found.complete) == (1, True)


def test_ls_reads_what_others_saved(store: Store, tmp_path: Path) -> None:
    from s3torchconnector.dcp import S3StorageWriter as Peer

    peer = Peer(REGION, f"{store.uri}/peer/step-7", s3client_config=jobs.peer_config())
    dcp.save(small(), storage_writer=peer, no_dist=True)
    (found,) = list_checkpoints(store.uri)
    assert (found.uri, found.step, found.complete) == (f"{store.uri}/peer/step-7", 7, True)

    save_locally(tmp_path / "run/step-100")
    save_locally(tmp_path / "run/step-200")
    (shard,) = (tmp_path / "run/step-200").glob("*.distcp")
    shard.unlink()
    local = list_checkpoints(tmp_path / "run")
    assert [(each.step, each.complete, each.newest) for each in local] == [(100, True, True), (200, False, False)]
    assert local[1].missing == [str(shard)]


def test_ls_says_what_is_nearby_where_nothing_is(store: Store, tmp_path: Path) -> None:
    jobs.save(small(), f"{store.uri}/run")
    done = command("ls", f"{store.uri}/run/0000")
    assert done.returncode == 1
    assert f"there is a checkpoint above it, at {store.uri}/run" in done.stderr
    missing = command("ls", str(tmp_path / "none"))
    assert missing.returncode == 2
    assert "a bucket is s3://bucket" in missing.stderr


# -- notes


def test_notes_stand_in_the_index_and_load_needs_none(store: Store) -> None:
    notes = {"step": 7, "metrics": {"loss": 0.25}, "data": {"seen": [1, 2], "text": "ä\n"}}
    jobs.save(small(), store.uri, notes=notes)
    (checkpoint,) = list_checkpoints(store.uri)
    assert checkpoint.notes == notes
    assert checkpoint.step == 7
    jobs.check(store.uri, small())
    writer = S3StorageWriter(REGION, store.uri, notes=notes)
    assert writer.notes == notes
    writer.notes = {"step": 8}
    dcp.save(small(), storage_writer=writer)
    assert list_checkpoints(store.uri)[0].step == 8


@pytest.mark.parametrize(
    "notes", [{"loss": float("nan")}, {"tensor": torch.ones(1)}, [1], {"long": "x" * (64 << 10)}], ids=str
)
def test_notes_that_json_cannot_hold_are_refused(notes: Any) -> None:
    with pytest.raises(ConfigError, match=r"^notes"):
        S3StorageWriter(REGION, "s3://bucket/run", notes=notes)


# -- keep


@pytest.mark.parametrize("save", [save_epochs, save_steps], ids=["epochs", "step folders"])
def test_keep_deletes_what_no_rule_keeps_and_nothing_else(store: Store, save: Any) -> None:
    save(store, range(1, 9), lambda step: {"metrics": {"loss": abs(step - 3.2)}})
    rules = ("--last", "2", "--every", "5", "--best", "loss:min:2")
    before = store.all_keys()
    choice = told("keep", store.uri, *rules)
    why = {kept["checkpoint"]["step"]: kept["why"] for kept in choice["keep"]}
    assert why == {
        3: ["best loss"],
        4: ["best loss"],
        5: ["every 5"],
        7: ["last 2"],
        8: ["newest", "last 2"],
    }
    assert choice["deleted"] is None
    assert store.all_keys() == before
    done = command("keep", store.uri, *rules, "--delete")
    assert done.returncode == 0, done.stderr
    assert "3 checkpoints deleted, with 3 files" in done.stdout
    left = list_checkpoints(store.uri)
    assert steps(left) == [3, 4, 5, 7, 8]
    assert all(checkpoint.complete for checkpoint in left)
    for checkpoint in left:
        jobs.check(checkpoint.uri, small(checkpoint.step))
    assert not [key for key in store.all_keys() if re.search(r"(epoch_|step-)[126](/|$)", key)]
    assert steps(keep(store.uri, last=2, every=5, best={"loss": ("min", 2)}).delete) == []


def test_keep_spares_the_newest_names_and_the_young(store: Store) -> None:
    save_steps(store, range(1, 5))
    assert steps(keep(store.uri, last=1).delete) == [1, 2, 3]
    assert steps(keep(store.uri, names=["step-2"]).delete) == [1, 3]
    assert keep(store.uri, younger=timedelta(hours=1)).delete == []
    # A step that was written again is the newest, whatever its number.
    jobs.save(small(9), f"{store.uri}/step-2", step_folders="step-{}", overwrite=True)
    kept = {each.checkpoint.step: each.why for each in keep(store.uri, last=1).keep}
    assert kept[4] == ["last 1"] or kept[4] == ["newest", "last 1"]


def test_a_checkpoint_that_is_not_complete_counts_for_no_rule(store: Store) -> None:
    save_steps(store, range(1, 4))
    lost = shard_of(store, 3)
    store.client.delete_object(Bucket=store.bucket, Key=lost)
    result = keep(store.uri, last=1, delete=True)
    assert steps(each.checkpoint for each in result.keep) == [2]
    assert sorted(result.deleted) == [f"{store.uri}/step-1", f"{store.uri}/step-3"]
    assert steps(list_checkpoints(store.uri)) == [2]


def test_keep_takes_what_is_beside_an_index_and_leaves_other_runs_alone(store: Store) -> None:
    for step in (1, 2):
        jobs.save(small(step), f"{store.uri}/checkpoint-{step}")
        store.client.put_object(Bucket=store.bucket, Key=f"{store.path}/checkpoint-{step}/state.json", Body=b"{}")
    jobs.save(small(), f"{store.uri}/other/step-1")
    store.client.put_object(Bucket=store.bucket, Key=f"{store.path}/log.txt", Body=b"log")
    result = keep(store.uri, last=1, delete=True)
    assert result.deleted == [f"{store.uri}/checkpoint-1"]
    keys = store.all_keys()
    assert not [key for key in keys if "checkpoint-1/" in key]
    assert f"{store.path}/checkpoint-2/state.json" in keys
    assert f"{store.path}/log.txt" in keys
    jobs.check(f"{store.uri}/other/step-1", small())


def test_keep_spares_files_that_another_checkpoint_names(store: Store) -> None:
    save_epochs(store, range(2))
    # An index elsewhere on the path that names the files of epoch 0 as well.
    body = store.client.get_object(Bucket=store.bucket, Key=f"{store.path}/epoch_0/.metadata")["Body"].read()
    store.client.put_object(Bucket=store.bucket, Key=f"{store.path}/copy_7/.metadata", Body=body)
    shared = {each.uri: each.shared_bytes for each in list_checkpoints(store.uri)}
    assert shared[f"{store.uri}/epoch_0"] == shared[f"{store.uri}/copy_7"] > 0
    result = keep(store.uri, names=["copy_7"], delete=True)
    assert result.deleted == [f"{store.uri}/epoch_0"]
    jobs.check(f"{store.uri}/copy_7", small(0))


def test_keep_works_on_local_folders(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        save_locally(tmp_path / f"run/step-{step}", step)
    done = command("keep", str(tmp_path / "run"), "--last", "1", "--delete")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-300"]
    state = {name: torch.zeros_like(tensor) for name, tensor in small().items()}
    dcp.load(state, checkpoint_id=tmp_path / "run/step-300", no_dist=True)
    assert torch.equal(state["weight"], small(300)["weight"])


@pytest.mark.parametrize("strategy", [None, "hex"])
def test_keep_takes_the_peers_checkpoints_whole_and_the_peer_reads_what_stays(
    store: Store, strategy: str | None
) -> None:
    from s3torchconnector.dcp import HexPrefixStrategy as PeersHex
    from s3torchconnector.dcp import S3StorageReader as PeersReader
    from s3torchconnector.dcp import S3StorageWriter as PeersWriter

    config = {"s3client_config": jobs.peer_config()}
    for step in (1, 2, 3):
        path = f"{store.uri}/step-{step}"
        writer = PeersWriter(REGION, path, prefix_strategy=PeersHex() if strategy else None, **config)
        dcp.save(small(step), storage_writer=writer, no_dist=True)
    assert [each.complete for each in list_checkpoints(store.uri)] == [True] * 3
    done = command("keep", store.uri, "--last", "1", "--delete")
    assert done.returncode == 0, done.stderr
    assert {key.split("/")[-2 if strategy is None else -3] for key in store.all_keys() if "distcp" in key} == {"step-3"}
    assert not [key for key in store.all_keys() if "step-1/" in key or "step-2/" in key]
    state = {name: torch.zeros_like(tensor) for name, tensor in small().items()}
    dcp.load(state, storage_reader=PeersReader(REGION, f"{store.uri}/step-3", **config), no_dist=True)
    assert torch.equal(state["weight"], small(3)["weight"])


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ({}, "no rule"),
        ({"last": 0}, "last"),
        ({"every": 0}, "every"),
        ({"best": {"loss": "min"}}, "loss"),
        ({"best": {"loss": "least"}}, "best"),
        ({"names": ["step-9"]}, "step-9"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(store: Store, rules: dict[str, Any], names: str) -> None:
    save_steps(store, range(1, 3))
    with pytest.raises(ConfigError, match=names):
        keep(store.uri, delete=True, **rules)
    assert len(list_checkpoints(store.uri)) == 2


def test_a_save_with_the_same_step_goes_on_after_a_retention(store: Store, failure: Any) -> None:
    save_steps(store, range(1, 4))
    keep(store.uri, last=1, delete=True)
    save_steps(store, range(1, 2))
    assert steps(list_checkpoints(store.uri)) == [1, 3]
    assert isinstance(
        failure(jobs.save, small(), f"{store.uri}/step-3", step_folders="step-{}", overwrite=False), AlreadyExists
    )


# -- killed


@pytest.mark.parametrize("place", ["epochs", "steps", "torch", "folder"])
def test_a_retention_that_is_killed_leaves_no_checkpoint_without_its_files(
    place: str, store: Store, tmp_path: Path
) -> None:
    """What it deleted is gone or found by `prune`; what it had yet to delete, the next one does."""
    kills, chance, early = how_many("KILLS", 4), random.Random(new_seed()), 0
    uri = str(tmp_path / "run") if place == "folder" else store.uri
    saved = tmp_path / "saved"
    for number in range(8):
        save_locally(saved / f"step-{number}", number)
        (saved / f"step-{number}/loader.json").write_text("{}")
    for _ in range(kills):
        if place == "epochs":
            save_epochs(store, range(8))
        elif place == "steps":
            save_steps(store, range(8))
        elif place == "torch":
            store.upload(saved)
        else:
            shutil.copytree(saved, uri, dirs_exist_ok=True)
        early += killed("keep", uri, "--last", "2", "--delete", longest=0.22, chance=chance)
        found = list_checkpoints(uri)
        assert [checkpoint for checkpoint in found if not checkpoint.complete] == []
        assert steps(found)[-2:] == [6, 7]
        for checkpoint in found:
            run("verify", checkpoint.uri)
        keep(uri, last=2, delete=True)
        run("prune", uri, "--older-than", "0s", "--delete")
        kept = list_checkpoints(uri)
        assert steps(kept) == [6, 7]
        if place in ("torch", "folder"):
            there = list(Path(uri).rglob("*")) if place == "folder" else store.names()
            files = [path for name in there if not (path := Path(uri, name)).is_dir()]
            assert sorted(path.name for path in files) == sorted([".metadata", "__0_0.distcp", "loader.json"] * 2)
        else:
            named = sum(checkpoint.files for checkpoint in kept)
            assert len([key for key in store.all_keys() if key.endswith(".distcp")]) == named
    print(f"{early} of {kills} were killed before their end")
