"""Directory buckets (S3 Express One Zone) of the embedded server: saves, loads, what the command does, and sessions.

``make test-directory`` runs all tests that talk to the embedded server on such buckets.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import pytest

from s3dcp import AlreadyExists, DefaultPrefixStrategy, HexPrefixStrategy, S3ClientConfig, testing
from s3dcp._client import client_for
from s3dcp.catalogue import list_checkpoints
from support import command, jobs
from support.environment import kept_environment
from support.proxy import proxy
from support.states import values
from support.store import REGION, Store, boto_client

BUCKET = "models--use1-az4--x-s3"
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[testing.Server]:
    with testing.server(buckets=[BUCKET, "plain"]) as running:
        yield running


@pytest.fixture
def store(server: testing.Server) -> Store:
    return Store(BUCKET, boto_client())


def created(server: testing.Server) -> int:
    """Sessions so far."""
    return server.stats().requests.get("CreateSession", 0)


def refusal(call: Any, **arguments: Any) -> tuple[str, int]:
    """Code and status of the error that boto3 gets."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(Bucket=BUCKET, **arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def test_a_checkpoint_is_saved_replaced_and_loaded(store: Store, failure: Any) -> None:
    for seed in range(2):
        jobs.save_training_state(store.uri, ("Hex", {}), seed)
        jobs.check_training_state(store.uri, seed)
    assert len(store.shards()) == 1, "the first one's shard file is gone"
    assert isinstance(failure(jobs.save_training_state, store.uri, overwrite=False), AlreadyExists)


def test_epochs_are_saved_listed_kept_and_copied(store: Store) -> None:
    states = {epoch: {"weight": values((1000,), epoch)} for epoch in (1, 2, 3, 10)}
    for epoch, state in states.items():
        jobs.save(state, store.uri, ("Hex", {"epoch_num": epoch}))
    assert sorted(found.step for found in list_checkpoints(store.uri) if found.uri != store.uri) == sorted(states)
    command.run("keep", store.uri, "--last", 2, "--delete")
    assert sorted(found.step for found in list_checkpoints(store.uri) if found.uri != store.uri) == [3, 10]
    for epoch in (3, 10):
        jobs.check(f"{store.uri}/epoch_{epoch}", states[epoch])
    # The service copies, into another kind of bucket too.
    for target in (f"s3://{BUCKET}/copy", "s3://plain/copy"):
        told = command.told("cp", f"{store.uri}/epoch_10", target)
        assert told["bytes_by_service"] == told["bytes"]
        jobs.check(target, states[10])
    command.run("verify", f"{store.uri}/epoch_10")


def test_of_saves_that_race_one_commits(store: Store) -> None:
    start = threading.Barrier(4)

    def save(number: int) -> BaseException | None:
        start.wait()
        try:
            jobs.save({"weight": values((2000,), number)}, store.uri, no_dist=True, overwrite=False)
        except BaseException as error:
            return error
        return None

    with ThreadPoolExecutor(4) as threads:
        errors = list(threads.map(save, range(4)))
    assert errors.count(None) == 1, errors
    assert all("AlreadyExists" in str(error) for error in errors if error is not None)
    [winner] = [number for number, error in enumerate(errors) if error is None]
    jobs.check(store.uri, {"weight": values((2000,), winner)})
    assert len(store.shards()) == 1


def test_prune_finds_what_no_index_names_and_nothing_else(store: Store) -> None:
    jobs.save_training_state(store.uri, ("Hex", {"epoch_num": 1}))
    before = store.all_keys()
    store.write("a000000000/__0_0-0123456789abcdef.distcp", b"left")
    store.write("__7_0-0123456789abcdef.distcp", b"left")
    upload = f"{store.path}/b000000000/__1_0-0123456789abcdef.distcp"
    store.client.create_multipart_upload(Bucket=BUCKET, Key=upload)
    found = command.told("prune", store.uri, "--older-than", "0s")
    assert len(found["leftovers"]) == 3, found
    command.run("prune", store.uri, "--older-than", "0s", "--delete")
    assert (store.all_keys(), store.uploads()) == (before, [])
    jobs.check_training_state(store.uri)


def test_any_prefix_is_listed_in_order(store: Store) -> None:
    for number in (3, 1, 11, 2):
        store.write(f"__{number}_0.distcp", b"x")
    client = client_for(REGION)
    keys = [info.key for info in client.list_objects(BUCKET, f"{store.path}/__1")]
    assert keys == [f"{store.path}/__11_0.distcp", f"{store.path}/__1_0.distcp"]
    assert command.run("tree", f"s3://{BUCKET}").stdout.count(".distcp") == 4


def test_a_session_that_expires_in_mid_save_is_renewed() -> None:
    with testing.server(buckets=[BUCKET], session_lifetime=1, faults=["delay:350ms on=UploadPart,PutObject"]) as server:
        store = Store(BUCKET, boto_client())
        state = {f"t{number}": values((2 * MIB,), number) for number in range(8)}
        config = S3ClientConfig(part_size=5 * MIB, max_connections=2)
        began = created(server)
        jobs.save(state, store.uri, s3client_config=config)
        assert created(server) - began >= 3, "the save takes several lifetimes of a session"
        server.clear_faults()
        jobs.check(store.uri, state)


def test_a_session_that_the_service_ends_costs_one_renewal(server: testing.Server, store: Store) -> None:
    jobs.save_training_state(store.uri)
    began = created(server)
    server.inject("error:ExpiredToken on=PutObject key=*.distcp times=1")
    jobs.save_training_state(store.uri, seed=1)
    assert [count for _, count in server.faults()] == [1]
    assert created(server) - began == 1
    jobs.check_training_state(store.uri, 1)


def test_a_session_that_is_refused_fails_the_save_and_says_so(server: testing.Server, failure: Any) -> None:
    server.inject("error:AccessDenied on=CreateSession")
    error = failure(jobs.save_training_state, f"s3://{BUCKET}/run")
    assert type(error).__name__ == "Denied"
    assert BUCKET in str(error)
    assert "no session" in str(error)


@pytest.mark.parametrize(
    ("setting", "value"), [("requester_pays", True), ("storage_class", "STANDARD_IA"), ("unsigned", True)]
)
def test_what_such_buckets_lack_is_refused_by_name(store: Store, failure: Any, setting: str, value: object) -> None:
    config = S3ClientConfig(**{setting: value})
    error = failure(jobs.save_training_state, store.uri, s3client_config=config)
    assert setting in str(error)
    assert BUCKET in str(error)


def test_a_name_that_is_none_is_refused_by_its_form() -> None:
    with pytest.raises(ValueError, match=r"models--x-s3.*<zone id>"):
        list_checkpoints("s3://models--x-s3/run")


def test_the_command_tells_the_host_of_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    told = command.run("settings", f"s3://{BUCKET}/run", "--region", "us-east-1").stdout
    assert f"https://{BUCKET}.s3express-use1-az4.us-east-1.amazonaws.com/" in told


def test_boto3_finds_a_directory_bucket(server: testing.Server, store: Store) -> None:
    client = store.client
    session = client.create_session(Bucket=BUCKET, SessionMode="ReadOnly")["Credentials"]
    assert session["SessionToken"]
    assert 0 < session["Expiration"].timestamp() - time.time() <= 300
    client.put_object(Bucket=BUCKET, Key="a/b c+d", Body=b"body")
    head = client.head_object(Bucket=BUCKET, Key="a/b c+d")
    assert head["StorageClass"] == "EXPRESS_ONEZONE"
    assert not re.fullmatch(r'"841a2d689ad86bd1611447453c22c6fc"', head["ETag"]), "no MD5"
    for number in range(30):
        client.put_object(Bucket=BUCKET, Key=f"many/{number:02}", Body=b"")
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix="many/", PaginationConfig={"PageSize": 7}
    )
    keys = [entry["Key"] for page in pages for entry in page["Contents"]]
    assert sorted(keys) == [f"many/{number:02}" for number in range(30)] != keys
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["plain"]
    assert created(server) > 0


@pytest.mark.parametrize(
    ("operation", "arguments", "code"),
    [
        ("list_objects_v2", {"Prefix": "a/b"}, "InvalidRequest"),
        ("list_objects_v2", {"Delimiter": "_"}, "InvalidRequest"),
        ("list_objects_v2", {"StartAfter": "a"}, "NotSupported"),
        ("list_objects", {}, "NotSupported"),
        ("list_object_versions", {}, "NotSupported"),
        ("list_multipart_uploads", {"Prefix": "a/b"}, "InvalidRequest"),
        ("put_object", {"Key": "k", "Body": b"", "StorageClass": "STANDARD_IA"}, "InvalidStorageClass"),
        ("put_object", {"Key": "k", "Body": b"", "ContentMD5": "1B2M2Y8AsgTpgAmY7PhCfg=="}, "NotImplemented"),
        ("put_object", {"Key": "k", "Body": b"", "ACL": "private"}, "NotImplemented"),
        ("put_object", {"Key": "k", "Body": b"", "RequestPayer": "requester"}, "NotImplemented"),
    ],
)
def test_what_a_directory_bucket_does_not_have_is_refused(
    store: Store, operation: str, arguments: dict[str, Any], code: str
) -> None:
    assert refusal(getattr(store.client, operation), **arguments)[0] == code


def test_parts_are_numbered_without_gaps(store: Store) -> None:
    client = store.client
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]
    part = client.upload_part(Bucket=BUCKET, Key="k", UploadId=upload, PartNumber=2, Body=b"x")
    parts = {"Parts": [{"PartNumber": 2, "ETag": part["ETag"]}]}
    completed = refusal(client.complete_multipart_upload, Key="k", UploadId=upload, MultipartUpload=parts)
    assert completed[0] == "InvalidPartOrder"


def test_a_lifetime_that_cannot_be_is_refused() -> None:
    for seconds in (0, -1, float("nan"), 1e9):
        with pytest.raises(ValueError, match="session_lifetime"), testing.server(session_lifetime=seconds):
            pass


def test_prefixes_bring_nothing_where_there_are_no_partitions() -> None:
    job = {"world_size": 1024, "bytes_per_rank": 1 << 30, "directory_bucket": True}
    default, spread = DefaultPrefixStrategy().describe(**job), HexPrefixStrategy().describe(**job)
    assert (default.refused, default.partitions) == (0, 1)
    assert spread.seconds == pytest.approx(default.seconds, rel=0.02)
    assert "directory bucket" in str(default)
    elsewhere = DefaultPrefixStrategy().describe(1024, 1 << 30)
    assert elsewhere.request_bytes > default.request_bytes
    with pytest.raises(ValueError, match="partitions"):
        DefaultPrefixStrategy().describe(8, partitions=2, directory_bucket=True)
    told = command.told("plan", "--ranks", 512, "--bytes-per-rank", "10GiB", "--directory-bucket")
    assert told["directory_bucket"]
    assert told["partitions_wanted"] == 1
    assert {choice["spreads"] for choice in told["choices"]} == {False}
    shown = command.run("plan", "--ranks", 512, "--bytes-per-rank", "10GiB", "--directory-bucket").stdout
    assert "no partitions" in shown
    assert "HexPrefixStrategy" not in shown


def test_it_is_reached_at_the_host_of_its_zone(tmp_path: Path) -> None:
    """As on AWS: no endpoint is given, and a proxy leads the names of the zone to the embedded server."""
    domain = "s3express-use1-az4.us-east-1.amazonaws.com"
    with testing.Server(buckets=[BUCKET], domain=domain, tls=True, region=REGION) as server:
        (tmp_path / "authority.pem").write_text(server.authority or "")
        address = urlsplit(server.endpoint_url)
        with proxy(None, to=(address.hostname or "", address.port or 0)) as running, kept_environment():
            for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
                del os.environ[name]
            os.environ |= {
                "AWS_ACCESS_KEY_ID": server.access_key,
                "AWS_SECRET_ACCESS_KEY": server.secret_key,
                "AWS_CA_BUNDLE": str(tmp_path / "authority.pem"),
                "HTTPS_PROXY": f"http://{running.address}",
            }
            state = {"weight": values((3 * MIB,))}
            jobs.save(state, f"s3://{BUCKET}/run", s3client_config=S3ClientConfig(part_size=5 * MIB))
            jobs.check(f"s3://{BUCKET}/run", state)
            theirs = boto3.client("s3", region_name=REGION)
            assert theirs.get_object(Bucket=BUCKET, Key="run/.metadata")["ContentLength"] > 0
            assert set(running.asked) == {("CONNECT", f"{BUCKET}.{domain}:443")}
