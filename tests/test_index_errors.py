"""Errors of reading the index reach the caller as themselves, whatever torch makes of those of its storage."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, state_dict_loader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata

import s3dcp.testing
from s3dcp import (
    ConnectionFailed,
    Corrupt,
    Denied,
    FastLoadPlanner,
    NotFound,
    S3ClientConfig,
    S3DcpError,
    S3StorageReader,
    ServiceError,
    Throttled,
    Timeout,
)
from support import jobs, wire
from support.indexes import without_checksums
from support.states import blank, values
from support.store import REGION, Store, boto_client
from support.torch_versions import needs_rank_indexes
from support.wire import Request, Scripted

BRIEF = S3ClientConfig(max_attempts=1, deadline=2, read_timeout=0.3, connect_timeout=1)


def reset_connection(_: wire.Wire, connection: Any) -> None:
    """End the connection without an answer."""
    wire.close(connection)


ANSWERS: dict[str, tuple[wire.Act, type[Exception]]] = {
    "500": (wire.error("500 Internal Server Error", "InternalError"), ServiceError),
    "500 without a body": (wire.answer("500 Internal Server Error"), ServiceError),
    "301": (
        wire.error("301 Moved Permanently", "PermanentRedirect"),
        S3DcpError,
    ),
    "301 without a body": (wire.answer("301 Moved Permanently", x_amz_bucket_region="eu-west-1"), S3DcpError),
    "400": (wire.error("400 Bad Request", "AuthorizationHeaderMalformed"), S3DcpError),
    "403": (wire.error("403 Forbidden", "AccessDenied"), Denied),
    "503": (wire.error("503 Slow Down", "SlowDown"), Throttled),
    "nothing": (wire.silence, Timeout),
    "closed": (reset_connection, ConnectionFailed),
}
MISSING = wire.error("404 Not Found", "NoSuchKey")


def state() -> dict[str, Any]:
    """A small state."""
    return {"x": values((4, 3), 1), "step": 1}


def load(reader: S3StorageReader) -> None:
    dcp.load(blank(state()), storage_reader=reader)


def load_alone(reader: S3StorageReader) -> None:
    dcp.load(blank(state()), storage_reader=reader, no_dist=True)


def load_fast(reader: S3StorageReader) -> None:
    dcp.load(blank(state()), storage_reader=reader, planner=FastLoadPlanner())


def load_keys(reader: S3StorageReader) -> None:
    state_dict_loader._load_state_dict_from_keys({"x"}, storage_reader=reader)


def convert(reader: S3StorageReader) -> None:
    """As ``dcp_to_torch_save`` does."""
    planner = _EmptyStateDictLoadPlanner()
    state_dict_loader._load_state_dict({}, storage_reader=reader, planner=planner, no_dist=True)


def load_partly(reader: S3StorageReader) -> None:
    dcp.load(blank(state()), storage_reader=reader, planner=DefaultLoadPlanner(allow_partial_load=True))


FLOWS: list[Callable[[S3StorageReader], None]] = [load, load_alone, load_fast, load_keys, convert, load_partly]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is unavailable or uninitialized:UserWarning")
# Requests for an index; the last two are for that of a rank.
REQUESTS = [
    pytest.param("GET /bucket/run/.metadata", id="the index"),
    pytest.param("GET /bucket/run/__0.metadata", marks=needs_rank_indexes, id="the rank's"),
    pytest.param("HEAD /bucket/run/__0.metadata", marks=needs_rank_indexes, id="whether there is any rank's"),
]
every_flow = pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.__name__)


def serve(answer: wire.Act, on: str) -> Scripted:
    """A server that has nothing, and answers thus to the request `on`."""

    def script(request: Request) -> wire.Act:
        path = request.target.partition("?")[0]
        if f"{request.method} {path}" == on:
            return answer
        return MISSING if request.method != "HEAD" else wire.answer("404 Not Found")

    return Scripted(script)


@pytest.mark.usefixtures("s3dcp_server")
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("on", REQUESTS)
def test_what_the_service_answers_to_any_of_the_requests_for_an_index_is_the_error(
    failure, on: str, answer: str
) -> None:
    act, kind = ANSWERS[answer]
    with serve(act, on) as service:
        reader = S3StorageReader(REGION, "s3://bucket/run", BRIEF, endpoint_url=service.url)
        error = failure(load, reader)
        assert isinstance(error, S3DcpError), repr(error)
        assert isinstance(error, kind)
        assert error.key == on.rpartition("/bucket/")[2]
        assert "no checkpoint" not in str(error)
        assert any(f"{request.method} {request.target}".startswith(on) for request in service.seen)


@pytest.mark.usefixtures("s3dcp_server")
@every_flow
@pytest.mark.parametrize("on", REQUESTS)
def test_every_way_to_load_raises_it(failure, flow: Any, on: str) -> None:
    with serve(ANSWERS["500"][0], on) as service:
        reader = S3StorageReader(REGION, "s3://bucket/run", BRIEF, endpoint_url=service.url)
        for _ in range(2):  # a reader that failed is as good as new
            error = failure(flow, reader)
            assert isinstance(error, ServiceError), repr(error)
            assert error.status == 500


class Unforeseen(Exception):
    """Nothing that anybody expects."""


@every_flow
@pytest.mark.parametrize(
    "call", [pytest.param(0, id="first call"), pytest.param(1, marks=needs_rank_indexes, id="second call")]
)
@pytest.mark.parametrize(
    "raised", [ValueError, RuntimeError, AssertionError, MemoryError, OSError, Unforeseen, KeyboardInterrupt]
)
def test_an_error_of_any_class_is_raised_as_itself(
    store: Store, failure, monkeypatch, flow: Any, call: int, raised: Any
) -> None:
    reader = S3StorageReader(REGION, store.uri)
    error = raised("broken on purpose")
    read = reader._read_index

    def broken(rank: int | None) -> Metadata:
        if call == 0 or rank is not None:
            raise error
        return read(rank)

    monkeypatch.setattr(reader, "_read_index", broken)
    assert failure(flow, reader) is error


@every_flow
def test_a_bad_argument_is_told_by_its_name_and_not_as_an_assertion(store: Store, failure, flow: Any) -> None:
    reader = S3StorageReader(5, store.uri)  # type: ignore[arg-type]
    error = failure(flow, reader)
    assert isinstance(error, ValueError)
    assert "region=5" in str(error)


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_index_cannot_be_read_says_why(store: Store, failure, groups, rank: int) -> None:
    two = groups(2)
    two.run(jobs.save_training_state, store.uri, use_collectives=False)
    store.write(f"__{rank}.metadata", b"damaged")
    error = failure(two.run, jobs.check_training_state, store.uri, rank=rank)
    assert isinstance(error, Corrupt)
    assert error.key is None or error.key.endswith(f"__{rank}.metadata")


def test_without_torch_every_call_raises_for_itself(store: Store) -> None:
    reader = S3StorageReader(REGION, store.uri)
    for rank in (0, 3):
        with pytest.raises(NotFound, match="no checkpoint at"):
            reader.read_metadata(rank=rank)
    with pytest.raises(NotFound, match="no checkpoint at") as caught:
        reader.read_metadata()
    assert caught.value.code == "NoSuchKey"
    assert caught.value.status == 404
    assert caught.value.key == f"{store.path}/.metadata"


def test_a_rank_asked_for_alone_is_told_of_the_index_of_all_ranks(store: Store) -> None:
    jobs.save(state(), store.uri)
    reader = S3StorageReader(REGION, store.uri)
    with pytest.raises(NotFound, match=r"was saved by all ranks together.*no __3\.metadata"):
        reader.read_metadata(rank=3)


def test_a_reader_whose_load_failed_of_anything_can_still_be_pickled(store: Store, monkeypatch) -> None:
    class Local(Exception):
        """No pickle knows where to find it."""

    def broken(rank: int | None) -> Metadata:
        raise Local

    reader = S3StorageReader(REGION, store.uri)
    with monkeypatch.context() as patched:
        patched.setattr(reader, "_read_index", broken)
        with pytest.raises(Local):
            reader.read_metadata()
    jobs.save(state(), store.uri)
    load(pickle.loads(pickle.dumps(reader)))


def test_an_index_without_entries_for_items_is_corrupt_and_no_assertion(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    metadata = without_checksums(store.read(".metadata"))
    metadata.storage_data = None
    store.write(".metadata", pickle.dumps(metadata))
    error = failure(jobs.load, blank(state()), store.uri)
    assert isinstance(error, Corrupt)
    assert ".metadata" in str(error)


def test_a_shard_file_that_is_gone_is_told_although_the_index_cannot_be_looked_at_again(failure) -> None:
    with s3dcp.testing.server(["bucket"]) as server:
        jobs.save(state(), "s3://bucket/run")
        store = Store("bucket", boto_client())
        (shard,) = [key for key in store.all_keys() if key.endswith(".distcp")]
        store.client.delete_object(Bucket="bucket", Key=shard)
        server.inject("error:InternalError on=HeadObject")
        error = failure(jobs.load, blank(state()), "s3://bucket/run", s3client_config=BRIEF)
    assert isinstance(error, NotFound)
    assert error.key == shard
    assert "InternalError" in str(error) or "500" in str(error)
