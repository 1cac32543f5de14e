"""What programs written for torch's writers and readers, and the reference package's, rely on besides the values."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan

import s3dcp
from s3dcp import AlreadyExists, HexPrefixStrategy, NotFound, S3ClientConfig, S3StorageReader, S3StorageWriter
from s3dcp._compat import HAS_RANK_INDEXES, SerializationFormat
from support import jobs
from support.states import assert_same, blank, values
from support.steps import Save
from support.store import REGION, Store


def state(number: int = 0) -> dict[str, Any]:
    """A small state that differs by `number`."""
    return {"x": values((5, 4), number), "step": number}


# -- where there is a checkpoint already

EPOCH = ("Hex", {"epoch_num": 1})


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"overwrite": False}),
        ({"spec": EPOCH}, {"spec": EPOCH, "overwrite": False}),
        ({}, {"spec": EPOCH, "overwrite": False}),
        ({"use_collectives": False}, {"use_collectives": False, "overwrite": False}),
        ({"spec": EPOCH, "use_collectives": False}, {"spec": EPOCH, "use_collectives": False, "overwrite": False}),
    ],
    ids=["whole", "epoch", "epoch over whole", "ranks", "ranks of an epoch"],
)
def test_a_refusal_to_overwrite_has_the_class_and_the_words_of_torch(
    store: Store, failure, tmp_path: Path, first: Any, then: Any
) -> None:
    dcp.save(state(), storage_writer=FileSystemWriter(tmp_path))
    theirs = failure(dcp.save, state(), storage_writer=FileSystemWriter(tmp_path, overwrite=False))
    jobs.save(state(), store.uri, **first)
    before = store.listing()
    ours = failure(jobs.save, state(), store.uri, **then)
    assert isinstance(ours, AlreadyExists)
    assert isinstance(ours, type(theirs))
    assert "Checkpoint already exists" in str(theirs)
    assert str(ours).startswith(str(theirs))
    assert store.bucket in str(ours)
    assert store.listing() == before


def test_the_words_reach_whoever_reads_the_text_of_the_exception_of_torch(store: Store) -> None:
    jobs.save(state(), store.uri)
    with pytest.raises(CheckpointException, match=r"Checkpoint already exists and self\.overwrite=False"):
        jobs.save(state(), store.uri, overwrite=False)


@pytest.mark.parametrize("spec", [None, EPOCH], ids=["whole", "epoch"])
@pytest.mark.parametrize("first", [True, False], ids=["ranks over whole", "whole over ranks"])
def test_the_other_kind_of_checkpoint_is_refused_in_the_same_words(store: Store, failure, first: bool, spec) -> None:
    jobs.save(state(), store.uri, spec, use_collectives=first)
    error = failure(jobs.save, state(), store.uri, spec, use_collectives=not first)
    assert isinstance(error, AlreadyExists)
    assert str(error).startswith("Checkpoint already exists, ")


@pytest.mark.parametrize("mode", ["warn", "off"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_save_that_was_overtaken_is_refused_in_the_same_words(store: Store, mode: Any, overwrite: bool) -> None:
    late = Save(store.uri, [state(1)], conditional_commit=mode, overwrite=overwrite)
    late.plan()
    late.write()
    jobs.save(state(2), store.uri)
    with pytest.raises(AlreadyExists, match=r"^Checkpoint already exists: "):
        late.commit()
    jobs.check(store.uri, state(2))


# -- identities


def saved_id(store: Store, name: str = ".metadata") -> str:
    """The save id in an index."""
    save_id = pickle.loads(store.read(name)).storage_meta.save_id
    assert isinstance(save_id, str)
    return save_id


class Noting(DefaultSavePlanner):
    """Notes what the planner is told of the save."""

    told: StorageMeta | None = None

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.told = storage_meta
        super().set_up_planner(state_dict, storage_meta, is_coordinator)


@pytest.mark.parametrize("use_collectives", [True, False])
def test_the_save_id_of_a_writer_is_that_of_its_last_save(store: Store, use_collectives: bool) -> None:
    index = ".metadata" if use_collectives else "__0.metadata"
    writer = S3StorageWriter(REGION, store.uri)
    expected = writer.save_id
    seen = set()
    for number in range(3):
        planner = Noting()
        dcp.save(state(number), storage_writer=writer, planner=planner, use_collectives=use_collectives)
        assert writer.save_id == saved_id(store, index)
        assert planner.told is not None
        assert planner.told.save_id == writer.save_id
        assert planner.told.checkpoint_id == store.uri
        assert all(writer.save_id in name for name in store.shards())
        assert number > 0 or writer.save_id == expected
        seen.add(writer.save_id)
    assert len(seen) == 3


def test_a_checkpoint_id_begins_a_save_of_another_id(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    before = writer.save_id
    planner = Noting()
    dcp.save(state(), checkpoint_id=f"{store.uri}/2", storage_writer=writer, planner=planner)
    assert writer.save_id == saved_id(store, "2/.metadata") != before
    assert planner.told == StorageMeta(checkpoint_id=f"{store.uri}/2", save_id=writer.save_id)
    writer.reset()
    expected = writer.save_id
    assert expected != saved_id(store, "2/.metadata")
    dcp.save(state(), storage_writer=writer)
    assert expected == writer.save_id == saved_id(store, "2/.metadata")


def test_an_asynchronous_save_shows_its_id_on_the_writer(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    expected = writer.save_id
    for number in range(2):
        dcp.async_save(state(number), storage_writer=writer).result()
        assert writer.save_id == saved_id(store)
        assert number > 0 or writer.save_id == expected


def test_saves_at_once_on_one_writer_have_ids_of_their_own(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    barrier = threading.Barrier(8)
    ids: list[tuple[str, str]] = []

    def save(number: int) -> None:
        barrier.wait()
        writer.reset(f"{store.uri}/{number}")
        told = writer.storage_meta().save_id
        barrier.wait()
        planner = Noting()
        dcp.save(state(number), storage_writer=writer, planner=planner, no_dist=True)
        assert planner.told is not None
        ids.append((planner.told.save_id, saved_id(store, f"{number}/.metadata")))
        assert told is not None

    threads = [threading.Thread(target=save, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert all(told == saved for told, saved in ids)
    assert len({saved for _, saved in ids}) == 8


@pytest.mark.parametrize("copied", [lambda w: pickle.loads(pickle.dumps(w)), copy.copy, copy.deepcopy])
def test_copies_of_a_writer_do_not_save_under_its_id(store: Store, copied: Callable[[Any], Any]) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    writers = [copied(writer), copied(writer), writer]
    ids = set()
    for each in writers:
        dcp.save(state(), storage_writer=each)
        ids.add(saved_id(store))
        assert each.save_id == saved_id(store)
    assert len(ids) == 3


def test_a_forked_process_does_not_save_under_the_id_of_its_parent(store: Store) -> None:
    program = f"""
import os, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed.checkpoint as dcp
from s3dcp import S3StorageWriter
writer = S3StorageWriter("{REGION}", "{store.uri}/parent")
before = writer.save_id
if os.fork() == 0:
    dcp.save({{"x": torch.ones(2)}}, checkpoint_id=None, storage_writer=writer)
    os._exit(writer.save_id == before)
assert os.wait()[1] == 0
dcp.save({{"x": torch.ones(2)}}, storage_writer=writer)
assert writer.save_id == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_load_id_of_a_reader_is_that_of_the_index_it_gives(store: Store) -> None:
    jobs.save(state(), store.uri)
    reader = S3StorageReader(REGION, store.uri)
    metadata = reader.read_metadata()
    assert metadata.storage_meta is not None
    assert metadata.storage_meta.load_id == reader.load_id
    before = reader.load_id
    reader.reset()
    assert reader.load_id != before
    metadata = reader.read_metadata()
    assert metadata.storage_meta is not None
    assert metadata.storage_meta.load_id == reader.load_id


# -- settings


def test_nobody_can_pay_for_requests_without_a_signature() -> None:
    with pytest.raises(ValueError, match=r"requester_pays=True.*unsigned"):
        S3ClientConfig(requester_pays=True, unsigned=True)
    S3ClientConfig(requester_pays=True)
    S3ClientConfig(unsigned=True)


def test_the_settings_of_another_package_are_held_to_the_same(store: Store, failure) -> None:
    class Settings:
        force_path_style = True
        requester_pays = True
        unsigned = True

    error = failure(jobs.load, blank(state()), store.uri, s3client_config=Settings())
    assert isinstance(error, ValueError)
    assert "requester_pays" in str(error)
    assert "unsigned" in str(error)


# -- calls out of order


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("set_up_storage_writer", lambda writer: writer.prepare_local_plan(SavePlan([]))),
        ("set_up_storage_writer", lambda writer: writer.prepare_global_plan([SavePlan([])])),
        ("set_up_storage_writer", lambda writer: writer.write_data(SavePlan([]), DefaultSavePlanner())),
        ("set_up_storage_writer", lambda writer: writer.finish(s3dcp_metadata(), [])),
    ],
    ids=["prepare_local_plan", "prepare_global_plan", "write_data", "finish"],
)
def test_a_writer_that_was_not_set_up_says_so(store: Store, missing: str, call: Any) -> None:
    with pytest.raises(RuntimeError, match=missing):
        call(S3StorageWriter(REGION, store.uri))
    assert store.all_keys() == []


def s3dcp_metadata() -> Any:
    """An index of nothing."""
    from torch.distributed.checkpoint.metadata import Metadata

    return Metadata({})


@pytest.mark.parametrize("use_collectives", [True, False])
def test_a_writer_says_which_step_it_misses(store: Store, use_collectives: bool) -> None:
    def begun() -> S3StorageWriter:
        writer = S3StorageWriter(REGION, store.uri)
        writer.set_up_storage_writer(True, rank=0, use_collectives=use_collectives)
        return writer

    with pytest.raises(RuntimeError, match=r"prepare_local_plan\(\) must be called before prepare_global_plan"):
        begun().prepare_global_plan([SavePlan([])])
    with pytest.raises(RuntimeError, match=r"prepare_global_plan\(\) must be called before write_data"):
        begun().write_data(SavePlan([]), DefaultSavePlanner())
    with pytest.raises(RuntimeError, match=r"prepare_local_plan\(\) must be called before finish"):
        begun().finish(s3dcp_metadata(), [])
    assert store.all_keys() == []


@pytest.mark.parametrize(
    ("missing", "call"),
    [
        ("set_up_storage_reader", lambda reader: reader.prepare_local_plan(LoadPlan([]))),
        ("set_up_storage_reader", lambda reader: reader.prepare_global_plan([LoadPlan([])])),
        ("set_up_storage_reader", lambda reader: reader.read_data(LoadPlan([]), dcp.DefaultLoadPlanner())),
        ("read_metadata", lambda reader: reader.set_up_storage_reader(None, True)),
    ],
    ids=["prepare_local_plan", "prepare_global_plan", "read_data", "set_up_storage_reader"],
)
def test_a_reader_says_which_step_it_misses(store: Store, missing: str, call: Any) -> None:
    jobs.save(state(), store.uri)
    reader = S3StorageReader(REGION, store.uri)
    with pytest.raises(RuntimeError, match=missing):
        call(reader)
    dcp.load(blank(state()), storage_reader=reader)
    reader.reset()
    with pytest.raises(RuntimeError, match=missing):
        call(reader)


# -- files


@pytest.mark.parametrize("count", [1, 2, 5, 9])
@pytest.mark.parametrize("items", [1, 4, 20])
def test_a_rank_writes_as_many_files_as_threads_were_asked_for_at_most(store: Store, count: int, items: int) -> None:
    whole = {f"t{number}": values((number + 1, 3), number) for number in range(items)} | {"step": 1}
    jobs.save(whole, store.uri, thread_count=count)
    assert len(store.shards()) == min(count, items + 1)
    jobs.check(store.uri, whole)


def test_safetensors_have_objects_in_files_of_their_own(store: Store) -> None:
    whole = {f"t{number}": values((3, 3), number) for number in range(4)} | {"step": 1}
    jobs.save(whole, store.uri, thread_count=1, serialization_format=SerializationFormat.SAFETENSORS)
    assert len(store.shards()) == 2


# -- no checkpoint


def why(failure: Any, uri: str, **arguments: Any) -> str:
    """What a load from `uri` says of its failure."""
    error = failure(jobs.load, blank(state()), uri, **arguments)
    assert isinstance(error, NotFound)
    assert isinstance(error, FileNotFoundError)
    assert f"no checkpoint at {uri}" in str(error)
    return str(error)


def test_a_load_where_nothing_is_says_just_that(store: Store, failure) -> None:
    store.write("notes.txt", b"")
    store.write("folder/notes.txt", b"")
    text = why(failure, store.uri)
    assert "there is a" not in text
    assert "there are" not in text


def test_a_load_of_a_run_names_the_checkpoints_just_below(store: Store, failure) -> None:
    jobs.save(state(), f"{store.uri}/epoch_5")
    text = why(failure, store.uri)
    assert f"there is a checkpoint below it, at {store.uri}/epoch_5" in text
    jobs.save(state(), f"{store.uri}/step-100", use_collectives=not HAS_RANK_INDEXES)
    store.write("logs/notes.txt", b"")
    jobs.save(state(), f"{store.uri}/deeper/step-7")
    text = why(failure, store.uri)
    assert f"there are checkpoints below it, at {store.uri}/epoch_5, {store.uri}/step-100" in text
    assert "logs" not in text
    assert "deeper" not in text
    for uri in (f"{store.uri}/", f"{store.uri}//"):
        why(failure, uri)
    for step in range(12):
        store.write(f"step-2{step:02}/.metadata", b"")
    assert text.index("epoch_5") < (text := why(failure, store.uri)).index("(and 9 more)")


def test_a_load_at_the_top_of_a_bucket_names_what_is_below(store: Store, failure) -> None:
    for number in range(2):
        jobs.save(state(), f"s3://{store.bucket}/run-{number}")
    for uri in (f"s3://{store.bucket}", f"s3://{store.bucket}/"):
        assert f"s3://{store.bucket}/run-0, s3://{store.bucket}/run-1" in why(failure, uri)


@pytest.mark.parametrize(
    "below", ["/.metadata", "/0000000000", "/0000000000/epoch_1", "//", "/a/b/c/d", "/__0_0.distcp"]
)
@pytest.mark.parametrize("use_collectives", [True, False])
def test_a_load_from_within_a_checkpoint_names_it(store: Store, failure, below: str, use_collectives: bool) -> None:
    jobs.save(state(), store.uri, EPOCH if use_collectives else None, use_collectives=use_collectives)
    text = why(failure, f"{store.uri}{below}")
    assert f"there is a checkpoint above it, at {store.uri}" in text
    assert f"{store.uri}{below}" not in text.partition("above it")[2]


def test_what_is_named_can_be_loaded(store: Store, failure) -> None:
    for path in ("/a//b", "/b//", "/c d"):
        jobs.save(state(), f"s3://{store.bucket}{path}")
        slash = "" if path.endswith("/") else "/"
        text = why(failure, f"s3://{store.bucket}{path}{slash}y/z")
        jobs.check(text.partition("above it, at ")[2].split(" [")[0].split(";")[0], state())
        for key in store.all_keys():
            store.client.delete_object(Bucket=store.bucket, Key=key)


@pytest.mark.parametrize("fault", ["error:AccessDenied", "error:InternalError", "drop"])
def test_a_load_says_that_there_is_no_checkpoint_though_nothing_may_be_listed(failure, fault: str) -> None:
    from s3dcp import testing

    with testing.server(["bucket"]) as server:
        jobs.save(state(), "s3://bucket/run/step-1")
        server.inject(f"{fault} on=ListObjectsV2")
        text = why(failure, "s3://bucket/run", s3client_config=S3ClientConfig(max_attempts=1))
        assert "step-1" not in text
        jobs.check("s3://bucket/run/step-1", state())


def test_a_load_from_a_bucket_that_is_missing_says_both(store: Store, failure) -> None:
    uri = f"s3://{store.bucket}-missing/run"
    text = why(failure, uri)
    assert "NoSuchBucket" in text


def test_a_rank_is_told_of_near_checkpoints_as_well(store: Store) -> None:
    jobs.save(state(), f"{store.uri}/step-1")
    reader = S3StorageReader(REGION, store.uri)
    with pytest.raises(NotFound, match=rf"no checkpoint at {store.uri}: .*{store.uri}/step-1"):
        reader.read_metadata(rank=0)


@pytest.mark.distributed
def test_one_rank_looks_around_for_all(store: Store, failure, groups) -> None:
    jobs.save(state(), f"{store.uri}/step-1")
    for rank, named in ((0, True), (1, False)):
        error = failure(groups(2).run, jobs.check_training_state, store.uri, rank=rank)
        assert f"no checkpoint at {store.uri}" in str(error)
        assert (f"{store.uri}/step-1" in str(error)) == named


@pytest.mark.parametrize("below", ["/.metadata", "/nothing"])
def test_the_command_names_the_checkpoint_that_was_meant(store: Store, below: str) -> None:
    jobs.save(state(), store.uri)
    line = [sys.executable, "-m", "s3dcp", "tree", f"{store.uri}{below}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"there is nothing below {store.uri}{below}/; there is a checkpoint above it, at {store.uri}" in done.stderr


# -- the public surface of the reference


@pytest.mark.parametrize("name", ["S3FileSystem", "S3StorageReader", "S3StorageWriter"])
def test_the_reference_is_called_in_the_same_way(name: str) -> None:
    import s3torchconnector.dcp as reference

    def arguments(cls: type, method: str) -> list[tuple[str, Any]]:
        parameters = inspect.signature(getattr(cls, method)).parameters.values()
        return [(each.name, each.default) for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD]

    theirs, ours = getattr(reference, name), getattr(s3dcp, name)
    methods = {method for method in dir(theirs) if not method.startswith("_") and callable(getattr(theirs, method))}
    assert "validate_checkpoint_id" in methods
    # torch's base class calls the first argument of `rename` by the name that ours has.
    for method in (methods | {"__init__"}) - {"rename"}:
        wanted = arguments(theirs, method)
        assert arguments(ours, method)[: len(wanted)] == wanted, f"{name}.{method}"


@pytest.mark.parametrize("name", ["S3StorageReader", "S3StorageWriter", "S3FileSystem"])
def test_the_objects_have_the_attributes_of_the_reference(name: str) -> None:
    import s3torchconnector.dcp as reference

    arguments = (REGION,) if name == "S3FileSystem" else (REGION, "s3://bucket/run")
    theirs = {each for each in vars(getattr(reference, name)(*arguments)) if not each.startswith("_")}
    assert theirs <= set(dir(getattr(s3dcp, name)(*arguments)))


def test_a_writer_keeps_what_it_was_given() -> None:
    strategy = HexPrefixStrategy()
    writer = S3StorageWriter(REGION, "s3://bucket/run", prefix_strategy=strategy, thread_count=3)
    assert writer.prefix_strategy is strategy
    assert writer.thread_count == 3
    assert writer.sync_files is S3StorageReader(REGION, "s3://bucket/run").sync_files is False
    assert writer.path == writer.checkpoint_id == "s3://bucket/run"


def test_a_reader_loads_again_after_reset(store: Store) -> None:
    jobs.save(state(1), store.uri)
    reader = S3StorageReader(REGION, store.uri)
    for _ in range(2):
        loaded = blank(state())
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, state(1))
        reader.reset()
    assert os.fspath(reader.path) == store.uri
