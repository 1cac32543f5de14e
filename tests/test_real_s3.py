"""Other S3 servers: that they start, and what s3dcp does where they differ from S3 (docs/servers.md)."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3dcp import AlreadyExists, ConfigError, Corrupt, S3ClientConfig, S3StorageWriter, ServiceError, testing
from s3dcp._client import client_for
from support import jobs, real
from support.real import departures, rgw
from support.states import assert_same, blank, values
from support.store import REGION, Store
from support.wire import Exchange, Exchanged, Forward

MIB = 1024 * 1024


def state(number: int) -> dict[str, Any]:
    """A small state that differs by `number`."""
    return {"x": values((7, 3), number), "step": number}


@pytest.fixture
def endpoint_url(store: Store) -> str:
    """The server under test."""
    return os.environ["AWS_ENDPOINT_URL"]


@pytest.mark.slow
@pytest.mark.parametrize("name", real.SERVERS)
def test_checkpoints_are_saved_overwritten_guarded_and_loaded(name: str, tmp_path: Path, failure) -> None:
    server = real.SERVERS[name]
    if absent := server.absent():
        pytest.skip(absent)
    with server.start(tmp_path) as endpoint, testing.environment(endpoint):
        endpoint.create_bucket("checkpoints")
        uri = "s3://checkpoints/run"
        for number in (0, 1):
            jobs.save(state(number), uri)
            jobs.check(uri, state(number))
        rival = jobs.InTheMiddle(lambda: jobs.save(state(2), uri))
        assert isinstance(failure(jobs.save, state(3), uri, planner=rival), AlreadyExists)
        jobs.check(uri, state(2))
        if server.HONOURS_CONDITIONS:
            jobs.save(state(4), uri, conditional_commit="require")
        else:
            assert isinstance(failure(jobs.save, state(4), uri, conditional_commit="require"), ConfigError)
        jobs.check(uri, state(4 if server.HONOURS_CONDITIONS else 2))


def test_every_departure_and_every_line_of_the_page_names_a_test() -> None:
    root = Path(__file__).parents[1]
    ours = "".join(file.read_text() for file in (root / "tests").glob("test_*.py"))
    engines = "".join(file.read_text() for file in (root / "crates").glob("*/tests/**/*.rs"))
    known = {*re.findall(r"def (test_\w+)\(", ours), *re.findall(r"async fn (\w+)\(", engines)}
    page = (root / "docs" / "servers.md").read_text()
    heads = ("| | ", "| the store ", "| the server ", "| store ", "| ---")
    lines = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith(heads)]
    lines = [line for line in lines if "(not tried)" not in line]
    assert len(lines) > 20
    assert [line for line in lines if known.isdisjoint(re.findall(r"`(\w+)`", line))] == []
    named = [name.split("[")[0] for tests in departures.BY_SERVER.values() for name in tests]
    named += re.findall(r"`(test_\w+)`", page)
    assert [name for name in named if name not in known] == []


# -- what any server may do


def first_line(request: bytes) -> bytes:
    return request.split(b"\r\n", 1)[0]


def losing_one_answer(lost: Any, *words: bytes) -> Exchange:
    """Has the first request that holds `words` in its first line carried out and never answers it."""

    def exchange(request: bytes, forward: Forward) -> Iterator[bytes]:
        answer = forward(request)
        if all(word in first_line(request) for word in words) and lost.acquire(blocking=False):
            assert b"".join(answer)
        else:
            yield from answer

    return exchange


@pytest.mark.parametrize("overwriting", [False, True], ids=["first", "overwriting"])
@pytest.mark.parametrize(
    "words",
    [(b"POST ", b"?uploads"), (b"PUT ", b"partNumber="), (b"POST ", b"uploadId="), (b"PUT ", b".metadata ")],
    ids=["begin", "part", "complete", "commit"],
)
def test_a_lost_answer_leaves_a_whole_checkpoint(store: Store, endpoint_url: str, words, overwriting: bool) -> None:
    if overwriting:
        jobs.save(state(1), store.uri)
    large = {"x": values((3 * MIB,), 2)}
    lost = threading.Lock()
    with Exchanged(endpoint_url, losing_one_answer(lost, *words)) as wire:
        jobs.save(large, store.uri, endpoint_url=wire.url, s3client_config=S3ClientConfig(part_size=5 * MIB))
    assert lost.locked()
    jobs.check(store.uri, large)
    assert len(store.shards()) == 1


def test_what_is_overwritten_while_it_is_read_is_read_whole(store: Store, endpoint_url: str) -> None:
    """Of a server that lets go of the old bytes too early the new ones are read, from their start."""
    old, new = os.urandom(24 * MIB), os.urandom(24 * MIB)
    store.write(".metadata", old)

    def overwrite_in_the_middle(request: bytes, forward: Forward) -> Iterator[bytes]:
        for number, piece in enumerate(forward(request)):
            yield piece
            if number == 2 and store.read(".metadata") == old:
                store.write(".metadata", new)

    with Exchanged(endpoint_url, overwrite_in_the_middle) as wire:
        body, _ = client_for(REGION, wire.url).get_object(store.bucket, f"{store.path}/.metadata")
    assert store.read(".metadata") == new
    assert body in (old, new)


ON_THE_WAY, DAMAGED = b"\x11" * 64, b"\x11" * 63 + b"\x13"


def damaging_once(damaged: Any) -> Exchange:
    """Changes one bit in the tensor of the first request that carries it."""

    def exchange(request: bytes, forward: Forward) -> Iterator[bytes]:
        if ON_THE_WAY in request and damaged.acquire(blocking=False):
            request = request.replace(ON_THE_WAY, DAMAGED, 1)
        yield from forward(request)

    return exchange


def save_damaged_on_the_way(store: Store, endpoint_url: str) -> dict[str, Any]:
    tensor = {"x": torch.full((1000,), ON_THE_WAY[0], dtype=torch.uint8)}
    damaged = threading.Lock()
    with Exchanged(endpoint_url, damaging_once(damaged)) as wire:
        jobs.save(tensor, store.uri, endpoint_url=wire.url)
    assert damaged.locked()
    return tensor


def test_what_is_damaged_on_the_way_to_the_server_is_sent_again(store: Store, endpoint_url: str) -> None:
    jobs.check(store.uri, save_damaged_on_the_way(store, endpoint_url))


@pytest.mark.s3("rgw")
def test_what_a_server_stored_damaged_is_refused_by_the_load(store: Store, endpoint_url: str, failure) -> None:
    damaged = save_damaged_on_the_way(store, endpoint_url)
    assert isinstance(failure(jobs.load, blank(damaged), store.uri), Corrupt)


@pytest.mark.s3("rgw")
@pytest.mark.parametrize(("setting", "value"), [("server_side_encryption", "AES256"), ("storage_class", "STANDARD_IA")])
def test_a_setting_that_a_server_refuses_without_a_word_is_named(store: Store, failure, setting, value) -> None:
    error = failure(jobs.save, state(1), store.uri, s3client_config=S3ClientConfig(**{setting: value}))
    assert isinstance(error, ServiceError)
    assert f"sent with {setting}" in str(error)
    assert store.all_keys() == []


@pytest.mark.s3("rgw")
def test_a_gateway_with_little_room_is_asked_again(store: Store, s3dcp_server: rgw.Gateway) -> None:
    narrow = rgw.start_gateway(
        s3dcp_server.daemons, s3dcp_server.configuration, rgw_max_concurrent_requests="2"
    ).endpoint_url
    large = {f"t{number}": values((4 * MIB,), number) for number in range(4)}
    config = S3ClientConfig(part_size=5 * MIB)
    jobs.save(large, store.uri, endpoint_url=narrow, s3client_config=config)
    jobs.check(store.uri, large, endpoint_url=narrow, s3client_config=config)
    assert client_for(REGION, narrow, config).stats().throttled > 0


# -- without conditional writes


@pytest.mark.s3("garage")
def test_a_save_without_protection_says_so(store: Store) -> None:
    for number in (1, 2):
        with pytest.warns(UserWarning, match="the server ignores conditional writes.*could replace each other's index"):
            jobs.save(state(number), store.uri)
    jobs.check(store.uri, state(2))


@pytest.mark.s3("garage")
def test_of_saves_that_race_without_protection_a_whole_checkpoint_stays(store: Store) -> None:
    """Each sees no index right before it writes its own."""
    for turn in range(3):
        writer = S3StorageWriter(REGION, f"{store.uri}/{turn}")
        futures = [dcp.async_save(state(number), storage_writer=writer) for number in range(4)]
        won = [number for number, future in enumerate(futures) if future.exception() is None]
        loaded = jobs.load(blank(state(0)), f"{store.uri}/{turn}")
        assert loaded["step"] in won
        assert_same(loaded, state(loaded["step"]))


@pytest.mark.s3("garage")
@pytest.mark.parametrize("size", [10, 3 * MIB], ids=["put", "parts"])
def test_encryption_that_a_server_ignores_fails_the_save(store: Store, failure, size: int) -> None:
    config = S3ClientConfig(server_side_encryption="AES256", part_size=5 * MIB)
    error = failure(jobs.save, {"x": values((size,), 1)}, store.uri, s3client_config=config)
    assert isinstance(error, ConfigError)
    assert "server_side_encryption" in str(error)
    assert ".metadata" not in store.names()
    assert store.uploads() == []


@pytest.mark.s3("garage")
def test_a_writer_that_requires_conditions_uploads_nothing_without(store: Store, failure) -> None:
    jobs.save(state(1), store.uri)
    before = store.listing()
    error = failure(jobs.save, state(2), store.uri, conditional_commit="require")
    assert isinstance(error, ConfigError)
    assert re.search(r'conditional_commit="require".*ignores.*nothing was committed', str(error))
    assert store.listing() == before, "refused before anything was uploaded"
