"""Spans and metrics of saves and loads, as OpenTelemetry's SDK gets them."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from opentelemetry import trace
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan

from s3dcp import AlreadyExists, CheckpointManager, HexPrefixStrategy, S3StorageReader, S3StorageWriter, _telemetry
from support import async_jobs, jobs, pages
from support.spans import Told, in_files
from support.states import blank, values
from support.store import REGION, Store

STATE = {"w": values((1 << 20,)), "b": values((10,))}
ITEMS = len(STATE)


@functools.cache
def _sdk() -> Told:
    return Told()


@pytest.fixture
def told() -> Told:
    """The SDK; a save that another test left unfinished is told of before."""
    sdk = _sdk()
    _telemetry._give_up()
    sdk.forget()
    return sdk


@pytest.fixture
def user() -> Any:
    """The user's own span."""
    with trace.get_tracer("training").start_as_current_span("train step") as span:
        yield span


def test_a_save_is_a_span_with_its_phases_in_the_span_of_the_caller(store: Store, told: Told, user: Any) -> None:
    writer = S3StorageWriter(REGION, store.uri, prefix_strategy=HexPrefixStrategy(epoch_num=7))
    dcp.save(STATE, storage_writer=writer)
    [span] = told.spans("s3dcp.save")
    assert span.parent == user.get_span_context()
    assert span.status.is_ok or span.status.is_unset
    facts = dict(span.attributes)
    assert facts["aws.s3.bucket"] == store.bucket
    assert facts["s3dcp.path"] == store.uri
    assert (facts["s3dcp.rank"], facts["s3dcp.world_size"], facts["s3dcp.epoch"]) == (0, 1, 7)
    assert facts["s3dcp.save_id"] == writer.save_id
    assert facts["s3dcp.items"] == ITEMS
    assert facts["s3dcp.bytes"] <= facts["s3dcp.bytes_sent"]
    assert facts["s3dcp.requests"] >= 3
    assert 0 < facts["s3dcp.request.latency.p50"] <= facts["s3dcp.request.latency.max"]
    phases = told.children(span)
    assert [phase.name for phase in phases] == ["s3dcp.plan", "s3dcp.write", "s3dcp.finish"]
    times = [span.start_time, *(time for phase in phases for time in (phase.start_time, phase.end_time)), span.end_time]
    assert times == sorted(times)


def test_a_load_is_a_span_with_its_phases_in_the_span_of_the_caller(store: Store, told: Told, user: Any) -> None:
    jobs.save(STATE, store.uri, prefix_strategy=HexPrefixStrategy(epoch_num=7))
    jobs.check(f"{store.uri}/epoch_7", STATE)
    [span] = told.spans("s3dcp.load")
    assert span.parent == user.get_span_context()
    facts = dict(span.attributes)
    assert (facts["s3dcp.rank"], facts["s3dcp.world_size"], facts["s3dcp.epoch"]) == (0, 1, 7)
    assert facts["s3dcp.items"] == ITEMS
    assert facts["s3dcp.bytes_received"] > 4 << 20
    phases = told.children(span)
    assert [phase.name for phase in phases] == ["s3dcp.read_metadata", "s3dcp.plan", "s3dcp.read"]


def test_metrics_count_what_saves_and_loads_do(store: Store, told: Told) -> None:
    jobs.save(STATE, store.uri)
    jobs.check(store.uri, STATE)
    [save], [load] = told.spans("s3dcp.save"), told.spans("s3dcp.load")
    assert (told.metric("s3dcp.saves"), told.metric("s3dcp.loads"), told.metric("s3dcp.failures")) == (1, 1, 0)
    for span, operation in ((save, "save"), (load, "load")):
        for name in ("bytes_sent", "bytes_received", "requests", "retries", "slow_downs"):
            of = {"operation": operation, "bucket": store.bucket}
            assert told.metric(f"s3dcp.{name}", **of) == span.attributes[f"s3dcp.{name}"], name
        assert told.metric("s3dcp.duration", operation=operation) == 1
        assert told.metric("s3dcp.request.latency", operation=operation) == 4
    assert told.metric("s3dcp.stall.duration") == 0, "nothing was staged"


def test_slow_downs_and_retries_are_counted(store: Store, told: Told, s3dcp_server: Any) -> None:
    s3dcp_server.inject("error:SlowDown on=PutObject times=2")
    s3dcp_server.inject("error:InternalError on=PutObject times=1")
    jobs.save(STATE, store.uri)
    assert told.metric("s3dcp.slow_downs", operation="save") == 2
    assert told.metric("s3dcp.retries", operation="save") == 3


def test_an_async_save_is_in_the_span_that_its_caller_was_in(store: Store, told: Told, user: Any) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    future = dcp.async_save(STATE, storage_writer=writer)
    with trace.get_tracer("training").start_as_current_span("next step"):
        future.result()
    [span] = told.spans("s3dcp.save")
    assert span.parent == user.get_span_context()
    phases = told.children(span)
    assert [phase.name for phase in phases] == ["s3dcp.stage", "s3dcp.plan", "s3dcp.write", "s3dcp.finish"]
    assert span.start_time == phases[0].start_time
    assert told.metric("s3dcp.stall.duration") == 1


def test_a_save_after_an_async_one_is_not_taken_for_it(store: Store, told: Told) -> None:
    """A state that was staged, and never saved in another thread, says nothing of the next save."""
    writer = S3StorageWriter(REGION, store.uri)
    writer.stage(STATE)
    for _ in range(2):
        dcp.save(STATE, storage_writer=writer)
    assert [span.parent for span in told.spans("s3dcp.save")] == [None, None]
    assert told.spans("s3dcp.stage") == []


@pytest.mark.distributed
@pytest.mark.slow
def test_an_async_save_in_a_process_of_its_own_is_in_the_span_of_its_caller(
    store: Store, groups: Any, tmp_path: Path
) -> None:
    callers = groups(2).run(async_jobs.save_in_process_with_spans, store.uri, tmp_path)
    found = list(in_files(tmp_path))
    saves = [span for span in found if span["name"] == "s3dcp.save"]
    assert sorted(span["attributes"]["s3dcp.rank"] for span in saves) == [0, 1]
    assert {span["attributes"]["s3dcp.world_size"] for span in saves} == {2}
    assert {span["parent_id"] for span in saves} == {f"0x{span_id:016x}" for span_id in callers}
    ids = {span["context"]["span_id"] for span in saves}
    staged = [span for span in found if span["name"] == "s3dcp.stage"]
    assert {span["parent_id"] for span in staged} == ids
    commits = [span for span in found if span["name"] == "s3dcp.finish"]
    assert len(commits) == 1, "one rank commits"


def test_a_failed_save_tells_its_error(store: Store, told: Told) -> None:
    jobs.save(STATE, store.uri)
    told.forget()
    with pytest.raises(CheckpointException):
        jobs.save(STATE, store.uri, overwrite=False)
    [span] = told.spans("s3dcp.save")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.status.description.startswith("AlreadyExists: ")
    assert span.attributes["error.type"] == "AlreadyExists"
    [event] = span.events
    assert event.name == "exception"
    [phase] = told.children(span)
    assert (phase.name, phase.status.status_code) == ("s3dcp.plan", trace.StatusCode.ERROR)
    assert told.metric("s3dcp.saves") == 1
    assert told.metric("s3dcp.failures", operation="save", error="AlreadyExists") == 1


def test_a_failed_save_is_told_once_and_keeps_nothing_alive(store: Store, told: Told) -> None:
    jobs.save(STATE, store.uri)
    told.forget()
    writer = S3StorageWriter(REGION, store.uri, overwrite=False)
    state = {"w": values((1000,))}
    tensor = weakref.ref(state["w"])
    with contextlib.suppress(CheckpointException):
        dcp.save(state, storage_writer=writer)
    del state
    gc.collect()
    assert tensor() is None
    with pytest.raises(AlreadyExists):
        writer.prepare_local_plan(SavePlan([]))
    _telemetry._give_up()
    assert len(told.spans("s3dcp.save")) == 1


def test_a_save_that_s3_refuses_tells_the_request(store: Store, told: Told, s3dcp_server: Any) -> None:
    s3dcp_server.inject("error:AccessDenied on=PutObject key=*.distcp times=1")
    with pytest.raises(CheckpointException):
        jobs.save(STATE, store.uri)
    [span] = told.spans("s3dcp.save")
    assert span.attributes["error.type"] == "Denied"
    assert span.attributes["aws.request_id"]
    assert [phase.name for phase in told.children(span)] == ["s3dcp.plan", "s3dcp.write"]


def test_a_failed_load_tells_its_error(store: Store, told: Told) -> None:
    with pytest.raises(CheckpointException):
        jobs.check(store.uri, STATE)
    jobs.save(STATE, store.uri)
    store.delete(store.shards()[0])
    with pytest.raises(CheckpointException):
        jobs.check(store.uri, STATE)
    no_index, no_file = told.spans("s3dcp.load")
    assert [span.attributes["error.type"] for span in (no_index, no_file)] == ["NotFound", "NotFound"]
    assert {phase.name for phase in told.children(no_index)} == {"s3dcp.read_metadata"}
    assert told.children(no_file)[-1].name == "s3dcp.read"
    assert told.metric("s3dcp.failures", operation="load") == 2


def test_reading_an_index_is_no_load(store: Store, told: Told) -> None:
    jobs.save(STATE, store.uri)
    S3StorageReader(REGION, store.uri).read_metadata()
    _telemetry._give_up()
    assert told.spans("s3dcp.load") == []


class _FailsAtLast(dcp.DefaultSavePlanner):
    """Fails where the writer does not see it: between its write and the commit."""

    def finish_plan(self, new_plan: Any) -> Any:
        raise OSError("no plan")


def test_a_save_that_nobody_went_on_with_is_told_by_the_next(store: Store, told: Told) -> None:
    with pytest.raises(CheckpointException):
        jobs.save(STATE, store.uri, planner=_FailsAtLast())
    assert told.spans("s3dcp.save") == []
    jobs.save(STATE, store.uri)
    failed, good = told.spans("s3dcp.save")
    assert failed.attributes["error.type"] == "Unfinished"
    assert failed.end_time <= good.start_time
    assert "error.type" not in good.attributes


def test_a_save_left_by_a_thread_that_ended_is_told(store: Store, told: Told) -> None:
    def save() -> None:
        with pytest.raises(CheckpointException):
            jobs.save(STATE, store.uri, planner=_FailsAtLast())

    thread = threading.Thread(target=save)
    thread.start()
    thread.join()
    jobs.save(STATE, store.uri)
    assert [span.attributes.get("error.type") for span in told.spans("s3dcp.save")] == ["Unfinished", None]


def test_an_exporter_that_fails_fails_nothing(store: Store, told: Told) -> None:
    told.exporter.fails = True
    jobs.save(STATE, store.uri)
    jobs.check(store.uri, STATE)


@pytest.mark.parametrize("where", ["trace.get_tracer", "metrics.get_meter", "context.get_current"])
def test_an_sdk_that_misbehaves_fails_nothing(
    store: Store, told: Told, monkeypatch: Any, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken")

    _telemetry._instruments.cache_clear()
    monkeypatch.setattr(f"opentelemetry.{where}", broken)
    with caplog.at_level(logging.WARNING, logger="s3dcp"):
        dcp.async_save(STATE, storage_writer=S3StorageWriter(REGION, store.uri)).result()
        jobs.check(store.uri, STATE)
    assert "RuntimeError('broken')" in caplog.text


def test_a_manager_reports_the_stall_that_telemetry_has(store: Store, told: Told, user: Any) -> None:
    with CheckpointManager(store.uri, region=REGION, async_=True, beat_seconds=0.2) as checkpoints:
        report = checkpoints.save(3, dict(STATE)).result()
    [span] = told.spans("s3dcp.save")
    assert span.parent == user.get_span_context()
    assert span.attributes["s3dcp.epoch"] == 3
    stage = told.children(span)[0]
    assert stage.name == "s3dcp.stage"
    assert (stage.end_time - stage.start_time) / 1e9 == pytest.approx(report.stall_seconds, abs=0.5)
    assert report.bytes >= span.attributes["s3dcp.bytes_sent"]


def test_a_safetensors_model_is_saved_and_loaded_in_spans(store: Store, told: Told, user: Any) -> None:
    from s3dcp.huggingface import S3HuggingFaceReader, S3HuggingFaceWriter

    dcp.async_save(STATE, storage_writer=S3HuggingFaceWriter(REGION, store.uri)).result()
    dcp.load(blank(STATE), storage_reader=S3HuggingFaceReader(REGION, store.uri))
    [save], [load] = told.spans("s3dcp.save"), told.spans("s3dcp.load")
    assert (save.parent, load.parent) == (user.get_span_context(), user.get_span_context())
    phases = ["s3dcp.stage", "s3dcp.plan", "s3dcp.write", "s3dcp.finish"]
    assert [phase.name for phase in told.children(save)] == phases


@pytest.mark.distributed
def test_every_rank_tells_of_its_own_part(store: Store, groups: Any) -> None:
    by_rank = groups(2).run(async_jobs.spans_of_a_save, store.uri)
    for rank, spans in enumerate(by_rank):
        phases = ["s3dcp.plan", "s3dcp.write", *(["s3dcp.finish"] if rank == 0 else [])]
        assert [name for name, _, _ in spans] == [*phases, "s3dcp.save"]
        assert spans[-1][1:] == (rank, 2)


def test_the_page_names_all_spans_attributes_and_metrics(store: Store, told: Told) -> None:
    writer = S3StorageWriter(REGION, store.uri, prefix_strategy=HexPrefixStrategy(epoch_num=7), incremental=True)
    dcp.async_save(STATE, storage_writer=writer).result()
    jobs.check(f"{store.uri}/epoch_7", STATE)
    spans = [span for name in ("s3dcp.save", "s3dcp.load") for span in told.spans(name)]
    names = {name for span in spans for name in (span.name, *span.attributes)}
    names |= {child.name for span in spans for child in told.children(span)} | told.metrics()
    section = pages.text("docs/operations.md").split("## Spans and metrics", 1)[1]
    said = set(re.findall(r"`((?:s3dcp|aws|error)\.[a-z0-9_.]+)`", section))
    said |= {f"s3dcp.request.latency{end}" for end in re.findall(r"`(\.[a-z0-9]+)`", section)}
    assert names - said == set()
    of_failures = {"s3dcp.failures", "error.type", "aws.request_id"}
    of_metrics = {"s3dcp.operation", "s3dcp.percentile"}
    assert said - names == of_failures | of_metrics


WITHOUT = """
import builtins, sys
plain = builtins.__import__
asked = []
def without(name, *args, **kwargs):
    if name.split(".")[0] == "opentelemetry":
        asked.append(name)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain(name, *args, **kwargs)
builtins.__import__ = without
from support import jobs
from support.states import training_state
assert not asked, "importing s3dcp asks for nothing"
for number in range(3):
    jobs.save(training_state(number), sys.argv[1])
    jobs.check(sys.argv[1], training_state(number))
assert len(asked) == 1, asked
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
from s3dcp import _telemetry
assert not _telemetry._open
"""


def test_where_opentelemetry_is_not_installed_it_is_asked_for_once(store: Store) -> None:
    run = [sys.executable, "-W", "ignore", "-c", WITHOUT, store.uri]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_opentelemetry() -> None:
    code = "import s3dcp, sys; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
