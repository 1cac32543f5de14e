"""Every call ends: within its deadline on a dead service, at once on a signal; nothing half-done is left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

import s3dcp
from s3dcp import Corrupt, Denied, S3ClientConfig, S3FileSystem, Throttled, Timeout, testing
from s3dcp._compat import HAS_RANK_INDEXES
from support import jobs, wire
from support.children import Child, names_of_threads, raised_by
from support.ranks import RankFailed
from support.states import blank, values
from support.store import REGION, Store
from support.wire import Between, Request, Scripted

MIB = 1024 * 1024
# All other limits are longer than SOON, so a call that ends by then ended by its deadline, however busy the machine is.
DEADLINE = 1.0
SOON = 25.0
IMPATIENT = S3ClientConfig(deadline=DEADLINE, connect_timeout=60, read_timeout=60, part_size=5 * MIB)


def large() -> dict[str, torch.Tensor]:
    """Three parts."""
    return {"x": values((12 * MIB // 4,), 1)}


def small() -> dict[str, Any]:
    """One PutObject."""
    return {"x": values((40, 3), 1), "step": 3}


def calls(uri: str, url: str) -> dict[str, Callable[[], Any]]:
    """Everything that talks to the service, against `url`."""
    settings = {"endpoint_url": url, "s3client_config": IMPATIENT}
    fs = S3FileSystem(REGION, **settings)

    def read() -> None:
        with fs.create_stream(uri, "rb") as stream:
            stream.read()

    def write(size: int) -> None:
        with fs.create_stream(uri, "wb") as stream:
            stream.write(bytes(size))

    every = {
        "save": lambda: jobs.save(large(), uri, **settings),
        "save of an epoch": lambda: jobs.save(small(), uri, ("Hex", {"epoch_num": 1}), **settings),
        "save without collectives": lambda: jobs.save(small(), uri, use_collectives=False, **settings),
        "load": lambda: jobs.load(blank(small()), uri, **settings),
        "ls": lambda: fs.ls(uri),
        "exists": lambda: fs.exists(uri),
        "rm_file": lambda: fs.rm_file(uri),
        "rename": lambda: fs.rename(uri, f"{uri}-new"),
        "read": read,
        "write": lambda: write(10),
        "write in parts": lambda: write(12 * MIB),
    }
    if not HAS_RANK_INDEXES:
        del every["save without collectives"]
    return every


def timed(call: Callable[[], Any]) -> tuple[BaseException | None, float]:
    began = time.monotonic()
    error = raised_by(call)
    return error, time.monotonic() - began


def end_soon(names: dict[str, Callable[[], Any]]) -> dict[str, BaseException | None]:
    """Run all calls at once; each must end soon. What each raised."""
    with ThreadPoolExecutor(len(names)) as threads:
        results = dict(zip(names, threads.map(timed, names.values()), strict=True))
    late = {name: seconds for name, (_, seconds) in results.items() if seconds > SOON}
    assert not late
    return {name: error for name, (error, _) in results.items()}


@pytest.mark.parametrize(
    "dead",
    [
        lambda: Scripted(lambda _: wire.silence),
        lambda: Scripted(lambda _: wire.slow_head),
        wire.black_hole,
        wire.refusing,
    ],
    ids=["silent", "slow", "black hole", "refusing"],
)
@pytest.mark.usefixtures("s3dcp_server")
def test_every_call_ends_by_its_deadline_on_a_dead_service(dead: Callable[[], AbstractContextManager[Any]]) -> None:
    with dead() as service:
        url = service if isinstance(service, str) else service.url
        for name, error in end_soon(calls("s3://bucket/path", url)).items():
            assert isinstance(error, (TimeoutError, ConnectionError)), f"{name}: {error!r}"
            assert isinstance(error, s3dcp.S3DcpError), f"{name}: {error!r}"
            assert error.retryable
            assert error.attempts >= 1
            assert 0 < error.elapsed < SOON
            assert error.bucket == "bucket"


@pytest.mark.usefixtures("s3dcp_server")
def test_an_answer_that_never_ends_is_given_up_by_the_deadline() -> None:
    def script(request: Request) -> wire.Act:
        return wire.answer("404 Not Found") if request.method == "HEAD" else wire.slow_body

    with Scripted(script) as service:
        every = calls("s3://bucket/path", service.url)
        for name, error in end_soon({name: every[name] for name in ("save", "load", "ls", "rm_file", "write")}).items():
            assert isinstance(error, Timeout), f"{name}: {error!r}"


@pytest.mark.parametrize("length", ["Content-Length: 10995116277760", "Transfer-Encoding: chunked"])
@pytest.mark.usefixtures("s3dcp_server")
def test_an_index_of_absurd_length_is_not_taken(length: str) -> None:
    def endless(service: wire.Wire, connection: Any) -> None:
        connection.sendall(f'HTTP/1.1 200 OK\r\nETag: "e"\r\n{length}\r\n\r\n'.encode())
        while not service.closed.wait(0.01):
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")

    def script(request: Request) -> wire.Act:
        if request.method == "GET" and ".metadata" in request.target:
            return endless
        if request.method == "HEAD":
            return wire.answer("404 Not Found")
        return wire.answer("200 OK", b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")

    with Scripted(script) as service:
        every = calls("s3://bucket/path", service.url)
        errors = end_soon({name: every[name] for name in ("save", "load")})
    assert isinstance(errors["save"], s3dcp.S3DcpError)
    if "Length" in length:
        assert isinstance(errors["load"], Corrupt)
        assert "10995116277760" in str(errors["load"])
    else:
        assert isinstance(errors["load"], Timeout)


# -- the service dies in the middle

STAGES: dict[str, Callable[[Request], bool]] = {
    "planning": lambda request: request.method == "HEAD",
    "an upload begins": lambda request: request.method == "POST" and request.target.endswith("?uploads"),
    "a part": lambda request: request.is_part(2),
    "completion": lambda request: request.method == "POST" and "uploadId=" in request.target,
    "commit": lambda request: request.method == "PUT" and request.target.endswith("/.metadata"),
    "clean-up": lambda request: request.method == "POST" and "?delete" in request.target,
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_save_ends_by_its_deadline_wherever_the_service_falls_silent(
    store: Store, s3dcp_server: testing.Server, stage: str
) -> None:
    jobs.save(small(), store.uri)
    settings = {"s3client_config": IMPATIENT}
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.silence if STAGES[stage](request) else None
        if stage == "clean-up":
            with pytest.warns(UserWarning, match="shard files of the replaced checkpoint may stay"):
                error, seconds = timed(lambda: jobs.save(large(), store.uri, endpoint_url=between.url, **settings))
            assert error is None
        else:
            error, seconds = timed(lambda: jobs.save(large(), store.uri, endpoint_url=between.url, **settings))
            assert isinstance(error, Timeout)
            assert error.attempts == 1
        assert any(map(STAGES[stage], between.seen))
    assert seconds < SOON
    jobs.check(store.uri, small() if error else large())
    if stage != "an upload begins":
        assert store.uploads() == []


def test_a_service_that_does_not_let_an_upload_be_aborted_costs_one_more_deadline(
    store: Store, s3dcp_server: testing.Server
) -> None:
    def rule(request: Request) -> wire.Act | None:
        if request.method == "DELETE":
            return wire.silence
        return wire.error("403 Forbidden", "AccessDenied") if request.is_part(2) else None

    with Between(s3dcp_server.endpoint_url, rule) as between:
        settings = {"endpoint_url": between.url, "s3client_config": IMPATIENT}
        error, seconds = timed(lambda: jobs.save(large(), store.uri, thread_count=1, **settings))
        assert isinstance(error, Denied)
        assert any(request.method == "DELETE" for request in between.seen)
    assert seconds < SOON


def test_a_load_ends_by_its_deadline_when_the_service_falls_silent(store: Store, s3dcp_server: testing.Server) -> None:
    jobs.save(large(), store.uri)
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.slow_body if ".distcp" in request.target else None
        settings = {"endpoint_url": between.url, "s3client_config": IMPATIENT}
        error, seconds = timed(lambda: jobs.load(blank(large()), store.uri, **settings))
    assert isinstance(error, s3dcp.S3DcpError)
    assert seconds < SOON


# -- what an error says


def test_an_error_names_what_failed_where_and_how_often(store: Store, s3dcp_server: testing.Server) -> None:
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.error("503 Slow Down", "SlowDown") if request.is_part(2) else None
        settings = S3ClientConfig(part_size=5 * MIB, deadline=4)
        error = raised_by(jobs.save, large(), store.uri, endpoint_url=between.url, s3client_config=settings)
    assert isinstance(error, Throttled)
    assert error.bucket == store.bucket
    assert error.key is not None
    assert error.key.startswith(f"{store.path}/__0_0-")
    assert (error.part, error.status, error.code, error.request_id) == (2, 503, "SlowDown", "RID1")
    assert 0 < error.elapsed < 60
    attempts = f"{error.attempts} attempts in"
    for text in (f"s3://{store.bucket}/{error.key}", "part 2", "503 SlowDown", "request id RID1", attempts):
        assert text in str(error)


@pytest.mark.distributed
def test_an_error_of_one_rank_reaches_all_with_its_rank_and_its_place(
    store: Store, s3dcp_server: testing.Server, groups: Callable[[int], Any]
) -> None:
    def rule(request: Request) -> wire.Act | None:
        is_rank_1 = request.method == "PUT" and "/__1_0-" in request.target
        return wire.error("403 Forbidden", "AccessDenied", "No writes for you.") if is_rank_1 else None

    with Between(s3dcp_server.endpoint_url, rule) as between, pytest.raises(RankFailed) as caught:
        groups(2).run(jobs.save_training_state, store.uri, endpoint_url=between.url)
    error = caught.value.error
    assert caught.value.rank == 0
    assert isinstance(error, CheckpointException)
    ((rank, (cause, _)),) = error.failures.items()
    assert rank == 1
    assert isinstance(cause, Denied)
    assert cause.key is not None
    assert "/__1_0-" in cause.key
    for text in ("RANK 1", "No writes for you.", cause.key, "request id RID1"):
        assert text in str(error)


# -- signals


class Terminated(BaseException):
    """What a handler of SIGTERM raises, as torchrun's does."""


def terminate(number: int, frame: Any) -> None:
    raise Terminated


def stop_and_end(uri: str, url: str) -> tuple[str, set[str]]:
    """A save that a signal stops; the process ends right after it."""
    signal.signal(signal.SIGTERM, terminate)
    settings = S3ClientConfig(part_size=5 * MIB)
    error = raised_by(jobs.save, large(), uri, endpoint_url=url, s3client_config=settings, thread_count=2)
    return type(error).__name__, names_of_threads()


HELD = {stage: STAGES[stage] for stage in ("planning", "a part", "completion", "commit")}


@pytest.mark.parametrize(
    ("number", "raises", "stage"),
    [
        *((signal.SIGINT, "KeyboardInterrupt", stage) for stage in HELD),
        *((signal.SIGTERM, "Terminated", stage) for stage in ("a part", "commit")),
    ],
    ids=str,
)
def test_a_signal_ends_a_save_at_once_and_leaves_nothing_of_it(
    store: Store, s3dcp_server: testing.Server, number: signal.Signals, raises: str, stage: str
) -> None:
    jobs.save(small(), store.uri)
    before = store.listing()
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.silence if HELD[stage](request) else None
        child = Child(stop_and_end, store.uri, between.url)
        between.wait_for(HELD[stage])
        began = time.monotonic()
        os.kill(child.pid, number)
        name, threads = child.result()
        seconds = time.monotonic() - began
    assert name == raises
    assert threads <= {"MainThread", "s3dcp"}
    assert seconds < SOON
    assert store.uploads() == []
    jobs.check(store.uri, small())
    if stage != "commit":
        assert before.items() <= store.listing().items()


def test_a_second_signal_does_not_wait_for_an_upload_to_be_aborted(store: Store, s3dcp_server: testing.Server) -> None:
    """The service does not say whether the upload has begun."""
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.silence if STAGES["an upload begins"](request) else None
        child = Child(stop_and_end, store.uri, between.url)
        between.wait_for(STAGES["an upload begins"])
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(child.pid, signal.SIGINT)
        assert child.result()[0] == "KeyboardInterrupt"
        assert time.monotonic() - began < SOON


def test_an_upload_that_begins_while_the_signal_comes_is_aborted_too(
    store: Store, s3dcp_server: testing.Server
) -> None:
    """Its id is not known yet when the save is given up."""
    go_on = threading.Event()

    def rule(request: Request) -> None:
        if STAGES["an upload begins"](request):
            go_on.wait(60)

    with Between(s3dcp_server.endpoint_url, rule) as between:
        child = Child(stop_and_end, store.uri, between.url)
        between.wait_for(STAGES["an upload begins"])
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.5)
        go_on.set()
        assert child.result()[0] == "KeyboardInterrupt"
        assert any(request.method == "DELETE" for request in between.seen)
    assert store.uploads() == []


def stop_and_go_on(uri: str, held: str, url: str) -> tuple[list[str], set[str]]:
    """A save, a load and a stream that signals stop, one after the other, and the same where nothing is held."""
    settings: dict[str, Any] = {"endpoint_url": url, "s3client_config": S3ClientConfig(part_size=5 * MIB)}
    fs = S3FileSystem(REGION, **settings)

    def write() -> None:
        with fs.create_stream(f"{held}/stream", "wb") as stream:
            stream.write(bytes(12 * MIB))

    stopped = [
        raised_by(jobs.save, large(), f"{held}/save", **settings),
        raised_by(jobs.load, blank(large()), f"{held}/load", **settings),
        raised_by(write),
    ]
    jobs.save(large(), uri, **settings)
    jobs.check(uri, large(), **settings)
    return [type(error).__name__ for error in stopped], names_of_threads()


def test_after_an_interrupt_the_same_process_saves_and_loads(store: Store, s3dcp_server: testing.Server) -> None:
    held = f"{store.uri}/held"
    jobs.save(large(), f"{held}/load")
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.silence if "/held/" in request.target and moves_data(request) else None
        child = Child(stop_and_go_on, store.uri, held, between.url)
        for what in ("save", "load", "stream"):
            between.wait_for(lambda request, what=what: f"/held/{what}" in request.target and moves_data(request))
            os.kill(child.pid, signal.SIGINT)
        names, threads = child.result()
    assert names == ["KeyboardInterrupt"] * 3
    assert threads <= {"MainThread", "s3dcp"}
    assert store.uploads() == []
    jobs.check(store.uri, large())


def moves_data(request: Request) -> bool:
    """A part or a range."""
    return request.is_part() or (request.method == "GET" and ".distcp" in request.target)


def test_a_killed_save_leaves_the_checkpoint_that_was_there(store: Store, s3dcp_server: testing.Server) -> None:
    jobs.save(small(), store.uri)
    with Between(s3dcp_server.endpoint_url) as between:
        between.rule = lambda request: wire.silence if STAGES["a part"](request) else None
        child = Child(killed, store.uri, between.url)
        between.wait_for(STAGES["a part"])
        os.kill(child.pid, signal.SIGTERM)
        assert child.status() == -signal.SIGTERM
    jobs.check(store.uri, small())
    jobs.save(large(), store.uri)
    jobs.check(store.uri, large())


def killed(uri: str, url: str) -> None:
    """A save that ends with its process."""
    jobs.save(large(), uri, endpoint_url=url, s3client_config=S3ClientConfig(part_size=5 * MIB))
