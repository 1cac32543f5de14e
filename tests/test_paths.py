"""Paths of any spelling: what the reference package saves at one we load there, what we save there it loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp

from s3dcp import AlreadyExists, ConfigError, S3FileSystem, S3StorageReader, S3StorageWriter
from support import jobs, strategies
from support.states import assert_same, blank, values
from support.store import REGION, Store
from support.strategies import Spec

# S3's rules of keys, which other servers bend: Garage drops a slash at the start of one.
pytestmark = pytest.mark.s3("embedded")

# What may stand after the bucket, and what every key there begins with.
FOLDERS = {
    "": "",
    "/": "",
    "//": "/",
    "///": "//",
    "/run": "run/",
    "/run/": "run/",
    "/run//": "run//",
    "//run": "/run/",
    "//run//": "/run//",
    "/a//b": "a//b/",
    "/a///b/": "a///b/",
    "/prefix[bug]/x=1+2": "prefix[bug]/x=1+2/",
    "/x/../y": "x/../y/",
    "/x/./y": "x/./y/",
    "/run ": "run /",
    "/ run/ x": " run/ x/",
    "/what?a=b&c=d#e": "what?a=b&c=d#e/",
    "/a%20b%2Fc": "a%20b%2Fc/",
    "/ünï/日本 🙂": "ünï/日本 🙂/",
    "/line\nbreak\t": "line\nbreak\t/",
    "/(1)*'!;:@,$~": "(1)*'!;:@,$~/",
}
EMPTY_SEGMENTS = ["//", "/run//", "//run", "/a//b"]
every_path = pytest.mark.parametrize("path", FOLDERS, ids=repr)
every_strategy = pytest.mark.parametrize("spec", strategies.ALL, ids=strategies.name_of)


def state(number: int = 0) -> dict[str, Any]:
    """A small state that differs by `number`."""
    return {"x": values((5, 4), number), "step": number}


def uri(store: Store, path: str) -> str:
    """`path` in the bucket."""
    return f"s3://{store.bucket}{path}"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``s3dcp`` with these arguments."""
    line = [sys.executable, "-m", "s3dcp", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


# -- the same place, whoever saves or loads


@every_path
def test_what_the_reference_saves_at_a_path_is_loaded_there(store: Store, path: str) -> None:
    jobs.save_with_reference(uri(store, path), ("Hex", {}))
    assert f"{FOLDERS[path]}.metadata" in store.all_keys()
    jobs.check_training_state(uri(store, path))


@every_path
def test_what_is_saved_at_a_path_the_reference_loads_there(store: Store, path: str) -> None:
    jobs.save_training_state(uri(store, path), ("Hex", {}))
    assert f"{FOLDERS[path]}.metadata" in store.all_keys()
    assert all(key.startswith(FOLDERS[path]) for key in store.all_keys())
    jobs.check_with_reference(uri(store, path))


@every_strategy
@pytest.mark.parametrize("path", EMPTY_SEGMENTS, ids=repr)
def test_every_strategy_has_its_keys_where_the_reference_has_them(store: Store, path: str, spec: Spec) -> None:
    place = uri(store, path)
    jobs.save_with_reference(place, spec)
    (theirs,) = {key.rsplit("/", 1)[0] for key in store.all_keys() if key.endswith(".distcp")}
    jobs.check_training_state(place)
    jobs.save_training_state(place, spec, seed=1, thread_count=2)
    (ours,) = {key.rsplit("/", 1)[0] for key in store.all_keys() if key.endswith(".distcp")}
    assert ours == theirs
    jobs.check_training_state(place, seed=1)
    jobs.check_with_reference(place, seed=1)


@pytest.mark.parametrize("path", EMPTY_SEGMENTS, ids=repr)
def test_ranks_save_and_load_epochs_in_both_directions(store: Store, ranks, path: str) -> None:
    place, spec = uri(store, path), ("Hex", {"epoch_num": 12})
    ranks.run(jobs.save_with_reference, place, spec)
    ranks.run(jobs.check_training_state, place)
    ranks.run(jobs.save_training_state, place, spec, seed=1)
    ranks.run(jobs.save_training_state, place, ("Hex", {"epoch_num": 13}), seed=2)
    ranks.run(jobs.check_with_reference, place, seed=2)
    for seed, epoch in ((1, 12), (2, 13)):
        ranks.run(jobs.check_training_state, S3FileSystem(REGION).concat_path(place, f"epoch_{epoch}"), seed=seed)


@every_path
def test_without_collectives_a_path_is_the_same_place(store: Store, path: str) -> None:
    place = uri(store, path)
    jobs.save(state(1), place, use_collectives=False)
    assert f"{FOLDERS[path]}__0.metadata" in store.all_keys()
    jobs.check(place, state(1))
    jobs.save(state(2), place, use_collectives=False)
    assert len([key for key in store.all_keys() if key.endswith(".distcp")]) == 1
    jobs.check(place, state(2))


@every_path
def test_a_checkpoint_id_is_the_same_place(store: Store, path: str) -> None:
    writer, reader = S3StorageWriter(REGION, store.uri), S3StorageReader(REGION, store.uri)
    dcp.save(state(1), checkpoint_id=uri(store, path), storage_writer=writer)
    assert f"{FOLDERS[path]}.metadata" in store.all_keys()
    loaded = blank(state())
    dcp.load(loaded, checkpoint_id=uri(store, path), storage_reader=reader)
    assert_same(loaded, state(1))


@every_path
def test_overwriting_leaves_one_checkpoint_and_no_rest(store: Store, failure, path: str) -> None:
    place = uri(store, path)
    for spec in (None, ("Hex", {"epoch_num": 1})):
        jobs.save(state(1), place, spec)
        before = set(store.all_keys())
        jobs.save(state(2), place, spec)
        after = set(store.all_keys())
        assert len(after) == len(before)
        assert not {key for key in before & after if key.endswith(".distcp")}
        jobs.check(place, state(2))
        assert isinstance(failure(jobs.save, state(3), place, spec, overwrite=False), AlreadyExists)
        assert set(store.all_keys()) == after
        for key in after:
            store.client.delete_object(Bucket=store.bucket, Key=key)


def test_paths_that_differ_by_a_slash_hold_checkpoints_of_their_own(store: Store) -> None:
    places = [uri(store, path) for path in ("", "//", "/run", "//run", "/run//", "/run///", "//run//")]
    for again in (0, 10):
        for number, place in enumerate(places):
            jobs.save(state(again + number), place, ("Hex", {"epoch_num": 1}))
        for number, place in enumerate(places):
            jobs.check(place, state(again + number))
    assert len([key for key in store.all_keys() if key.endswith(".distcp")]) == len(places)


def test_one_slash_at_the_end_makes_no_difference(store: Store, failure) -> None:
    jobs.save(state(1), uri(store, "/run/"))
    jobs.check(uri(store, "/run"), state(1))
    assert isinstance(failure(jobs.save, state(2), uri(store, "/run"), overwrite=False), AlreadyExists)


# -- files and the command


@every_path
def test_a_file_system_finds_what_is_at_a_path(store: Store, path: str) -> None:
    fs, place, folder = S3FileSystem(REGION), uri(store, path), FOLDERS[path]
    one, other = fs.concat_path(place, "one"), fs.concat_path(place, "other")
    with fs.create_stream(one, "wb") as stream:
        stream.write(b"body")
    assert store.all_keys() == [f"{folder}one"]
    assert fs.exists(one)
    assert fs.ls(place) == [f"s3://{store.bucket}/{folder}one"]
    fs.rename(one, other)
    assert store.all_keys() == [f"{folder}other"]
    with fs.create_stream(other, "rb") as stream:
        assert stream.read() == b"body"
    fs.rm_file(other)
    assert store.all_keys() == []
    assert fs.validate_checkpoint_id(place)
    assert fs.init_path(place) == place


@every_path
def test_paths_are_joined_as_the_reference_joins_them(path: str) -> None:
    from s3torchconnector.dcp import S3FileSystem as Reference

    ours, theirs = S3FileSystem(REGION), Reference(REGION, s3client_config=jobs.peer_config())
    for suffix in ("x", ".metadata", "p1/epoch_5/__0_", "a//b"):
        assert ours.concat_path(f"s3://b{path}", suffix) == theirs.concat_path(f"s3://b{path}", suffix)


@every_path
def test_the_command_shows_and_prunes_what_is_at_a_path(store: Store, path: str) -> None:
    place, folder = uri(store, path), FOLDERS[path]
    jobs.save(state(1), place, ("Hex", {"epoch_num": 1}))
    kept = store.all_keys()
    left = f"{folder}__0_0-0123456789abcdef.distcp"
    store.client.put_object(Bucket=store.bucket, Key=left, Body=b"left")
    tree = command("tree", place)
    assert tree.returncode == 0, tree.stderr
    assert tree.stdout.startswith(f"s3://{store.bucket}/{folder}  4 objects"), tree.stdout
    pruned = command("prune", place, "--older-than", "0s", "--delete")
    assert pruned.returncode == 0, pruned.stderr
    assert "1 leftover" in pruned.stdout
    assert store.all_keys() == kept
    jobs.check(place, state(1))


@pytest.mark.parametrize("spec", [None, ("Hex", {"epoch_num": 1})], ids=["whole", "epoch"])
@pytest.mark.parametrize("path", EMPTY_SEGMENTS, ids=repr)
def test_pruning_a_folder_within_a_checkpoint_spares_what_its_index_names(store: Store, path: str, spec) -> None:
    place = uri(store, path)
    jobs.save(state(1), place, spec or ("Hex", {}))
    kept = store.all_keys()
    for key in kept:
        if key.endswith(".distcp"):
            pruned = command("prune", f"s3://{store.bucket}/{key.rsplit('/', 1)[0]}", "--older-than", "0s", "--delete")
            assert pruned.returncode == 0, pruned.stderr
    assert store.all_keys() == kept
    jobs.check(place, state(1))


# -- paths that are no strings


class Pathlike:
    """What `os.fspath` knows."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __fspath__(self) -> str:
        return self.text


def test_a_pathlike_of_a_uri_is_a_path(store: Store) -> None:
    place = Pathlike(store.uri)
    writer = S3StorageWriter(REGION, place)
    assert writer.path is writer.checkpoint_id is place
    metadata = dcp.save(state(1), storage_writer=writer)
    assert metadata.storage_meta.checkpoint_id == store.uri
    loaded = blank(state())
    dcp.load(loaded, storage_reader=S3StorageReader(REGION, place))
    assert_same(loaded, state(1))
    dcp.save(state(2), checkpoint_id=Pathlike(f"{store.uri}/2"), storage_writer=writer)
    jobs.check(f"{store.uri}/2", state(2))
    fs = S3FileSystem(REGION)
    assert fs.init_path(place) is place
    assert fs.concat_path(place, "x") == f"{store.uri}/x"
    assert fs.validate_checkpoint_id(place)


@pytest.mark.parametrize(
    "path", [Path("s3://bucket/x"), PurePosixPath("s3://b"), PureWindowsPath("s3://b/x")], ids=repr
)
def test_a_pathlib_path_which_has_lost_a_slash_is_refused_by_name(path) -> None:
    fs = S3FileSystem(REGION)
    for refused in (
        lambda: S3StorageWriter(REGION, path),
        lambda: S3StorageReader(REGION, path),
        lambda: S3StorageWriter(REGION, "s3://bucket/x").reset(path),
        lambda: S3StorageReader(REGION, "s3://bucket/x").reset(path),
        lambda: fs.exists(path),
        lambda: fs.rm_file(path),
        lambda: fs.ls(path),
        lambda: fs.create_stream(path, "rb").__enter__(),
        lambda: fs.rename(path, "s3://bucket/x"),
    ):
        with pytest.raises(ConfigError, match=r"path=.*s3:.*pathlib") as caught:
            refused()
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ConfigError, match=r"^new_path="):
        fs.rename("s3://bucket/x", path)
    assert not fs.validate_checkpoint_id(path)
