"""The rules of a load: which index, what it may hold, what a changed or broken checkpoint raises."""

from __future__ import annotations

import dataclasses
import datetime
import io
import os
import pathlib
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner

from s3dcp import Conflict, Corrupt, NotFound, S3StorageReader
from support import jobs
from support.indexes import Calls, pickle_length, without_checksums
from support.states import assert_same, blank, values
from support.store import REGION, Store
from support.torch_versions import needs_rank_indexes


def state(number: int = 0) -> dict[str, Any]:
    """A small state that differs by `number`."""
    return {"x": values((40, 3), number), "y": values((6,), number + 1), "step": number}


class BeforeReading(DefaultLoadPlanner):
    """Calls `action` after the index was read and before any shard file is."""

    def __init__(self, action: Any) -> None:
        super().__init__()
        self.action = action

    def finish_plan(self, new_plan: Any) -> Any:
        self.action()
        return super().finish_plan(new_plan)


# -- the index


@pytest.mark.parametrize("keep", [0, 1, 4, -1], ids=["no trailer", "1 byte", "4 bytes", "all but 1 byte"])
def test_an_index_of_ours_needs_its_whole_trailer(store: Store, failure, keep: int) -> None:
    jobs.save(state(), store.uri)
    body = store.read(".metadata")
    length = pickle_length(body)
    assert len(body) > length
    store.write(".metadata", body[: len(body) - 1 if keep < 0 else length + keep])
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert ".metadata" in str(error)


def test_the_trailer_covers_every_byte_of_the_index(store: Store, failure) -> None:
    jobs.save({"x": torch.ones(2)}, store.uri)
    body = store.read(".metadata")
    for position in range(0, len(body), 7):
        damaged = bytearray(body)
        damaged[position] ^= 0x10
        store.write(".metadata", bytes(damaged))
        error = failure(jobs.load, {"x": torch.zeros(2)}, store.uri)
        assert isinstance(error, Corrupt), f"a flipped bit at {position} of {len(body)}: {error!r}"


def test_an_index_of_another_writer_needs_no_trailer(store: Store) -> None:
    jobs.save(state(), store.uri)
    store.write(".metadata", pickle.dumps(without_checksums(store.read(".metadata"))))
    jobs.check(store.uri, state())


@pytest.mark.parametrize("length", [0, 1, 10, 200], ids=str)
def test_a_truncated_index_of_another_writer_is_refused(store: Store, failure, length: int) -> None:
    jobs.save(state(), store.uri)
    store.write(".metadata", pickle.dumps(without_checksums(store.read(".metadata")))[:length])
    assert isinstance(failure(jobs.load, blank(state()), store.uri), Corrupt)


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {marker}"),
        (os.mkdir, "{marker}"),
        (eval, "open({marker!r}, 'w').close()"),
        (exec, "open({marker!r}, 'w').close()"),
        (open, "{marker}", "w"),
        (pathlib.Path.touch, "{marker}"),
        (getattr, "x", "__class__"),
        (__import__, "antigravity"),
        (torch.load, "{marker}"),
        (print, "{marker}"),
    ],
    ids=lambda call: call[0].__name__,
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_index_that_calls_anything_is_refused_and_the_call_not_made(
    store: Store, failure, tmp_path, call, protocol: int
) -> None:
    marker = str(tmp_path / "marker")
    function, *arguments = call
    arguments = [text.format(marker=marker) for text in arguments]
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    metadata.planner_data = {"x": Calls(function, *arguments)}
    store.write(".metadata", pickle.dumps(metadata, protocol=protocol))
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert not os.path.exists(marker)


def test_a_refused_global_is_named(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    metadata.planner_data = Calls(os.system, "true")
    store.write(".metadata", pickle.dumps(metadata))
    assert "posix.system" in str(failure(jobs.load, blank(state()), store.uri))


def test_the_unpickler_itself_refuses_what_is_not_allowed() -> None:
    """The second of two walls: the native scan refuses such an index before."""
    from s3dcp._load.index import _Unpickler

    with pytest.raises(pickle.UnpicklingError, match=r"posix\.system"):
        _Unpickler(io.BytesIO(pickle.dumps(Calls(os.system, "true"))), frozenset()).load()


def test_allowed_globals_let_further_classes_into_the_index(store: Store, failure) -> None:
    class Dated(DefaultSavePlanner):
        def create_global_plan(self, all_plans: Any) -> Any:
            plans, metadata = super().create_global_plan(all_plans)
            metadata.made_on = datetime.date(2026, 1, 2)
            return plans, metadata

    with pytest.warns(UserWarning, match=r"allowed_globals=.*datetime\.date"):
        jobs.save(state(), store.uri, planner=Dated())
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert "datetime.date" in str(error)
    jobs.check(store.uri, state(), allowed_globals=[datetime.date])
    jobs.check(store.uri, state(), allowed_globals=["datetime.date"])
    reader = S3StorageReader(REGION, store.uri, allowed_globals=[datetime.date])
    assert reader.read_metadata().made_on == datetime.date(2026, 1, 2)


@pytest.mark.parametrize("entry", [5, "name", None], ids=repr)
def test_allowed_globals_are_checked(entry: Any) -> None:
    with pytest.raises(ValueError, match="allowed_globals="):
        S3StorageReader(REGION, "s3://bucket/path", allowed_globals=[entry])


@pytest.mark.parametrize(
    "path", ["../../../../../../x", "/jobs/x", "s3://other/x", "a/../x", "a\nb", "", "..", "./x"], ids=repr
)
def test_a_relative_path_that_leaves_the_bucket_or_cannot_be_is_refused(store: Store, failure, path: str) -> None:
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    for info in metadata.storage_data.values():
        info.relative_path = path
    store.write(".metadata", pickle.dumps(metadata))
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert "relative path" in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", -1),
        ("length", -5),
        ("offset", 2**70),
        ("length", "9"),
        ("relative_path", 5),
        ("offset", None),
    ],
    ids=str,
)
def test_an_index_with_impossible_numbers_is_refused(store: Store, failure, field: str, value: Any) -> None:
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    for info in metadata.storage_data.values():
        setattr(info, field, value)
    store.write(".metadata", pickle.dumps(metadata))
    assert isinstance(failure(jobs.load, blank(state()), store.uri), Corrupt)


@pytest.mark.parametrize("what", [{"a": 1}, None, [1, 2], "text"], ids=str)
def test_a_pickle_that_is_no_index_is_refused(store: Store, failure, what: Any) -> None:
    store.write(".metadata", pickle.dumps(what))
    assert isinstance(failure(jobs.load, blank(state()), store.uri), Corrupt)


def test_an_item_that_the_index_does_not_place_is_refused_by_name(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    metadata.storage_data = {index: info for index, info in metadata.storage_data.items() if index.fqn != "x"}
    store.write(".metadata", pickle.dumps(metadata))
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert "x" in str(error)


def test_the_error_that_hides_the_index_is_what_a_load_raises(store: Store, failure) -> None:
    """torch takes any error as a cue to read the rank's own index, and then complains of that one alone."""
    jobs.save(state(1), f"{store.uri}/whole")
    jobs.save(state(2), f"{store.uri}/ranks", use_collectives=False)
    source = {"Bucket": store.bucket, "Key": f"{store.path}/ranks/__0.metadata"}
    store.client.copy_object(Bucket=store.bucket, Key=f"{store.path}/whole/__0.metadata", CopySource=source)
    store.write("whole/.metadata", b"damaged")
    error = failure(jobs.load, blank(state()), f"{store.uri}/whole")
    assert isinstance(error, Corrupt)


def test_what_stands_in_for_an_unreadable_index_can_be_printed(store: Store) -> None:
    reader = S3StorageReader(REGION, store.uri)
    with pytest.raises(NotFound):
        reader.read_metadata()
    assert "no checkpoint at" in repr(reader.read_metadata(rank=0))


@needs_rank_indexes
def test_no_checkpoint_at_all_is_not_found_under_both_names(store: Store, failure) -> None:
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, NotFound)
    assert isinstance(error, FileNotFoundError)
    assert store.uri in str(error)
    assert "__0.metadata" in str(error)


def test_a_reader_forgets_the_error_of_its_last_load(store: Store, failure) -> None:
    reader = S3StorageReader(REGION, store.uri)
    assert isinstance(failure(dcp.load, blank(state()), storage_reader=reader), NotFound)
    jobs.save(state(), store.uri)
    loaded = blank(state())
    dcp.load(loaded, storage_reader=reader)
    assert_same(loaded, state())


def test_read_metadata_alone_gives_the_index(store: Store) -> None:
    jobs.save(state(), store.uri)
    metadata = S3StorageReader(REGION, store.uri).read_metadata()
    assert set(metadata.state_dict_metadata) == {"x", "y", "step"}
    with pytest.raises(NotFound):
        S3StorageReader(REGION, f"{store.uri}/none").read_metadata()


# -- shard files that are not what they were


def test_a_missing_shard_file_makes_the_checkpoint_incomplete(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    (shard,) = store.shards()
    store.delete(shard)
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, NotFound)
    assert "incomplete" in str(error)
    assert shard in str(error)
    assert error.key == f"{store.path}/{shard}"


def test_a_checkpoint_replaced_during_the_load_is_a_conflict(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)
    replace = BeforeReading(lambda: jobs.save(state(2), store.uri))
    error = failure(jobs.load, blank(state()), store.uri, planner=replace)
    assert isinstance(error, Conflict)
    assert "replaced during load" in str(error)
    assert error.retryable
    jobs.check(store.uri, state(2))


def test_a_checkpoint_deleted_during_the_load_is_a_conflict(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)

    def delete() -> None:
        for name in store.names():
            store.delete(name)

    assert isinstance(failure(jobs.load, blank(state()), store.uri, planner=BeforeReading(delete)), Conflict)


def test_an_epoch_replaced_during_the_load_is_a_conflict(store: Store, failure) -> None:
    spec = ("Hex", {"epoch_num": 1})
    jobs.save(state(1), store.uri, spec)
    replace = BeforeReading(lambda: jobs.save(state(2), store.uri, spec))
    error = failure(jobs.load, blank(state()), f"{store.uri}/epoch_1", planner=replace)
    assert isinstance(error, Conflict)


def flip(store: Store, name: str, position: int) -> None:
    """Change one byte of a stored file."""
    body = bytearray(store.read(name))
    body[position] ^= 0x40
    store.write(name, bytes(body))


def data_positions(store: Store) -> dict[str, int]:
    """Where the bytes of each tensor lie in the shard file, by name."""
    metadata = pickle.loads(store.read(".metadata"))
    return {
        index.fqn: info.offset + info.data_offset
        for index, info in metadata.storage_data.items()
        if hasattr(info, "data_offset")
    }


def test_a_flipped_byte_is_corrupt_and_names_its_tensor(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    (shard,) = store.shards()
    flip(store, shard, data_positions(store)["x"] + 5)
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert "x" in str(error)
    assert error.key == f"{store.path}/{shard}"


def test_a_flipped_byte_goes_unseen_without_verification(store: Store) -> None:
    jobs.save(state(), store.uri)
    (shard,) = store.shards()
    flip(store, shard, data_positions(store)["x"])
    loaded = jobs.load(blank(state()), store.uri, verify=False)
    assert not torch.equal(loaded["x"], state()["x"])
    assert_same(loaded["y"], state()["y"])


def test_a_damaged_tensor_does_not_keep_others_from_being_loaded(store: Store) -> None:
    jobs.save(state(), store.uri)
    flip(store, store.shards()[0], data_positions(store)["x"])
    some = {"y": torch.zeros(6)}
    jobs.load(some, store.uri)
    assert_same(some["y"], state()["y"])


def test_a_few_rows_of_a_large_tensor_are_verified_too(store: Store, failure) -> None:
    """A partial read fetches whole slices, so damage beside the wanted rows but in their slice is seen."""
    big = values((3000, 1024), 3)  # 12 MiB, three slices
    jobs.save({"big": big}, store.uri)
    (shard,) = store.shards()
    start = data_positions(store)["big"]

    class Rows(DefaultLoadPlanner):
        """Loads 10 rows from row 1500 on only."""

        def create_local_plan(self) -> Any:
            plan = super().create_local_plan()
            (item,) = plan.items
            rows = dataclasses.replace(
                item,
                storage_offsets=torch.Size((1500, 0)),
                dest_offsets=torch.Size((1500, 0)),
                lengths=torch.Size((10, 1024)),
            )
            return dataclasses.replace(plan, items=[rows])

    loaded = jobs.load({"big": torch.zeros(3000, 1024)}, store.uri, planner=Rows())["big"]
    assert torch.equal(loaded[1500:1510], big[1500:1510])
    assert not loaded[:1500].any()
    assert not loaded[1510:].any()
    flip(store, shard, start + 1600 * 4096)
    error = failure(jobs.load, {"big": torch.zeros(3000, 1024)}, store.uri, planner=Rows())
    assert isinstance(error, Corrupt)


def test_damage_to_an_object_is_seen_before_it_is_unpickled(store: Store, failure) -> None:
    jobs.save({"o": {"text": "a" * 100}}, store.uri)
    (shard,) = store.shards()
    flip(store, shard, store.read(shard).index(b"aaaa"))
    error = failure(jobs.load, {"o": {"text": ""}}, store.uri)
    assert isinstance(error, Corrupt)


def test_a_truncated_shard_file_is_corrupt(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    (shard,) = store.shards()
    body = store.read(shard)
    for length in (0, 10, len(body) // 2, len(body) - 1):
        store.write(shard, body[:length])
        error = failure(jobs.load, blank(state()), store.uri)
        assert isinstance(error, Corrupt), f"cut to {length} of {len(body)}: {error!r}"
        assert shard in str(error)


def test_a_truncated_shard_file_of_another_writer_is_corrupt(store: Store, failure, tmp_path) -> None:
    jobs.save_with_torch(tmp_path)
    store.upload(tmp_path)
    (shard,) = store.shards()
    store.write(shard, store.read(shard)[:300])
    state = jobs.training_state()
    assert isinstance(failure(jobs.load, blank(state), store.uri), Corrupt)


# -- objects


class Config:
    """An object that torch loads only when told that it may run code."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and other.depth == self.depth

    __hash__ = None  # type: ignore[assignment]


def save_with_object(store: Store) -> dict[str, Any]:
    unsafe = {"config": Config(3), "x": torch.ones(2)}
    with pytest.warns(UserWarning, match="config: .*weights_only=False"):
        jobs.save(unsafe, store.uri)
    return unsafe


def test_saving_an_object_that_needs_trust_warns_of_it(store: Store) -> None:
    save_with_object(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "torch.distributed is .*unavailable")
        jobs.save({"fine": {"a": [1, 2.0, "x"]}, "x": torch.ones(2)}, f"{store.uri}/fine")


def test_an_object_that_needs_trust_is_refused_by_name(store: Store, failure) -> None:
    unsafe = save_with_object(store)
    error = failure(jobs.load, blank(unsafe), store.uri)
    assert isinstance(error, Corrupt)
    assert "config" in str(error)
    assert "weights_only=False" in str(error)


def test_a_trusting_reader_loads_any_object(store: Store) -> None:
    jobs.check(store.uri, save_with_object(store), weights_only=False)


def test_a_refused_object_runs_no_code(store: Store, failure, tmp_path) -> None:
    marker = tmp_path / "marker"
    with pytest.warns(UserWarning, match="weights_only=False"):
        jobs.save({"trap": Calls(os.mkdir, str(marker))}, store.uri)
    assert not marker.exists()
    assert isinstance(failure(jobs.load, {"trap": None}, store.uri), Corrupt)
    assert not marker.exists()


def test_other_loads_do_not_need_trust_in_an_object_they_do_not_want(store: Store) -> None:
    save_with_object(store)
    loaded = jobs.load({"x": torch.zeros(2)}, store.uri)
    assert_same(loaded, {"x": torch.ones(2)})


# -- how bytes travel


def test_a_load_fetches_about_what_it_needs(store: Store) -> None:
    state = {"large": values((4 << 20,), 1), "small": values((1000,), 2)}
    jobs.save(state, store.uri)
    reader = S3StorageReader(REGION, store.uri)
    before = reader.fs.client.stats().bytes_received
    jobs.check(store.uri, {"small": state["small"]})
    received = reader.fs.client.stats().bytes_received - before
    assert received < 1 << 20


def test_a_reader_constructor_is_ignored_with_a_warning() -> None:
    from s3torchconnector import S3ReaderConstructor

    with pytest.warns(UserWarning, match="reader_constructor is ignored"):
        S3StorageReader(REGION, "s3://bucket/path", reader_constructor=S3ReaderConstructor.sequential())
