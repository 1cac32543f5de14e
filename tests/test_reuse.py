"""Incremental saves: what has not changed stays where it lies, and loads as if it had been sent."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemReader
from torch.distributed.checkpoint.planner import SavePlanner

from s3dcp import CheckpointManager, HexPrefixStrategy, S3StorageWriter
from s3dcp._compat import SerializationFormat
from s3dcp.catalogue import copy, list_checkpoints, verify
from s3dcp.fsspec import S3FsspecFileSystem
from s3dcp.planner import FastSavePlanner
from support import jobs
from support.states import assert_same, blank, values
from support.store import REGION, Store
from support.torch_versions import needs_rank_indexes

pytestmark = pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")


def state(step: int) -> dict[str, Any]:
    """Large tensors that stay, some of them strided, many small ones, one that moves, and objects of both kinds."""
    return {
        "frozen": values((300, 200), 1),
        "columns": values((64, 64), 2).t(),
        "half": values((40, 8), 3).to(torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "many": {f"t{number}": values((5,), number) for number in range(40)},
        "moving": values((10,), 100 + step),
        "config": {"layers": [1, 2, 3]},
        "step": step,
    }


def save(uri: str, step: int, *, of: dict[str, Any] | None = None, planner: Any = None, **arguments: Any) -> Any:
    """An incremental save; what was reused."""
    writer = S3StorageWriter(REGION, uri, incremental=True, **arguments)
    dcp.save(state(step) if of is None else of, storage_writer=writer, planner=planner, no_dist=True)
    return writer.reused


def of_epoch(number: int) -> dict[str, Any]:
    return {"prefix_strategy": HexPrefixStrategy(epoch_num=number)}


def intents(store: Store) -> list[str]:
    return [key for key in store.all_keys() if ".s3dcp-intent-" in key]


def check(uri: str, step: int) -> None:
    jobs.check(uri, state(step), no_dist=True)


def test_only_what_has_changed_is_sent(store: Store, tmp_path) -> None:
    assert dataclasses.astuple(save(store.uri, 0, **of_epoch(0))) == (0, 0, 0)
    [first] = store.shards()
    for step in (1, 2, 3):
        reused = save(store.uri, step, **of_epoch(step))
        # all but "moving" and "step"
        assert (reused.files, reused.items) == (1, len(pickle.loads(store.read(".metadata")).storage_data) - 2)
        assert reused.bytes > 0.9 * store.listing()[f"{store.path}/{first}"][0]
        assert len(store.shards()) == step + 1
        named = {
            info.relative_path for info in pickle.loads(store.read(f"epoch_{step}/.metadata")).storage_data.values()
        }
        assert f"../{first}" in named
    assert not intents(store)
    for step in range(4):
        check(f"{store.uri}/epoch_{step}", step)
    check(store.uri, 3)
    store.download(tmp_path)
    for step in range(4):
        loaded = blank(state(step))
        dcp.load(loaded, storage_reader=FileSystemReader(tmp_path / f"epoch_{step}"), no_dist=True)
        assert_same(loaded, state(step))
    listed = {each.step: each for each in list_checkpoints(store.uri, region=REGION)}
    assert all(each.shared_bytes > 0.9 * store.listing()[f"{store.path}/{first}"][0] for each in listed.values())


def test_a_checkpoint_that_is_replaced_leaves_what_is_reused(store: Store) -> None:
    save(store.uri, 0)
    first = store.shards()
    for step in (1, 2):
        assert save(store.uri, step).items > 40
        assert len(store.shards()) == 2
        assert set(first) < set(store.shards())
        check(store.uri, step)
    # one that sends everything lets all of them go
    dcp.save(state(3), storage_writer=S3StorageWriter(REGION, store.uri), no_dist=True)
    assert len(store.shards()) == 1
    check(store.uri, 3)
    assert save(store.uri, 3).items == 0, "there were no hashes"
    assert not intents(store)


def test_the_same_again_sends_no_file(store: Store) -> None:
    save(store.uri, 5)
    before = store.shards()
    reused = save(store.uri, 5)
    assert store.shards() == before
    assert reused.items == len(pickle.loads(store.read(".metadata")).storage_data)
    check(store.uri, 5)


@pytest.mark.parametrize(
    "changed",
    [
        lambda tensor: tensor + 1,
        lambda tensor: tensor.double(),
        lambda tensor: tensor.reshape(-1),
        lambda tensor: tensor.view(torch.int32),
        lambda tensor: tensor[:-1],
    ],
)
def test_a_tensor_with_another_value_dtype_or_shape_is_sent(store: Store, changed) -> None:
    tensor = values((30, 20), 1)
    save(store.uri, 0, of={"x": tensor, "y": tensor})
    after = {"x": changed(tensor), "y": tensor}
    assert save(store.uri, 0, of=after).items == 1
    jobs.check(store.uri, after, no_dist=True)


@pytest.mark.parametrize("thread_count", [1, 3])
@pytest.mark.parametrize("files", [True, False])
def test_files_of_any_number_are_reused(store: Store, thread_count: int, files: bool) -> None:
    options = {"thread_count": thread_count, "single_file_per_rank": files}
    save(store.uri, 0, **options)
    reused = save(store.uri, 1, **options)
    assert reused.files == len(store.shards()) - (2 if not files else min(2, thread_count))
    check(store.uri, 1)


def test_each_format_is_reused_by_itself_alone(store: Store) -> None:
    tensors = {"a": values((20, 30), 1), "b": values((7,), 2).to(torch.bfloat16), "c": values((8, 4), 3).t(), "step": 1}
    kinds = [SerializationFormat.TORCH_SAVE, SerializationFormat.SAFETENSORS, SerializationFormat.SAFETENSORS]
    for kind, items in zip(kinds, (0, 1, 4), strict=True):
        assert save(store.uri, 0, of=tensors, serialization_format=kind).items == items
        jobs.check(store.uri, tensors, no_dist=True)


def test_folders_of_steps_reuse_those_before(store: Store) -> None:
    for step, items in ((1, 0), (2, 40), (10, 40)):
        assert (save(f"{store.uri}/step-{step}", step, step_folders="step-{}").items >= items) is True
    assert len(store.shards()) == 3
    for step in (1, 2, 10):
        check(f"{store.uri}/step-{step}", step)


@needs_rank_indexes
def test_without_collectives_every_rank_reuses_its_own(store: Store, ranks) -> None:
    for step, items in ((0, 0), (1, 1)):
        for reused in ranks.run(save_own, store.uri, step):
            assert reused.items == items
    assert len(store.shards()) == 2 * len(ranks.run(rank_of))
    ranks.run(check_own, store.uri, 1)
    assert not intents(store)


def rank_of() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def own(step: int) -> dict[str, Any]:
    return {"frozen": values((20,), rank_of()), "moving": values((3,), 10 * rank_of() + step)}


def save_own(uri: str, step: int) -> Any:
    writer = S3StorageWriter(REGION, uri, incremental=True, **of_epoch(step))
    dcp.save(own(step), storage_writer=writer, use_collectives=False)
    return writer.reused


def check_own(uri: str, step: int) -> None:
    loaded = blank(own(step))
    jobs.load(loaded, f"{uri}/epoch_{step}")
    assert_same(loaded, own(step))


def save_together(uri: str, step: int) -> Any:
    writer = S3StorageWriter(REGION, uri, incremental=True, **of_epoch(step))
    dcp.save(state(step), storage_writer=writer, planner=FastSavePlanner())
    return writer.reused


def test_ranks_reuse_what_any_of_them_wrote(store: Store, ranks) -> None:
    assert all(reused.items == 0 for reused in ranks.run(save_together, store.uri, 0))
    reused = ranks.run(save_together, store.uri, 1)
    assert sum(each.items for each in reused) == len(pickle.loads(store.read(".metadata")).storage_data) - 2
    assert not intents(store)
    for step in (0, 1):
        ranks.run(jobs.check, f"{store.uri}/epoch_{step}", state(step))


def test_asynchronous_saves_reuse_too(store: Store) -> None:
    writers = [S3StorageWriter(REGION, store.uri, incremental=True, **of_epoch(step)) for step in range(2)]
    for step, writer in enumerate(writers):
        dcp.async_save(state(step), storage_writer=writer, no_dist=True).result()
    assert writers[1].reused.items > 40
    check(store.uri, 1)


def test_the_manager_passes_it_on_and_reports_it(store: Store) -> None:
    with CheckpointManager(store.uri, region=REGION, incremental=True, async_=True) as manager:
        first = manager.save(1, state(1)).result()
        second = manager.save(2, state(2)).result()
    assert (first.reused.items, second.reused.files) == (0, 1)
    assert second.bytes < first.bytes / 2
    assert "reused" in str(second)
    assert "reused" not in str(first)
    check(store.uri, 2)


@pytest.fixture
def caching() -> DefaultSavePlanner:
    """A planner that caches plans, and nothing cached before or after."""
    caches = [name for name in vars(SavePlanner) if name.startswith("_cached_")]
    for name in caches:
        getattr(SavePlanner, name).clear()
    try:
        yield lambda: DefaultSavePlanner(enable_plan_caching=True)
    finally:
        for name in caches:
            getattr(SavePlanner, name).clear()


@pytest.mark.parametrize("is_deleted", [True, False])
def test_what_a_cached_plan_says_of_a_base_is_never_used(store: Store, caching, is_deleted: bool) -> None:
    writer = S3StorageWriter(REGION, store.uri, incremental=True)
    same = state(0)
    save(store.uri, 0, of=same)  # a base, so that the first plan that is cached speaks of it
    dcp.save(same, storage_writer=writer, planner=caching(), no_dist=True)
    assert writer.reused.items > 40
    if is_deleted:
        for key in store.all_keys():
            store.client.delete_object(Bucket=store.bucket, Key=key)
    dcp.save(same, storage_writer=writer, planner=caching(), no_dist=True)
    jobs.check(store.uri, same, no_dist=True)
    if is_deleted:
        assert writer.reused.items == 0


class Doubling(DefaultSavePlanner):
    """A planner of others, which stores another dtype than it planned."""

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        return data.double() if isinstance(data, torch.Tensor) and data.dtype == torch.float32 else data


def test_planners_of_others_are_asked_for_what_is_stored(store: Store) -> None:
    tensors = {"x": values((4, 5), 1)}
    for items in (0, 1):
        assert save(store.uri, 0, of=tensors, planner=Doubling()).items == items
        jobs.check(store.uri, tensors, no_dist=True)
    assert save(store.uri, 0, of=tensors).items == 0, "another dtype is stored"
    # What was planned as it was stored is found by its place, what was not by its archive.
    assert save(store.uri, 0, of={"x": tensors["x"].double()}, planner=Doubling()).items == 0
    for stored in pickle.loads(store.read(".metadata")).storage_data.values():
        assert stored.data_offset > 0


def test_a_failed_save_leaves_the_base_and_nothing_of_its_own(store: Store, failure) -> None:
    save(store.uri, 0)
    before = store.listing()

    class Broken(DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            if write_item.index.fqn == "moving":
                raise ArithmeticError("broken on purpose")
            return super().resolve_data(write_item)

    assert isinstance(failure(save, store.uri, 1, planner=Broken()), ArithmeticError)
    assert store.listing() == before


def test_an_index_that_cannot_be_pickled_leaves_the_base(store: Store, failure, monkeypatch) -> None:
    save(store.uri, 0)
    before = store.listing()
    monkeypatch.setattr("s3dcp._native.write_index", lambda *_: 1 / 0)
    assert isinstance(failure(save, store.uri, 1), ZeroDivisionError)
    assert store.listing() == before


def test_a_reused_file_that_is_gone_before_the_commit_ends_the_save(store: Store, failure) -> None:
    save(store.uri, 0, **of_epoch(0))
    [first] = store.shards()

    class Deleting(DefaultSavePlanner):
        def resolve_data(self, write_item: Any) -> Any:
            store.delete(first)
            return super().resolve_data(write_item)

    error = failure(save, store.uri, 1, planner=Deleting(), **of_epoch(1))
    assert "is gone" in str(error)
    assert not store.shards()
    assert not intents(store)


def test_extensions_send_everything(store: Store) -> None:
    ZStandard = pytest.importorskip("torch.distributed.checkpoint._extension").ZStandard

    for _ in range(2):
        try:
            extensions = [ZStandard()]
        except ImportError:
            pytest.skip("no zstandard")
        assert save(store.uri, 0, _extensions=extensions).items == 0
    assert save(store.uri, 0).items == 0


def test_incremental_is_a_bool(store: Store) -> None:
    with pytest.raises(ValueError, match="incremental="):
        S3StorageWriter(REGION, store.uri, incremental="yes")  # type: ignore[arg-type]


def test_a_plain_save_writes_no_hashes(store: Store) -> None:
    dcp.save(state(0), storage_writer=S3StorageWriter(REGION, store.uri), no_dist=True)
    assert b"xxh3" not in store.read(".metadata")


def test_a_checkpoint_that_shares_files_is_copied_and_verified_like_any(store: Store) -> None:
    for step in range(2):
        save(store.uri, step, **of_epoch(step))
    copied = f"s3://{store.bucket}/elsewhere"
    copy(f"{store.uri}/epoch_1", copied, region=REGION)
    assert verify(copied, region=REGION).good
    store.client.delete_object(Bucket=store.bucket, Key=f"{store.path}/.metadata")
    S3FsspecFileSystem().rm(f"{store.uri}/epoch_0", recursive=True)
    assert verify(f"{store.uri}/epoch_1", region=REGION).good
    for uri in (copied, f"{store.uri}/epoch_1"):
        check(uri, 1)
    assert save(copied, 1).items == len(pickle.loads(store.read("epoch_1/.metadata")).storage_data)
