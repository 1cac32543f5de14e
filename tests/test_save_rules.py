"""The rules of a save: names, the commit, what is deleted afterwards, epochs, kinds and prefixes."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner

from s3dcp import (
    AlreadyExists,
    Conflict,
    DefaultPrefixStrategy,
    HexPrefixStrategy,
    NotFound,
    NumericPrefixStrategy,
    S3PrefixStrategyBase,
    S3StorageWriter,
)
from support import jobs
from support.jobs import InTheMiddle
from support.states import blank, values
from support.store import REGION, Store

SHARD = re.compile(r"(?P<prefix>.*)__(?P<rank>\d+)_(?P<number>\d+)-(?P<save_id>[0-9a-f]{16})\.distcp")


def state(number: int) -> dict[str, Any]:
    """A small state that differs by `number`."""
    return {"x": values((7, 3), number), "step": number}


def save_ids(names: list[str]) -> set[str]:
    """The save ids in the names of shard files, all of which must have one."""
    found = [SHARD.fullmatch(name) for name in names]
    assert all(found), names
    return {match["save_id"] for match in found if match}


class Stop(Exception):
    """Raised by tests to break a save off."""


def break_off() -> None:
    raise Stop


# -- names


def test_every_save_draws_a_save_id_of_its_own(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    seen: set[str] = set()
    for number in range(3):
        dcp.save(state(number), storage_writer=writer)
        (save_id,) = save_ids(store.shards())
        assert save_id not in seen
        seen.add(save_id)


def test_a_shard_file_is_named_after_prefix_rank_and_file_number(store: Store) -> None:
    jobs.save(state(1), store.uri, ("Hex", {"epoch_num": 5}), thread_count=2)
    prefixes = [(match["prefix"], match["rank"], match["number"]) for match in map(SHARD.fullmatch, store.shards())]
    assert prefixes == [("0000000000/epoch_5/", "0", "0"), ("0000000000/epoch_5/", "0", "1")]


def test_a_checkpoint_at_the_root_of_a_bucket_works(store: Store) -> None:
    for uri in (f"s3://{store.bucket}", f"s3://{store.bucket}/"):
        jobs.save(state(3), uri)
        jobs.check(uri, state(3))
        assert ".metadata" in store.all_keys()
        assert len(store.all_keys()) == 2


def test_a_trailing_slash_of_the_path_changes_nothing(store: Store) -> None:
    jobs.save(state(1), f"{store.uri}/")
    assert [name.split("-")[0] for name in store.names()] == [".metadata", "__0_0"]
    jobs.check(store.uri, state(1))


@pytest.mark.parametrize("path", ["plain", "with space", "ünï/çødé ☃", "a+b=c&d?e#f%20g", "x//y"])
def test_paths_of_any_characters_work(store: Store, path: str) -> None:
    uri = f"s3://{store.bucket}/{path}"
    jobs.save(state(1), uri, ("Hex", {"epoch_num": 2}))
    jobs.check(uri, state(1))
    jobs.check(f"{uri}/epoch_2", state(1))
    assert all(key.startswith(f"{path}/") for key in store.all_keys())


# -- the commit


def test_a_checkpoint_exists_exactly_when_its_index_does(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)
    index = store.read(".metadata")
    store.delete(".metadata")
    assert isinstance(failure(jobs.load, blank(state(1)), store.uri), NotFound)
    store.write(".metadata", index)
    jobs.check(store.uri, state(1))


def test_the_index_is_the_last_thing_a_save_writes(store: Store) -> None:
    """Seen from inside the save: no index is there while shard files are written."""
    seen: list[list[str]] = []
    planner = InTheMiddle(lambda: seen.append(store.names()))
    jobs.save(state(1), store.uri, planner=planner)
    assert seen == [[]]
    assert ".metadata" in store.names()
    assert store.uploads() == []


def test_a_save_that_breaks_off_leaves_the_old_checkpoint_whole(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)
    before = store.listing()
    error = failure(jobs.save, state(2), store.uri, planner=InTheMiddle(break_off))
    assert isinstance(error, Stop)
    assert store.listing() == before
    assert store.uploads() == []
    jobs.check(store.uri, state(1))


def test_a_save_that_breaks_off_between_files_commits_none_of_them(store: Store, failure) -> None:
    many = {f"t{number}": values((3,), number) for number in range(4)}

    class Third(DefaultSavePlanner):
        count = 0

        def resolve_data(self, write_item: Any) -> Any:
            self.count += 1
            if self.count == 3:
                raise Stop
            return super().resolve_data(write_item)

    assert isinstance(failure(jobs.save, many, store.uri, planner=Third(), single_file_per_rank=False), Stop)
    assert ".metadata" not in store.names()
    assert store.uploads() == []
    assert isinstance(failure(jobs.load, blank(many), store.uri), NotFound)


def test_of_two_first_saves_that_race_the_later_commit_fails(store: Store, failure) -> None:
    rival = InTheMiddle(lambda: jobs.save(state(2), store.uri))
    error = failure(jobs.save, state(1), store.uri, planner=rival)
    assert isinstance(error, AlreadyExists)
    jobs.check(store.uri, state(2))


def test_of_two_overwrites_that_race_the_later_commit_fails(store: Store, failure) -> None:
    jobs.save(state(0), store.uri)
    rival = InTheMiddle(lambda: jobs.save(state(2), store.uri))
    error = failure(jobs.save, state(1), store.uri, planner=rival)
    assert isinstance(error, AlreadyExists)
    jobs.check(store.uri, state(2))


@pytest.mark.parametrize("before", [True, False], ids=["overwriting", "first"])
def test_without_conditions_a_commit_still_looks_before_it_writes(store: Store, failure, before: bool) -> None:
    if before:
        jobs.save(state(0), store.uri)
    rival = InTheMiddle(lambda: jobs.save(state(2), store.uri))
    error = failure(jobs.save, state(1), store.uri, planner=rival, conditional_commit="off")
    assert isinstance(error, AlreadyExists)
    jobs.check(store.uri, state(2))


@pytest.mark.parametrize("conditional_commit", ["warn", "off"])
def test_a_save_whose_index_vanished_meanwhile_commits_nothing(store: Store, failure, conditional_commit) -> None:
    jobs.save(state(0), store.uri)
    vanish = InTheMiddle(lambda: store.delete(".metadata"))
    error = failure(jobs.save, state(1), store.uri, planner=vanish, conditional_commit=conditional_commit)
    assert isinstance(error, Conflict)
    assert ".metadata" not in store.names()


def test_a_server_that_honours_conditions_satisfies_a_writer_that_requires_them(store: Store) -> None:
    for number in (1, 2):
        jobs.save(state(number), store.uri, conditional_commit="require")
    jobs.check(store.uri, state(2))


# -- overwriting


def test_overwriting_deletes_exactly_the_shard_files_of_the_replaced_checkpoint(store: Store) -> None:
    jobs.save(state(0), store.uri, thread_count=2)
    replaced = store.shards()
    bystanders = {
        "notes.txt": b"mine",
        "__7_0.distcp": b"of an unknown save",
        "__0_5-0123456789abcdef.distcp": b"of a save that broke off",
        "inner/.metadata": b"another checkpoint",
        "inner/__0_0.distcp": b"and its shard",
    }
    for name, body in bystanders.items():
        store.write(name, body)
    jobs.save({"x": values((2,), 9), "y": values((3,), 8)}, store.uri, thread_count=2)
    assert len(replaced) == 2
    assert not set(replaced) & set(store.names())
    assert {name: store.read(name) for name in bystanders} == bystanders
    assert len(store.names()) == 1 + 2 + len(bystanders)


def test_overwrite_false_refuses_an_existing_checkpoint_and_touches_nothing(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)
    before = store.listing()
    error = failure(jobs.save, state(2), store.uri, overwrite=False)
    assert isinstance(error, AlreadyExists)
    assert isinstance(error, FileExistsError)
    assert "overwrite" in str(error)
    assert store.path in str(error)
    assert store.listing() == before


def test_overwrite_false_saves_where_nothing_is(store: Store) -> None:
    jobs.save(state(1), store.uri, overwrite=False)
    jobs.check(store.uri, state(1))


def test_overwriting_warns_as_torch_does(store: Store) -> None:
    jobs.save(state(1), store.uri)
    with pytest.warns(UserWarning, match="Detected an existing checkpoint"):
        jobs.save(state(2), store.uri)


def test_a_damaged_index_can_be_overwritten(store: Store) -> None:
    jobs.save(state(1), store.uri)
    left = store.shards()
    store.write(".metadata", b"not an index")
    with pytest.warns(UserWarning, match="the replaced index could not be read"):
        jobs.save(state(2), store.uri)
    jobs.check(store.uri, state(2))
    assert set(left) < set(store.shards())


def test_a_warning_after_the_commit_never_makes_a_save_look_failed(store: Store) -> None:
    store.write(".metadata", b"not an index")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Detected an existing checkpoint|torch.distributed is .*unavailable")
        jobs.save(state(2), store.uri)
    jobs.check(store.uri, state(2))


def test_no_index_deletes_files_outside_its_path(store: Store) -> None:
    """A forged index that names files elsewhere must not turn an overwrite into a weapon."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

    neighbour = f"s3://{store.bucket}/jobs/run 1/other"
    jobs.save(state(5), neighbour)
    (shard,) = [key.rsplit("/", 1)[1] for key in store.all_keys("jobs/run 1/other/") if key.endswith(".distcp")]
    store.write("notes.txt", b"mine")
    store.write("__0_0.distcp", b"mine to delete")

    def forge(*names: str) -> None:
        items = {MetadataIndex(name): _StorageInfo(name, 0, 10) for name in names}
        store.write(".metadata", pickle.dumps(Metadata({}, storage_data=items)))

    forge(f"../other/{shard}", "notes.txt", "../other/.metadata", "__0_0.distcp")
    jobs.save(state(6), store.uri)
    assert "__0_0.distcp" not in store.names()
    for name in (f"/jobs/run 1/other/{shard}", f"a/../../other/{shard}"):
        forge(name)
        with pytest.warns(UserWarning, match="the replaced index could not be read"):
            jobs.save(state(6), store.uri)
    jobs.check(neighbour, state(5))
    assert store.read("notes.txt") == b"mine"


# -- epochs


def epoch(number: int) -> HexPrefixStrategy:
    return HexPrefixStrategy(epoch_num=number)


def test_every_epoch_keeps_an_index_of_its_own_and_the_path_has_the_newest(store: Store) -> None:
    for number in (1, 2, 3):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number))
        jobs.check(store.uri, state(number))
    for number in (1, 2, 3):
        jobs.check(f"{store.uri}/epoch_{number}", state(number))
    indexes = [name for name in store.names() if name.endswith(".metadata")]
    assert indexes == [".metadata", "epoch_1/.metadata", "epoch_2/.metadata", "epoch_3/.metadata"]
    assert len(store.shards()) == 3


def test_saving_an_epoch_again_replaces_that_epoch_alone(store: Store) -> None:
    for number in (1, 2):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number))
    old = [name for name in store.shards() if "/epoch_1/" in name]
    kept = [name for name in store.shards() if "/epoch_2/" in name]
    jobs.save(state(10), store.uri, prefix_strategy=epoch(1))
    assert not set(old) & set(store.shards())
    assert set(kept) < set(store.shards())
    assert len(store.shards()) == 2
    jobs.check(f"{store.uri}/epoch_1", state(10))
    jobs.check(f"{store.uri}/epoch_2", state(2))


def test_the_path_names_the_epoch_committed_last_not_the_highest(store: Store) -> None:
    for number in (5, 3):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number))
    jobs.check(store.uri, state(3))


def test_saving_again_the_epoch_that_the_path_names_leaves_the_path_loadable(store: Store) -> None:
    for number in (1, 7):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(4))
    jobs.check(store.uri, state(7))
    jobs.check(f"{store.uri}/epoch_4", state(7))
    assert len(store.shards()) == 1


def test_overwrite_false_speaks_of_the_epoch(store: Store, failure) -> None:
    jobs.save(state(1), store.uri, prefix_strategy=epoch(1), overwrite=False)
    jobs.save(state(2), store.uri, prefix_strategy=epoch(2), overwrite=False)
    before = store.listing()
    error = failure(jobs.save, state(3), store.uri, prefix_strategy=epoch(2), overwrite=False)
    assert isinstance(error, AlreadyExists)
    assert "epoch_2" in str(error)
    assert store.listing() == before


def test_a_save_without_epoch_over_epochs_deletes_no_file_of_theirs(store: Store) -> None:
    for number in (1, 2):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number))
    jobs.save(state(9), store.uri)
    jobs.check(store.uri, state(9))
    for number in (1, 2):
        jobs.check(f"{store.uri}/epoch_{number}", state(number))


def test_an_epoch_over_a_save_without_one_replaces_what_the_path_showed(store: Store) -> None:
    jobs.save(state(9), store.uri)
    jobs.save(state(1), store.uri, prefix_strategy=epoch(1))
    jobs.check(store.uri, state(1))
    jobs.check(f"{store.uri}/epoch_1", state(1))


def test_a_copied_epoch_loads_where_it_was_copied_to(store: Store) -> None:
    for number in (1, 2):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number))
    for name in store.names():
        source = {"Bucket": store.bucket, "Key": f"{store.path}/{name}"}
        store.client.copy_object(Bucket=store.bucket, Key=f"elsewhere/{name}", CopySource=source)
    for name in store.names():
        store.delete(name)
    jobs.check(f"s3://{store.bucket}/elsewhere/epoch_1", state(1))
    jobs.check(f"s3://{store.bucket}/elsewhere", state(2))


def test_one_strategy_whose_epoch_the_loop_sets_serves_all_epochs(store: Store) -> None:
    strategy = NumericPrefixStrategy(base=7)
    writer = S3StorageWriter(REGION, store.uri, prefix_strategy=strategy)
    for number in (0, 1, 2):
        strategy.epoch_num = number
        dcp.save(state(number), storage_writer=writer)
    for number in (0, 1, 2):
        jobs.check(f"{store.uri}/epoch_{number}", state(number))


# -- the other kind


def test_a_path_holds_one_kind_of_checkpoint_and_the_other_is_refused(store: Store, failure) -> None:
    for first, second in ((True, False), (False, True)):
        uri = f"{store.uri}/{first}"
        jobs.save(state(1), uri, use_collectives=first)
        before = store.listing()
        for overwrite in (True, False):
            error = failure(jobs.save, state(2), uri, use_collectives=second, overwrite=overwrite)
            assert isinstance(error, AlreadyExists)
            assert "one path holds one kind" in str(error)
        assert store.listing() == before
        jobs.check(uri, state(1))


def test_the_other_kind_is_refused_for_an_epoch_too(store: Store, failure) -> None:
    jobs.save(state(1), store.uri, prefix_strategy=epoch(1))
    before = store.listing()
    error = failure(jobs.save, state(2), store.uri, prefix_strategy=epoch(1), use_collectives=False)
    assert isinstance(error, AlreadyExists)
    assert store.listing() == before


def test_without_collectives_a_rank_commits_an_index_of_its_own(store: Store) -> None:
    jobs.save(state(1), store.uri, use_collectives=False)
    assert [name for name in store.names() if name.endswith(".metadata")] == ["__0.metadata"]
    jobs.check(store.uri, state(1))
    jobs.save(state(2), store.uri, use_collectives=False)
    jobs.check(store.uri, state(2))
    assert len(store.shards()) == 1


def test_without_collectives_epochs_have_indexes_of_their_own(store: Store) -> None:
    for number in (1, 2):
        jobs.save(state(number), store.uri, prefix_strategy=epoch(number), use_collectives=False)
    for number in (1, 2):
        jobs.check(f"{store.uri}/epoch_{number}", state(number))
    assert {"epoch_1/__0.metadata", "epoch_2/__0.metadata"} <= set(store.names())


# -- prefixes


class Fixed(S3PrefixStrategyBase):
    """Gives every rank what it was told to."""

    def __init__(self, prefix: Any) -> None:
        self.prefix = prefix

    def generate_prefix(self, rank: int) -> str:
        return self.prefix


@pytest.mark.parametrize(
    "prefix",
    [
        "../x__0_",
        "a/../../b_",
        "/abs/__0_",
        "./x_",
        "a/./b_",
        "a/..",
        "",
        "a\nb_",
        "a\x00b_",
        "\x7f",
        "x" * 1100,
        7,
        None,
    ],
    ids=lambda prefix: repr(prefix)[:12],
)
def test_a_prefix_that_cannot_work_is_refused_and_nothing_written(store: Store, failure, prefix: Any) -> None:
    error = failure(jobs.save, state(1), store.uri, prefix_strategy=Fixed(prefix))
    assert isinstance(error, ValueError)
    assert "prefix_strategy" in str(error)
    assert store.all_keys() == []
    assert store.uploads() == []


def test_a_strategy_that_raises_is_what_the_save_raises(store: Store, failure) -> None:
    class Broken(S3PrefixStrategyBase):
        def generate_prefix(self, rank: int) -> str:
            raise Stop

    assert isinstance(failure(jobs.save, state(1), store.uri, prefix_strategy=Broken()), Stop)
    assert store.all_keys() == []


@pytest.mark.parametrize("strategy", ["hex", 5], ids=repr)
def test_what_is_no_strategy_is_refused_at_once(store: Store, strategy: Any) -> None:
    with pytest.raises(ValueError, match="prefix_strategy="):
        S3StorageWriter(REGION, store.uri, prefix_strategy=strategy)


def test_a_strategy_written_in_python_works(store: Store) -> None:
    jobs.save(state(1), store.uri, prefix_strategy=Fixed("my own/place_"))
    (shard,) = store.shards()
    assert re.fullmatch(r"my own/place_0-[0-9a-f]{16}\.distcp", shard)
    jobs.check(store.uri, state(1))


def test_any_function_from_rank_to_prefix_works(store: Store) -> None:
    jobs.save(state(1), store.uri, prefix_strategy=lambda rank: f"mine/{rank}/")
    (shard,) = store.shards()
    assert shard.startswith("mine/0/0-")
    jobs.check(store.uri, state(1))


def test_a_strategy_of_the_reference_package_works(store: Store) -> None:
    from s3torchconnector.dcp import HexPrefixStrategy as Reference

    jobs.save(state(1), store.uri, prefix_strategy=Reference(epoch_num=4))
    (shard,) = store.shards()
    assert shard.startswith("0000000000/epoch_4/__0_0-")
    jobs.check(f"{store.uri}/epoch_4", state(1))


def test_a_save_leaves_the_callers_strategy_as_it_was(store: Store) -> None:
    strategy = HexPrefixStrategy(epoch_num=3)
    before = pickle.dumps(strategy)
    jobs.save(state(1), store.uri, prefix_strategy=strategy)
    assert pickle.dumps(strategy) == before


def test_a_strategy_that_changes_during_a_save_does_not_change_that_save(store: Store) -> None:
    strategy = epoch(1)

    def next_epoch() -> None:
        strategy.epoch_num = 2

    jobs.save(state(1), store.uri, prefix_strategy=strategy, planner=InTheMiddle(next_epoch), thread_count=2)
    assert all("/epoch_1/" in name for name in store.shards())
    jobs.check(f"{store.uri}/epoch_1", state(1))
    jobs.check(store.uri, state(1))


def test_without_a_strategy_the_default_one_is_used(store: Store) -> None:
    assert S3StorageWriter(REGION, store.uri).prefix_strategy == DefaultPrefixStrategy()


# -- what the index says


def test_the_index_carries_checksums_of_every_item_and_a_trailer(store: Store) -> None:
    jobs.save({"x": torch.ones(5), "o": "text"}, store.uri)
    body = store.read(".metadata")
    metadata = pickle.loads(body)
    assert set(metadata.storage_data) == {index for index in metadata.storage_data if index.fqn in ("x", "o")}
    for info in metadata.storage_data.values():
        assert isinstance(info.crc32, bytes)
        assert len(info.crc32) >= 4
    assert len(body) > len(pickle.dumps(metadata)) - 64
    assert metadata.storage_meta.checkpoint_id == store.uri


def test_the_metadata_a_save_returns_is_what_its_index_holds(store: Store) -> None:
    returned = jobs.save(state(4), store.uri, ("Hex", {"epoch_num": 1}))
    stored = pickle.loads(store.read(".metadata"))
    assert set(returned.storage_data) == set(stored.storage_data)
    assert {info.relative_path for info in returned.storage_data.values()} == set(store.shards())
