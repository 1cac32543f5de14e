"""What killed and failed saves leave behind: how little that is, and that ``s3dcp prune`` finds it and nothing else."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import DefaultSavePlanner

from s3dcp import AlreadyExists, HexPrefixStrategy, S3ClientConfig, testing
from s3dcp._compat import HAS_RANK_INDEXES
from support import faults, jobs
from support.states import training_state, values
from support.store import Store

ID = "0123456789abcdef"
MIB = 1 << 20


def prune(uri: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The command; 0 s of age unless `options` say otherwise."""
    age = () if "--older-than" in options else ("--older-than", "0s")
    arguments = [sys.executable, "-m", "s3dcp", "prune", uri, *age, *options]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def listed(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    """Kind and key of every line of the table."""
    assert done.returncode == 0, done.stderr
    lines = re.findall(
        r"^(upload|shard file|probe) +\S+ \w+ +\d+[smhd](?: \d+[smhd])?  (.*)$", done.stdout, re.MULTILINE
    )
    assert int(re.search(r"^(\d+) leftovers? of ", done.stdout, re.MULTILINE)[1]) == len(lines)
    return lines


def tensors(count: int, mib: int) -> dict[str, Any]:
    """So many tensors of so many MiB each."""
    return {f"t{number}": values((mib * MIB // 4,), number) for number in range(count)}


class FailsAt(DefaultSavePlanner):
    """Raises when the data of the item with this number is wanted, as soon as `ready`."""

    def __init__(self, number: int, ready: Callable[[], Any]) -> None:
        super().__init__()
        self.left = number
        self.ready = ready

    def resolve_data(self, write_item: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            while not self.ready():
                time.sleep(0.02)
            raise ArithmeticError("broken on purpose")
        return super().resolve_data(write_item)


# -- what a save that failed leaves


def test_a_save_that_fails_deletes_the_files_it_has_completed(store: Store, failure) -> None:
    planner = FailsAt(4, store.shards)
    error = failure(jobs.save, tensors(4, 1), store.uri, planner=planner, single_file_per_rank=False)
    assert isinstance(error, ArithmeticError)
    assert store.all_keys() == []


def test_a_save_that_fails_has_aborted_its_uploads(store: Store, failure) -> None:
    for number, single_file_per_rank in ((2, True), (4, False)):
        error = failure(
            jobs.save,
            tensors(4, 12),
            store.uri,
            planner=FailsAt(number, lambda: store.uploads() or store.shards()),
            s3client_config=S3ClientConfig(part_size=5 * MIB),
            single_file_per_rank=single_file_per_rank,
        )
        assert isinstance(error, ArithmeticError)
        assert store.uploads() == []
        assert store.all_keys() == []


def test_a_save_that_loses_a_race_leaves_nothing_of_its_own(store: Store, failure) -> None:
    error = failure(jobs.save, {"x": values((3,))}, store.uri, planner=faults.RivalWins(store.uri), thread_count=2)
    assert isinstance(error, AlreadyExists)
    assert len(store.shards()) == 1
    jobs.check(store.uri, faults.RivalWins.state())


def test_an_index_that_cannot_be_pickled_leaves_nothing(store: Store, failure) -> None:
    class Unpicklable(DefaultSavePlanner):
        def create_global_plan(self, all_plans: Any) -> Any:
            plans, metadata = super().create_global_plan(all_plans)
            metadata.planner_data = {"a": lambda: None}
            return plans, metadata

    error = failure(jobs.save, {"x": values((3,))}, store.uri, planner=Unpicklable())
    assert "pickle" in str(error)
    assert store.all_keys() == []


def test_a_failed_save_that_cannot_delete_says_so_and_keeps_its_error(
    store: Store, failure, caplog: pytest.LogCaptureFixture, s3dcp_server: testing.Server
) -> None:
    def bucket_goes() -> bool:
        s3dcp_server.delete_bucket(store.bucket)
        return True

    planner = FailsAt(2, bucket_goes)
    error = failure(jobs.save, tensors(2, 1), store.uri, planner=planner, single_file_per_rank=False)
    s3dcp_server.create_bucket(store.bucket)
    assert isinstance(error, ArithmeticError)
    assert "1 shard files of a save that failed may stay" in caplog.text


@pytest.mark.distributed
def test_a_save_that_fails_on_one_rank_leaves_only_what_the_others_completed(store: Store, failure, groups) -> None:
    four = groups(4)
    four.run(jobs.save_training_state, store.uri, thread_count=2)
    before = store.names()
    error = failure(four.run, faults.save_failing_on_rank_1_after_a_file, store.uri, rank=1)
    assert isinstance(error, ArithmeticError)
    assert store.uploads() == []
    left = sorted(set(store.names()) - set(before))
    assert {name.split("_")[2] for name in left} == {"0", "2", "3"}
    assert listed(prune(store.uri)) == [("shard file", f"{store.path}/{name}") for name in left]
    assert prune(store.uri, "--delete").returncode == 0
    assert store.names() == before
    four.run(jobs.check_training_state, store.uri)


@pytest.mark.distributed
def test_a_commit_that_fails_deletes_the_files_of_all_ranks(store: Store, failure, groups) -> None:
    four = groups(4)
    error = failure(four.run, faults.save_losing_to_a_rival, store.uri)
    assert isinstance(error, AlreadyExists)
    assert len(store.shards()) == 1
    jobs.check(store.uri, faults.RivalWins.state())


# -- what a killed one leaves


KILLED = """
import os, signal, sys, time
from torch.distributed.checkpoint import DefaultSavePlanner
from s3dcp import S3ClientConfig
from support import jobs
from support.states import values
from support.store import Store, boto_client

bucket, uri = sys.argv[1:]
store = Store(bucket, boto_client())

class Killed(DefaultSavePlanner):
    left = 4
    def resolve_data(self, write_item):
        self.left -= 1
        if self.left == 0:
            while len(store.shards()) < 2 or not store.uploads():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resolve_data(write_item)

state = {f"t{number}": values((12 << 18,), number) for number in range(4)}
jobs.save(state, uri, planner=Killed(), thread_count=2, s3client_config=S3ClientConfig(part_size=5 << 20))
"""


def test_a_killed_save_leaves_files_and_uploads_that_prune_deletes(store: Store) -> None:
    state = training_state(1)
    jobs.save(state, store.uri)
    before = store.listing()
    killed = subprocess.run([sys.executable, "-c", KILLED, store.bucket, store.uri], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    (upload,) = store.uploads()
    (file,) = set(store.listing()) - set(before)
    young = prune(store.uri, "--older-than", "24h", "--delete")
    assert listed(young) == []
    assert "2 more younger" in young.stdout
    looked = prune(store.uri)
    assert listed(looked) == [("upload", upload), ("shard file", file)]
    assert "nothing was deleted" in looked.stdout
    assert (store.uploads(), len(store.listing())) == ([upload], len(before) + 1)
    deleted = prune(store.uri, "--delete")
    assert "2 leftovers" in deleted.stdout.splitlines()[-1]
    assert "a save under way" in deleted.stderr
    assert store.uploads() == []
    assert store.listing() == before
    jobs.check(store.uri, state)


def test_in_a_folder_whatever_was_being_written_is_found(tmp_path: Path) -> None:
    jobs.save_with_torch(tmp_path / "run", 1)
    kept = sorted(path.name for path in (tmp_path / "run").iterdir())
    names = [".metadata", "__0_0.distcp", f"__0_0-{ID}.distcp", "model.safetensors"]
    for name in names:
        (tmp_path / f"run/.{name}.s3dcp-part-{ID}").write_bytes(b"half")
    for other in (".notes.s3dcp-part-", ".notes.s3dcp-part-mine"):
        (tmp_path / f"run/{other}").write_bytes(b"mine")
        kept.append(other)
    found = [Path(key).name for kind, key in listed(prune(f"{tmp_path}/run", "--delete")) if kind == "upload"]
    assert found == sorted(names)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(kept)


# -- what is in use, or somebody else's


def test_nothing_that_an_index_names_is_a_leftover(store: Store) -> None:
    state = {"x": values((5,), 3)}
    for number in (1, 2):
        jobs.save(state, store.uri, prefix_strategy=HexPrefixStrategy(epoch_num=number), thread_count=2)
    jobs.save(state, f"{store.uri}/inner")
    if HAS_RANK_INDEXES:
        jobs.save(state, f"{store.uri}/ranks", use_collectives=False)
        jobs.save(state, f"{store.uri}/ranks", use_collectives=False, prefix_strategy=HexPrefixStrategy(epoch_num=7))
    orphans = [f"inner/__0_0-{ID}.distcp", f"ranks/0000000000/epoch_7/__5_1-{ID}.distcp", f".s3dcp-probe-{ID}"]
    for name in orphans:
        store.write(name, b"left")
    for path in (store.uri, f"s3://{store.bucket}", f"s3://{store.bucket}/"):
        found = {key.removeprefix(f"{store.path}/") for _, key in listed(prune(path))}
        assert found == set(orphans)
    for below in ("0000000000", "0000000000/epoch_1", "ranks/0000000000/epoch_7", "epoch_1"):
        assert {key for _, key in listed(prune(f"{store.uri}/{below}"))} <= {f"{store.path}/{orphans[1]}"}
    kept = [name for name in store.names() if name not in orphans]
    assert prune(store.uri, "--delete").returncode == 0
    assert store.names() == kept
    of_ranks = ["/ranks", "/ranks/epoch_7"] if HAS_RANK_INDEXES else []
    for path in ("", "/epoch_1", "/inner", *of_ranks):
        jobs.check(f"{store.uri}{path}", state)


@pytest.mark.parametrize("writer", ["torch", "s3torchconnector"])
def test_what_others_wrote_is_never_touched(store: Store, tmp_path: Path, writer: str) -> None:
    if writer == "torch":
        jobs.save_with_torch(tmp_path, 2)
        store.upload(tmp_path)
    else:
        jobs.save_with_reference(store.uri, ("Hex", {"epoch_num": 3}), 2)
    store.write("notes.txt", b"mine")
    store.write("stray/__0_0.distcp", b"of nobody")
    store.client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.path}/video.mp4")
    store.client.create_multipart_upload(Bucket=store.bucket, Key=f"{store.path}/__0_0.distcp")
    store.write(f"__0_0-{ID}.distcp", b"ours")
    before = store.names()
    assert listed(prune(store.uri, "--delete")) == [("shard file", f"{store.path}/__0_0-{ID}.distcp")]
    assert store.names() == [name for name in before if ID not in name]
    assert len(store.uploads()) == 2


def test_uploads_under_other_names_are_counted_and_taken_where_that_is_wanted(store: Store) -> None:
    jobs.save({"x": values((3,))}, store.uri)
    before = store.listing()
    keys = [f"{store.path}/{name}" for name in ("__0_0.distcp", "model.pt", "model.safetensors", f"__0_0-{ID}.distcp")]
    for key in keys:
        upload = store.client.create_multipart_upload(Bucket=store.bucket, Key=key)["UploadId"]
        store.client.upload_part(Bucket=store.bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(1000))
    young = prune(store.uri, "--older-than", "24h", "--all-uploads", "--delete")
    assert (listed(young), "4 more younger" in young.stdout) == ([], False)
    some = prune(store.uri, "--delete")
    assert listed(some) == [("upload", keys[3])]
    told = f"3 uploads of 2.9 KiB under other names, as old: {keys[0]} and 2 more; --all-uploads takes them"
    assert told in some.stdout.splitlines()
    assert sorted(store.uploads()) == keys[:3]
    every = prune(store.uri, "--all-uploads", "--delete")
    assert sorted(listed(every)) == [("upload", key) for key in keys[:3]]
    assert "other names" not in every.stdout
    assert (store.uploads(), store.listing()) == ([], before)


@pytest.mark.parametrize("fault", [faults.truncated_index, faults.flipped_index, faults.empty_index])
def test_an_index_that_cannot_be_read_ends_it(store: Store, fault: Any) -> None:
    jobs.save(training_state(), store.uri)
    fault(store)
    before = store.listing()
    for options in ((), ("--delete",)):
        done = prune(store.uri, *options)
        assert done.returncode == 1
        assert "cannot be read, so none is deleted" in done.stderr
        assert f"{store.path}/.metadata" in done.stderr
        assert done.stdout == ""
    assert store.listing() == before


# -- the command


def test_a_path_without_leftovers_is_told(store: Store) -> None:
    jobs.save({"x": values((3,))}, store.uri)
    for uri in (store.uri, f"s3://{store.bucket}/nowhere"):
        done = prune(uri, "--older-than", "7d", "--delete")
        assert done.stdout == "0 leftovers of 0 B at least 7d old\n"
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["checkpoints/run"], 2, "s3://"),
        (["s3://bucket/path", "--older-than", "2"], 2, "such as 90s"),
        (["s3://bucket/path", "--older-than", "soon"], 2, "older-than"),
        (["s3://no-such-bucket/path"], 1, "no-such-bucket"),
        (["s3://bucket/path", "--endpoint-url", "nonsense"], 2, "endpoint_url"),
    ],
)
@pytest.mark.usefixtures("s3dcp_server")
def test_what_cannot_work_is_refused(arguments: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s3dcp", "prune", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert says in done.stderr
