"""Asynchronous saves, overlapping saves on one writer, writers and readers that travel between processes."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner

import s3dcp._client
from s3dcp import HexPrefixStrategy, S3ClientConfig, S3FileSystem, S3StorageReader, S3StorageWriter, _native
from s3dcp._save import staging
from s3dcp._tensors import host_buffer
from support import async_jobs, jobs
from support.states import assert_same, blank, training_state, values
from support.store import REGION, Store


def test_an_async_save_stores_the_values_of_the_moment_it_was_called(store: Store) -> None:
    state = training_state()
    writer = S3StorageWriter(REGION, store.uri)
    future = dcp.async_save(state, storage_writer=writer)
    for tensor in state["model"].values():
        tensor.zero_()
    future.result()
    jobs.check(store.uri, training_state())


def test_an_async_save_that_fails_says_so_in_its_future(store: Store, failure) -> None:
    jobs.save(training_state(), store.uri)
    before = store.listing()
    writer = S3StorageWriter(REGION, store.uri, overwrite=False)
    future = dcp.async_save(training_state(1), storage_writer=writer)
    assert isinstance(failure(future.result), FileExistsError)
    assert store.listing() == before


class Together(DefaultSavePlanner):
    """Waits in the middle of the write until another save is there too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.barrier: threading.Barrier | None = barrier

    def resolve_data(self, write_item: Any) -> Any:
        barrier, self.barrier = self.barrier, None
        if barrier is not None:
            barrier.wait(60)
        return super().resolve_data(write_item)


def test_overlapping_async_saves_on_one_writer_both_work(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri, thread_count=2)
    barrier = threading.Barrier(3)
    futures = [
        dcp.async_save(
            training_state(number),
            checkpoint_id=f"{store.uri}/{number}",
            storage_writer=writer,
            planner=Together(barrier),
        )
        for number in range(3)
    ]
    for future in futures:
        future.result()
    for number in range(3):
        jobs.check(f"{store.uri}/{number}", training_state(number))


def test_overlapping_async_saves_of_one_path_leave_one_whole_checkpoint(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    barrier = threading.Barrier(2)
    futures = [
        dcp.async_save(training_state(number), storage_writer=writer, planner=Together(barrier)) for number in range(2)
    ]
    errors = [future.exception() for future in futures]
    assert [error is None for error in errors].count(True) == 1
    winner = [error is None for error in errors].index(True)
    jobs.check(store.uri, training_state(winner))


def test_overlapping_saves_of_views_do_not_wait_for_each_others_buffers(store: Store, monkeypatch) -> None:
    """Every save holds a buffer back in a part that is not full, and there are fewer buffers than saves."""
    pool = _native.StagingPool(host_buffer, staging.BUFFER_BYTES, count=2, patience=0.05)
    monkeypatch.setattr(staging, "_pool", pool)
    barrier = threading.Barrier(4)

    class AfterTheFirst(Together):
        count = 0

        def resolve_data(self, write_item: Any) -> Any:
            self.count += 1
            return super().resolve_data(write_item) if self.count > 1 else self.lookup_object(write_item.index)

    states = [{f"t{item}": values((60, 50), 10 * number + item).t() for item in range(5)} for number in range(4)]
    writer = S3StorageWriter(REGION, store.uri)
    with ThreadPoolExecutor(4) as threads:
        saves = [
            threads.submit(
                dcp.save,
                state,
                checkpoint_id=f"{store.uri}/{number}",
                storage_writer=writer,
                planner=AfterTheFirst(barrier),
            )
            for number, state in enumerate(states)
        ]
        for save in saves:
            save.result(60)
    for number, state in enumerate(states):
        jobs.check(f"{store.uri}/{number}", state)


def test_threads_may_save_and_load_at_once(store: Store) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(3):
                state = training_state(10 * number + turn)
                jobs.save(state, f"{store.uri}/{number}")
                jobs.check(f"{store.uri}/{number}", state)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_copy_that_is_kept_is_written_to_again(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri, cache_staged_state_dict=True)
    for number in range(3):
        state = {"x": values((1000, 30), number), "step": number}
        dcp.async_save(state, storage_writer=writer).result()
        jobs.check(store.uri, state)
    first, second = (writer.stage(state)["x"].data_ptr() for _ in range(2))
    assert first == second != state["x"].data_ptr()
    assert len(pickle.dumps(writer)) < 30_000, "without its memory"


@pytest.mark.distributed
@pytest.mark.slow
def test_an_async_save_in_a_process_of_its_own_works(store: Store, groups) -> None:
    group = groups(2)
    group.run(async_jobs.save_in_process, store.uri)
    group.run(jobs.check_training_state, store.uri)


@pytest.mark.distributed
def test_an_async_save_in_a_thread_of_every_rank_works(store: Store, groups) -> None:
    group = groups(2)
    group.run(async_jobs.save_in_thread, store.uri)
    group.run(jobs.check_training_state, store.uri)


def arguments() -> dict[str, Any]:
    return {"s3client_config": S3ClientConfig(max_attempts=3), "endpoint_url": None}


def test_a_writer_pickles_before_and_after_use(store: Store) -> None:
    writer = S3StorageWriter(
        REGION, store.uri, prefix_strategy=HexPrefixStrategy(epoch_num=1), thread_count=2, **arguments()
    )
    fresh = pickle.loads(pickle.dumps(writer))
    for number, each in enumerate((writer, fresh)):
        dcp.save(training_state(number), storage_writer=each)
        jobs.check(store.uri, training_state(number))
    again = pickle.loads(pickle.dumps(fresh))
    dcp.save(training_state(5), storage_writer=again)
    jobs.check(f"{store.uri}/epoch_1", training_state(5))
    assert again.prefix_strategy == writer.prefix_strategy
    assert again.thread_count == 2


def test_a_reader_pickles_before_and_after_use(store: Store) -> None:
    jobs.save(training_state(), store.uri)
    reader = S3StorageReader(REGION, store.uri, verify=False, **arguments())
    for _ in range(3):
        loaded = blank(training_state())
        dcp.load(loaded, storage_reader=reader)
        assert_same(loaded, training_state())
        reader = pickle.loads(pickle.dumps(reader))
    assert not reader.verify


def test_a_pickled_reader_carries_no_index(store: Store) -> None:
    state = {f"tensor number {number}": torch.ones(1) for number in range(500)}
    jobs.save(state, store.uri)
    reader = S3StorageReader(REGION, store.uri)
    dcp.load(state, storage_reader=reader)
    assert len(pickle.dumps(reader)) < 5_000


def test_nothing_is_connected_before_first_use(monkeypatch) -> None:
    """Objects are made, pickled and printed without a client, even where no endpoint could be reached."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    before = dict(s3dcp._client._clients)
    config = S3ClientConfig(max_attempts=1, deadline=1234.5)
    made = [
        S3StorageWriter(REGION, "s3://bucket/path", s3client_config=config),
        S3StorageReader(REGION, "s3://bucket/path", s3client_config=config),
        S3FileSystem(REGION, s3client_config=config),
    ]
    for each in made:
        repr(pickle.loads(pickle.dumps(each)))
    assert s3dcp._client._clients == before


def test_writers_and_readers_of_the_same_settings_share_a_client(store: Store) -> None:
    writer = S3StorageWriter(REGION, store.uri, s3client_config=S3ClientConfig())
    reader = S3StorageReader(REGION, f"{store.uri}/other")
    assert writer.fs.client is reader.fs.client
    other = S3StorageReader(REGION, store.uri, s3client_config=S3ClientConfig(max_attempts=2))
    assert other.fs.client is not reader.fs.client


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_loads_with_connections_of_its_own(store: Store, groups) -> None:
    jobs.save(training_state(), store.uri)
    groups(2).run(async_jobs.load_in_forked_child, store.uri)
