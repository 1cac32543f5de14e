"""``s3dcp cp``: what is copied loads with torch's own readers, wherever it came from, whatever its files are called."""

from __future__ import annotations

import dataclasses
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter

from s3dcp import S3ClientConfig, testing
from support import command, hostile, jobs, parts, saved
from support.chance import how_many, new_seed
from support.states import assert_same, blank, training_state, values
from support.store import Store, boto_client

MIB = 1 << 20
NAMES = [(), ("--flatten",), ("--spread", "hex")]


@pytest.mark.parametrize("names", NAMES, ids=["keep", "flatten", "spread"])
@pytest.mark.parametrize("writer", saved.WRITERS_OF_JOBS)
def test_copies_load_from_a_bucket_and_from_a_folder(
    writer: str, names: tuple[str, ...], store: Store, ranks: Any, tmp_path: Path
) -> None:
    source = saved.save_by_ranks(writer, store, ranks, tmp_path / "source")
    in_bucket, in_folder = f"s3://{store.bucket}/copy", tmp_path / "copy"
    first = command.told("cp", source, in_bucket, *names)
    second = command.told("cp", in_bucket, in_folder)
    assert (first["files"], first["bytes"], first["items"]) == (second["files"], second["bytes"], second["items"])
    ranks.run(jobs.check_training_state, in_bucket)
    ranks.run(jobs.check_with_torch, in_folder)
    files = [path.relative_to(in_folder) for path in in_folder.rglob("*.distcp")]
    assert len(files) == first["files"]
    assert {len(file.parts) for file in files} == {1 if "--flatten" in names else len(files[0].parts)}
    if "--spread" in names:
        assert {file.parts[0] for file in files} == {f"{rank:x}000000000" for rank in range(ranks.count)}
    if not names and writer in ("ours", "theirs"):
        copy = store.client.get_object(Bucket=store.bucket, Key="copy/.metadata")["Body"].read()
        assert copy == store.read(".metadata"), "no name changed"


def test_a_service_copies_by_itself(store: Store, s3dcp_server: testing.Server) -> None:
    state = {f"t{number}": values((4 * MIB,), number) for number in range(4)}
    jobs.save(state, store.uri, thread_count=2)
    before = s3dcp_server.stats()
    told = command.told("cp", store.uri, f"s3://{store.bucket}/copy")
    after = s3dcp_server.stats()
    moved = after.bytes_sent - before.bytes_sent + after.bytes_received - before.bytes_received
    assert told["bytes_by_service"] == told["bytes"] > 64 * MIB
    assert moved < told["bytes"] / 100, f"{moved} bytes through the client"
    jobs.check(f"s3://{store.bucket}/copy", state)


REFUSALS = ["AccessDenied", "NoSuchBucket", "NoSuchKey", "NotImplemented", "InvalidRequest"]
COPIES = "on=CopyObject,UploadPartCopy"


def test_from_region_to_region_a_service_copies_by_itself(store: Store, s3dcp_server: testing.Server) -> None:
    state = {"large": values((9 * MIB,)), "small": values((3,), 1)}
    jobs.save(state, store.uri)
    before = s3dcp_server.stats()
    told = command.told("cp", store.uri, f"s3://{store.bucket}/copy", "--to-region", "eu-west-1")
    taken = command.told("cp", store.uri, f"s3://{store.bucket}/some", "--select", "large", "--to-region", "eu-west-1")
    after = s3dcp_server.stats()
    assert told["bytes_by_service"] == told["bytes"] > 36 * MIB
    assert taken["bytes_by_service"] > 36 * MIB
    assert after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received < MIB
    jobs.check(f"s3://{store.bucket}/copy", state)
    jobs.check(f"s3://{store.bucket}/some", {"large": state["large"]})


@pytest.mark.parametrize("code", REFUSALS)
def test_what_a_service_does_not_copy_from_region_to_region_is_streamed(
    store: Store, s3dcp_server: testing.Server, code: str
) -> None:
    state = {"large": values((9 * MIB,)), "small": values((3,), 1)}
    jobs.save(state, store.uri, thread_count=2)
    s3dcp_server.inject(f"error:{code} {COPIES}")
    try:
        for number, select in enumerate(([], ["--select", "large"])):
            copy = f"s3://{store.bucket}/copy{number}"
            told = command.told("cp", store.uri, copy, "--to-region", "eu-west-1", *select)
            assert told["bytes_by_service"] == 0
            assert told["bytes_through_client"] > told["bytes"]
            jobs.check(copy, {"large": state["large"]} if select else state)
    finally:
        s3dcp_server.clear_faults()
    assert store.uploads() == []


def test_what_a_service_refuses_its_own_client_is_an_error(store: Store, s3dcp_server: testing.Server) -> None:
    jobs.save({"large": values((9 * MIB,))}, store.uri)
    s3dcp_server.inject(f"error:AccessDenied {COPIES}")
    try:
        done = command.run("cp", store.uri, f"s3://{store.bucket}/copy", code=1)
    finally:
        s3dcp_server.clear_faults()
    assert "AccessDenied" in done.stderr
    assert store.all_keys("copy") == []


def test_a_source_that_changes_while_another_region_copies_it_is_an_error(
    store: Store, s3dcp_server: testing.Server
) -> None:
    jobs.save({"large": values((9 * MIB,))}, store.uri)
    s3dcp_server.inject(f"error:PreconditionFailed {COPIES}")
    try:
        done = command.run("cp", store.uri, f"s3://{store.bucket}/copy", "--to-region", "eu-west-1", code=1)
    finally:
        s3dcp_server.clear_faults()
    assert "changed while it was copied" in done.stderr


def test_between_services_bytes_are_streamed(store: Store, tmp_path: Path) -> None:
    state = {"large": values((9 * MIB,)), "small": values((3,), 1)}
    jobs.save(state, store.uri)
    with testing.server(buckets=["elsewhere"], environment=False) as other:
        to = ("--to-endpoint-url", other.endpoint_url)
        told = command.told("cp", store.uri, "s3://elsewhere/copy", *to)
        assert told["bytes_by_service"] == 0
        assert told["bytes_through_client"] > told["bytes"]
        assert command.told("cp", store.uri, "s3://elsewhere/copy", *to)["skipped_files"] == told["files"]
        with testing.environment(other):
            jobs.check("s3://elsewhere/copy", state)


def test_a_checkpoint_of_each_ranks_own_indexes_is_copied(store: Store, groups: Any) -> None:
    ranks = groups(4)
    ranks.run(jobs.save_training_state, store.uri, use_collectives=False)
    copy = f"s3://{store.bucket}/copy"
    assert command.told("cp", store.uri, copy)["files"] == 4
    ranks.run(jobs.check_training_state, copy)


@pytest.mark.distributed
def test_items_selected_of_each_ranks_own_index_are_such_a_checkpoint(
    store: Store, groups: Any, tmp_path: Path
) -> None:
    ranks = groups(2)
    ranks.run(parts.save, store.uri)
    for number, (select, names) in enumerate(
        {("layers", "own.1"): ("layers", "own.1"), ("own.0",): ("own.0",)}.items()
    ):
        copy = f"s3://{store.bucket}/copy{number}"
        told = command.told("cp", store.uri, copy, "--select", *select)
        assert told["items"] == {0: 3, 1: 1}[number]
        assert command.told("cp", store.uri, copy, "--select", *select)["skipped_files"] == told["files"]
        ranks.run(parts.check, copy, names)
        assert command.told("verify", copy)["good"]
    assert "no such item" in command.refused("cp", store.uri, tmp_path / "copy", "--select", "own.2", code=2)


# -- what is there


def test_what_is_there_is_left_and_what_differs_is_copied_again(store: Store, tmp_path: Path) -> None:
    state = {"a": values((300_000,)), "b": values((300_000,), 1)}
    jobs.save(state, store.uri, thread_count=2)
    copy = tmp_path / "copy"
    first = command.told("cp", store.uri, copy)
    assert first["skipped_files"] == 0
    again = command.told("cp", store.uri, copy)
    assert (again["skipped_files"], again["skipped_bytes"]) == (first["files"], first["bytes"])
    (copy / ".metadata").unlink()
    cut = next(copy.glob("*.distcp"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert command.told("cp", store.uri, copy)["skipped_files"] == first["files"] - 1
    loaded = blank(state)
    dcp.load(loaded, storage_reader=FileSystemReader(copy))
    assert_same(loaded, state)


def test_a_file_of_the_same_size_and_other_values_is_known_by_its_checksum(store: Store) -> None:
    jobs.save({"a": values((1000,))}, store.uri)
    copy = Store(store.bucket, store.client)
    copy.path = "copy"
    command.told("cp", store.uri, f"s3://{store.bucket}/copy")
    (name,) = copy.shards()
    body = bytearray(copy.read(name))
    body[-500] ^= 1
    store.client.put_object(Bucket=store.bucket, Key=f"copy/{name}", Body=bytes(body), ChecksumAlgorithm="CRC32")
    assert command.told("cp", store.uri, f"s3://{store.bucket}/copy")["skipped_files"] == 0
    assert copy.read(name) == store.read(name)


def test_another_checkpoint_is_replaced_only_when_told_to(store: Store, tmp_path: Path) -> None:
    one, other = {"x": values((1000,))}, {"x": values((1000,), 1)}
    for number, state in enumerate((one, other)):
        dcp.save(state, storage_writer=FileSystemWriter(tmp_path / str(number)))
    copy = tmp_path / "copy"
    command.told("cp", tmp_path / "0", copy)
    assert "Checkpoint already exists" in command.refused("cp", tmp_path / "1", copy)
    # torch's files have the same names in both, and here the same sizes.
    command.told("cp", tmp_path / "1", copy, "--overwrite")
    loaded = blank(other)
    dcp.load(loaded, storage_reader=FileSystemReader(copy))
    assert_same(loaded, other)
    jobs.save(one, store.uri)
    jobs.save(other, f"s3://{store.bucket}/other")
    command.told("cp", f"s3://{store.bucket}/other", store.uri, "--overwrite")
    jobs.check(store.uri, other)
    assert len(store.shards()) == 1, "what the replaced index named is gone"


def test_what_only_the_replaced_checkpoint_named_is_gone(tmp_path: Path) -> None:
    """Also where both give their files the same names, so that the old index has to go before they are written."""
    state, copy = {"x": values((1000,))}, tmp_path / "copy"
    jobs.save_with_torch(tmp_path / "two", thread_count=2)
    dcp.save(state, storage_writer=FileSystemWriter(tmp_path / "one"))
    command.told("cp", tmp_path / "two", copy)
    assert len(list(copy.iterdir())) == 3
    command.told("cp", tmp_path / "one", copy, "--overwrite")
    assert sorted(path.name for path in copy.iterdir()) == [".metadata", "__0_0.distcp"]


# -- what cannot be copied


@pytest.mark.parametrize("options", [(), ("--flatten",), ("--select", "x")])
def test_an_index_that_attacks_is_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name, body in hostile.some("refused", 9):
        (tmp_path / "source/.metadata").write_bytes(body)
        assert command.refused("cp", tmp_path / "source", tmp_path / "copy", *options), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("names", [["../../secret.distcp"], ["../secret"], ["secret", "__0_0.distcp"]])
def test_an_index_cannot_have_other_files_copied(names: list[str], tmp_path: Path) -> None:
    """What whoever copies may read, and the checkpoint has no part in."""
    source = tmp_path / "a/b/source"
    dcp.save({"x": values((100,))}, storage_writer=FileSystemWriter(source))
    for name in names:
        (source / name).write_text("a secret")
    (source / "__0_0.distcp").touch()
    index = pickle.loads((source / ".metadata").read_bytes())
    (info,) = index.storage_data.values()
    index.storage_data = {
        dataclasses.replace(key, fqn=name): dataclasses.replace(info, relative_path=name)
        for key in index.storage_data
        for name in names
    }
    (source / ".metadata").write_bytes(pickle.dumps(index))
    for options in ((), ("--flatten",)):
        assert "no shard file of this checkpoint" in command.refused("cp", source, tmp_path / "copy", *options)
    command.run("export", source, tmp_path / "model", "--format", "torch", code=None)
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "model").exists()


def test_errors_say_what_is_wrong(store: Store, tmp_path: Path) -> None:
    assert "there is no checkpoint at" in command.refused("cp", store.uri, tmp_path / "copy")
    jobs.save({"a": values((10,))}, store.uri)
    above = store.uri.rpartition("/")[0]
    assert f"there is a checkpoint below it, at {store.uri}" in command.refused("cp", above, tmp_path / "copy")
    assert "no such item" in command.refused("cp", store.uri, tmp_path / "copy", "--select", "b", code=2)
    assert "to itself" in command.refused("cp", store.uri, store.uri, code=2)
    store.delete(store.shards()[0])
    assert "the checkpoint is incomplete" in command.refused("cp", store.uri, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    command.refused("cp", store.uri, tmp_path, "--spread", "nothing", code=2)
    command.refused("cp", store.uri, tmp_path, "--spread", "hex", "--flatten", code=2)


def test_a_damaged_source_leaves_no_copy(store: Store, tmp_path: Path) -> None:
    jobs.save({"a": values((1000,)), "b": values((2000,), 1)}, store.uri)
    (name,) = store.shards()
    body = bytearray(store.read(name))
    body[len(body) // 2] ^= 1
    store.write(name, bytes(body))
    error = command.refused("cp", store.uri, tmp_path / "copy", "--select", "b")
    assert "checksum" in error
    assert not list(tmp_path.rglob(".metadata"))


# -- some items


@pytest.mark.parametrize("writer", saved.WRITERS_OF_JOBS)
def test_selected_items_are_a_checkpoint_of_their_own(writer: str, store: Store, ranks: Any, tmp_path: Path) -> None:
    source = saved.save_by_ranks(writer, store, ranks, tmp_path / "source")
    copy = f"s3://{store.bucket}/copy"
    whole = command.told("cp", source, f"s3://{store.bucket}/whole")
    told = command.told("cp", source, copy, "--select", "model", "sc?l*")
    assert 0 < told["items"] < whole["items"]
    assert told["bytes"] < whole["bytes"]
    ranks.run(check_model, copy)
    assert command.told("cp", copy, tmp_path / "copy")["items"] == told["items"]
    ranks.run(check_model_with_torch, tmp_path / "copy")


def check_model(uri: str) -> None:
    jobs.check(uri, {"model": training_state(0)["model"]})


def check_model_with_torch(folder: Path) -> None:
    state = {"model": training_state(0)["model"]}
    loaded = blank(state)
    dcp.load(loaded, storage_reader=FileSystemReader(folder))
    assert_same(loaded, state)


def test_a_service_copies_the_ranges_of_large_items(store: Store, s3dcp_server: testing.Server) -> None:
    state = {"model": {"w": values((12 * MIB,)), "b": values((7,), 1)}, "optimizer": values((8 * MIB,), 2)}
    jobs.save(state, store.uri)
    before = s3dcp_server.stats()
    told = command.told("cp", store.uri, f"s3://{store.bucket}/copy", "--select", "model.*")
    after = s3dcp_server.stats()
    assert told["bytes_by_service"] > 42 * MIB
    assert after.bytes_received - before.bytes_received < 6 * MIB
    jobs.check(f"s3://{store.bucket}/copy", {"model": state["model"]})


# -- stopped


@pytest.mark.parametrize("writer", ["ours", "torch's"])
def test_a_copy_that_is_killed_leaves_no_index_and_the_next_one_completes(
    store: Store, tmp_path: Path, writer: str
) -> None:
    state = {f"t{number}": values((2 * MIB,), number) for number in range(6)}
    source = store.uri if writer == "ours" else f"{tmp_path}/source"
    if writer == "ours":
        jobs.save(state, source, thread_count=3, s3client_config=S3ClientConfig(part_size=5 * MIB))
    else:
        dcp.save(state, storage_writer=FileSystemWriter(source))
    chance = random.Random(new_seed())
    kills = how_many("KILLS", 20)
    early = 0
    for number in range(kills):
        to_folder = number % 2 == 0
        copy = str(tmp_path / "copy") if to_folder else f"s3://{store.bucket}/copy"
        with testing.server(buckets=["elsewhere"], environment=False) as other:
            options = () if to_folder else ("--to-endpoint-url", other.endpoint_url)
            copy = copy if to_folder else "s3://elsewhere/copy"
            if command.killed("cp", source, copy, *options, longest=0.6, chance=chance):
                early += 1
            if to_folder:
                if (tmp_path / "copy/.metadata").exists():
                    loaded = blank(state)
                    dcp.load(loaded, storage_reader=FileSystemReader(copy))
                    assert_same(loaded, state)
                command.told("cp", source, copy)
                command.run("prune", copy, "--older-than", "0s", "--all-uploads", "--delete")
                assert not list(tmp_path.rglob("*.s3dcp-part-*"))
                loaded = blank(state)
                dcp.load(loaded, storage_reader=FileSystemReader(copy))
                assert_same(loaded, state)
                shutil.rmtree(copy)
            else:
                client = boto_client(other.endpoint_url)
                with testing.environment(other):
                    if "Contents" in client.list_objects_v2(Bucket="elsewhere", Prefix="copy/.metadata"):
                        jobs.check(copy, state)
                command.told("cp", source, copy, *options)
                with testing.environment(other):
                    command.run("prune", copy, "--older-than", "0s", "--all-uploads", "--delete")
                    jobs.check(copy, state)
                assert "Uploads" not in client.list_multipart_uploads(Bucket="elsewhere")
    print(f"{early} of {kills} copies were killed before their end")
    assert early > 0


def test_ctrl_c_ends_it(store: Store, s3dcp_server: testing.Server, tmp_path: Path) -> None:
    jobs.save({"a": values((1000,))}, store.uri)
    s3dcp_server.inject("delay:20000ms on=GetObject key=*.distcp")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "s3dcp", "cp", store.uri, str(tmp_path / "copy")], stderr=subprocess.PIPE, text=True
        )
        while not list(tmp_path.rglob("*.s3dcp-part-*")):
            assert process.poll() is None
        process.send_signal(2)
        _, error = process.communicate(timeout=10)
    finally:
        s3dcp_server.clear_faults()
    assert process.returncode == 1
    assert "stopped" in error
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_file()]


def test_a_person_is_told_what_was_copied(store: Store, tmp_path: Path) -> None:
    jobs.save({"a": torch.zeros(1000), "b": 7}, store.uri)
    lines = command.run("cp", store.uri, tmp_path / "copy").stdout.splitlines()
    assert lines[0].startswith("copied 2 items in 1 file of ")
    assert lines[0].endswith(f" to {tmp_path / 'copy'}")
    assert "through this machine" in lines[1]
