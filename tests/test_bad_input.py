"""What users get wrong: each error has its class, names what is wrong, and leaves nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import s3dcp.testing
from s3dcp import (
    AlreadyExists,
    ConfigError,
    ConnectionFailed,
    Corrupt,
    Denied,
    NotFound,
    S3ClientConfig,
    S3DcpError,
    S3FileSystem,
    S3PrefixStrategyBase,
    S3StorageReader,
    S3StorageWriter,
)
from support import faults, jobs
from support.states import blank, values
from support.store import REGION, Store, boto_client
from support.wire import refusing

MIB = 1024 * 1024


def state() -> dict[str, Any]:
    """A small state."""
    return {"x": values((5, 4), 1), "step": 3}


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No source of credentials: no environment, no files, no instance."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


# -- arguments


@pytest.mark.parametrize(
    "path",
    ["bucket/path", "/tmp/checkpoint", "s3:/bucket/x", "S3://bucket/x", "s3://", "s3:///x", "", "gs://b/x"],
)
@pytest.mark.parametrize("make", [S3StorageWriter, S3StorageReader], ids=lambda make: make.__name__)
def test_a_path_that_is_no_s3_uri_is_refused_by_name(make: Any, path: str) -> None:
    with pytest.raises(ValueError, match="path") as caught:
        make(REGION, path)
    assert isinstance(caught.value, ConfigError)
    assert repr(path).strip("'") in str(caught.value)


@pytest.mark.parametrize("make", [S3StorageWriter, S3StorageReader], ids=lambda make: make.__name__)
def test_a_path_that_no_key_can_say_is_refused_by_name(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"^path="):
        make(REGION, "s3://bucket/\ud800")
    assert not S3FileSystem.validate_checkpoint_id("s3://bucket/\ud800")


@pytest.mark.parametrize("path", [None, 5, b"s3://bucket/x"], ids=repr)
@pytest.mark.parametrize("make", [S3StorageWriter, S3StorageReader], ids=lambda make: make.__name__)
def test_a_path_of_another_type_is_refused(make: Any, path: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        make(REGION, path)


def test_a_checkpoint_id_that_is_no_s3_uri_is_refused(store: Store, failure, tmp_path: Path) -> None:
    writer = S3StorageWriter(REGION, store.uri)
    with pytest.raises((ValueError, RuntimeError)):
        dcp.save(state(), checkpoint_id=str(tmp_path / "x"), storage_writer=writer)
    assert store.all_keys() == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("thread_count", [0, -1, 1.5, "2", None, True], ids=repr)
def test_a_bad_thread_count_is_refused_by_name(thread_count: Any) -> None:
    with pytest.raises(ValueError, match=r"thread_count=.*at least 1"):
        S3StorageWriter(REGION, "s3://bucket/path", thread_count=thread_count)


@pytest.mark.parametrize("region", [5, b"us-east-1", ["us-east-1"]], ids=repr)
def test_a_bad_region_is_refused_by_name(store: Store, failure, region: Any) -> None:
    with pytest.raises(ValueError, match="region="):
        S3FileSystem(region).exists(store.uri)


@pytest.mark.parametrize("url", ["localhost:9000", "ftp://host", "http://", "http://host:99999", "not a url"])
def test_a_bad_endpoint_url_is_refused_by_name(store: Store, failure, url: str) -> None:
    error = failure(jobs.save, state(), store.uri, endpoint_url=url)
    assert isinstance(error, ValueError)
    assert "endpoint_url" in str(error)
    assert store.all_keys() == []


def test_a_bad_endpoint_in_the_environment_is_refused_by_name(store: Store, failure, monkeypatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "localhost:9000")
    error = failure(jobs.save, state(), store.uri)
    assert isinstance(error, ValueError)
    assert "AWS_ENDPOINT_URL" in str(error)


@pytest.mark.parametrize("value", ["always", None, True], ids=repr)
def test_a_bad_conditional_commit_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="conditional_commit="):
        S3StorageWriter(REGION, "s3://bucket/path", conditional_commit=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("part_size", 5 * MIB - 1),
        ("part_size", 5 * 1024 * MIB + 1),
        ("part_size", 8.5 * MIB),
        ("part_size", "8MiB"),
        ("part_size", True),
        ("throughput_target_gbps", 0),
        ("throughput_target_gbps", -1.0),
        ("throughput_target_gbps", float("nan")),
        ("throughput_target_gbps", "10"),
        ("max_attempts", 0),
        ("max_attempts", 2.0),
        ("max_attempts", None),
        ("deadline", 0),
        ("connect_timeout", -1),
        ("read_timeout", float("inf")),
        ("max_connections", 0),
        ("network_interfaces", "eth0"),
        ("network_interfaces", [7]),
        ("server_side_encryption", "rot13"),
        ("sse_kms_key_id", "a-key"),
    ],
    ids=str,
)
def test_a_bad_client_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}=.*must be"):
        S3ClientConfig(**{field: value})


def test_what_is_no_client_config_is_refused_by_name(store: Store, failure) -> None:
    error = failure(jobs.save, state(), store.uri, s3client_config={"part_size": 8 * MIB})
    assert isinstance(error, ValueError)
    assert "s3client_config=" in str(error)
    assert store.all_keys() == []


def test_the_client_config_of_the_reference_package_is_understood(store: Store) -> None:
    jobs.save(state(), store.uri, s3client_config=jobs.peer_config())
    jobs.check(store.uri, state(), s3client_config=jobs.peer_config())


@pytest.mark.parametrize(
    "prefix", ["", "/x", "../x", "x/./y", "s3://x", "s3:/", "line\nbreak", "next\x85line", "half\ud800pair"], ids=repr
)
def test_a_prefix_under_which_nothing_could_be_read_is_refused(store: Store, failure, prefix: str) -> None:
    class Strategy(S3PrefixStrategyBase):
        def generate_prefix(self, rank: int) -> str:
            return prefix and f"{prefix}/__{rank}_"

    error = failure(jobs.save, state(), store.uri, prefix_strategy=Strategy())
    assert isinstance(error, ConfigError)
    assert "rank 0" in str(error)
    assert store.all_keys() == []


def test_an_unknown_argument_is_refused_by_name(store: Store) -> None:
    for make in (S3StorageWriter, S3StorageReader):
        with pytest.raises(TypeError, match="thread_cuont"):
            make(REGION, store.uri, thread_cuont=2)


# -- where and who


def test_an_unknown_bucket_is_not_found_by_its_name(store: Store, failure) -> None:
    missing = f"{store.bucket}-missing"
    for function in (jobs.save, jobs.load):
        error = failure(function, state(), f"s3://{missing}/path")
        assert isinstance(error, NotFound)
        assert isinstance(error, FileNotFoundError)
        assert missing in str(error)
        assert error.bucket == missing
        assert error.code == "NoSuchBucket"
        assert not error.retryable


@pytest.mark.usefixtures("no_credentials")
def test_without_credentials_the_error_says_so(store: Store, failure) -> None:
    for function in (jobs.save, jobs.load):
        error = failure(function, state(), store.uri)
        assert isinstance(error, Denied)
        assert isinstance(error, PermissionError)
        assert "credentials" in str(error)
    assert store.all_keys() == []


@pytest.mark.usefixtures("no_credentials")
def test_an_unknown_profile_is_named(store: Store, failure) -> None:
    error = failure(jobs.save, state(), store.uri, s3client_config=S3ClientConfig(profile="nobody"))
    assert isinstance(error, S3DcpError)
    assert "nobody" in str(error)
    assert store.all_keys() == []


def test_a_wrong_secret_is_denied_and_never_shown(store: Store, failure, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key")
    for function in (jobs.save, jobs.load):
        error = failure(function, state(), store.uri)
        assert isinstance(error, Denied)
        assert error.code == "SignatureDoesNotMatch"
        assert error.status == 403
        assert "not-the-secret" not in f"{error} {error!r} {vars(error)}"
    assert store.all_keys() == []


def test_an_unknown_access_key_is_denied(store: Store, failure, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "UNKNOWNKEY")
    error = failure(jobs.save, state(), store.uri)
    assert isinstance(error, Denied)
    assert error.code == "InvalidAccessKeyId"
    assert store.all_keys() == []


def test_an_unsigned_request_is_denied_where_signatures_are_needed(store: Store, failure) -> None:
    error = failure(jobs.save, state(), store.uri, s3client_config=S3ClientConfig(unsigned=True))
    assert isinstance(error, Denied)
    assert store.all_keys() == []


def test_the_wrong_region_is_named_with_the_right_one(failure) -> None:
    with s3dcp.testing.server(buckets=("regional",), region="eu-central-1") as server:
        client = boto_client(server.endpoint_url)
        client.meta.config.region_name = "eu-central-1"
        writer = S3StorageWriter("us-west-2", "s3://regional/x", endpoint_url=server.endpoint_url)
        error = failure(dcp.save, state(), storage_writer=writer)
        assert isinstance(error, S3DcpError)
        assert "region" in str(error)
        assert "eu-central-1" in str(error)
        right = S3StorageWriter("eu-central-1", "s3://regional/x", endpoint_url=server.endpoint_url)
        dcp.save(state(), storage_writer=right)


def test_an_endpoint_where_nothing_listens_is_a_failed_connection(store: Store, failure) -> None:
    with refusing() as url:
        settings = S3ClientConfig(max_attempts=2, connect_timeout=2)
        error = failure(jobs.save, state(), store.uri, endpoint_url=url, s3client_config=settings)
    assert isinstance(error, ConnectionFailed)
    assert isinstance(error, ConnectionError)
    assert error.attempts == 2
    assert error.retryable


# -- what is there


def test_an_existing_checkpoint_with_overwrite_false_stays_as_it_is(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    before = store.listing()
    error = failure(jobs.save, state(), store.uri, overwrite=False)
    assert isinstance(error, AlreadyExists)
    assert isinstance(error, FileExistsError)
    assert "overwrite" in str(error)
    assert store.listing() == before


def test_the_other_kind_of_checkpoint_stays_as_it_is(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    before = store.listing()
    error = failure(jobs.save, state(), store.uri, use_collectives=False)
    assert isinstance(error, AlreadyExists)
    assert store.listing() == before


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"x": torch.zeros(5, 5)}, "x"),
        ({"x": torch.zeros(4, 5)}, "x"),
        ({"x": torch.zeros(20)}, "x"),
        ({"x": torch.zeros(())}, "x"),
    ],
    ids=["wider", "transposed", "flat", "scalar"],
)
def test_a_tensor_of_another_shape_is_refused_by_name(store: Store, failure, wanted: Any, says: str) -> None:
    jobs.save(state(), store.uri)
    error = failure(jobs.load, wanted, store.uri)
    assert isinstance(error, ValueError)
    assert says in str(error)


def test_an_object_where_a_tensor_was_saved_is_refused_by_name(store: Store, failure) -> None:
    jobs.save(state(), store.uri)
    error = failure(jobs.load, {"x": "text"}, store.uri)
    assert isinstance(error, ValueError)
    assert "x" in str(error)


@pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.__name__)
def test_a_broken_checkpoint_is_refused_by_kind(store: Store, failure, fault: Any) -> None:
    jobs.save(state(), store.uri)
    expected, says = fault(store)
    after = store.listing()
    error = failure(jobs.load, blank(state()), store.uri)
    assert type(error) is {"NotFound": NotFound, "Corrupt": Corrupt}[expected]
    assert says in str(error)
    assert store.listing() == after


# -- the same in a group: every rank sees the error of the one that had it, with its attributes


@pytest.mark.distributed
class TestInAGroup:
    """Two ranks."""

    @pytest.fixture
    def pair(self, groups) -> Any:
        return groups(2)

    def test_an_unknown_bucket(self, store: Store, failure, pair) -> None:
        missing = f"{store.bucket}-missing"
        error = failure(pair.run, jobs.save_training_state, f"s3://{missing}/path")
        assert isinstance(error, NotFound)
        assert (error.kind, error.bucket, error.code) == ("NotFound", missing, "NoSuchBucket")
        assert error.status == 404
        assert error.request_id

    def test_a_wrong_secret(self, store: Store, failure, pair, monkeypatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key")
        error = failure(pair.run, jobs.save_training_state, store.uri)
        assert isinstance(error, Denied)
        assert error.code == "SignatureDoesNotMatch"
        for rank in (0, 1):
            error = failure(pair.run, jobs.check_training_state, store.uri, rank=rank)
            assert isinstance(error, Denied)
            assert error.code == "SignatureDoesNotMatch"

    @pytest.mark.usefixtures("no_credentials")
    def test_no_credentials(self, store: Store, failure, pair) -> None:
        error = failure(pair.run, jobs.save_training_state, store.uri)
        assert isinstance(error, Denied)
        assert "credentials" in str(error)

    def test_an_existing_checkpoint(self, store: Store, failure, pair) -> None:
        pair.run(jobs.save_training_state, store.uri)
        before = store.listing()
        error = failure(pair.run, jobs.save_training_state, store.uri, overwrite=False)
        assert isinstance(error, AlreadyExists)
        assert store.listing() == before

    def test_the_other_kind(self, store: Store, failure, pair) -> None:
        pair.run(jobs.save_training_state, store.uri)
        before = store.listing()
        error = failure(pair.run, jobs.save_training_state, store.uri, use_collectives=False)
        assert isinstance(error, AlreadyExists)
        assert store.listing() == before

    def test_a_prefix_that_escapes(self, store: Store, failure, pair) -> None:
        error = failure(pair.run, faults.save_with_escaping_prefix, store.uri)
        assert isinstance(error, ConfigError)
        assert "prefix_strategy" in str(error)
        assert "rank 1" in str(error)
        assert store.all_keys() == []

    @pytest.mark.parametrize("fault", faults.ALL, ids=lambda fault: fault.__name__)
    def test_a_broken_checkpoint(self, store: Store, failure, pair, fault: Any) -> None:
        pair.run(jobs.save_training_state, store.uri)
        expected, says = fault(store)
        rank = 1 if "__1_" in says else 0
        error = failure(pair.run, jobs.check_training_state, store.uri, rank=rank)
        assert type(error).__name__ == expected
        assert error.kind == expected
        assert says in str(error)
        if says.endswith(".distcp"):
            assert error.key == f"{store.path}/{says}"

    def test_a_save_that_fails_on_one_rank_commits_nothing(self, store: Store, failure, pair) -> None:
        pair.run(jobs.save_training_state, store.uri)
        before = store.read(".metadata")
        error = failure(pair.run, faults.save_failing_on_rank_1, store.uri, rank=1)
        assert isinstance(error, ArithmeticError)
        assert store.read(".metadata") == before
        assert store.uploads() == []
        pair.run(jobs.check_training_state, store.uri)
