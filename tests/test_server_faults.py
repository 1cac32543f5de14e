"""Faults of the embedded server, as boto3 and plain sockets see them, and HTTPS."""

from __future__ import annotations

import base64
import socket
import ssl
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from s3dcp import testing

BUCKET = "checkpoints"
BODY = bytes(range(256)) * 1024


@pytest.fixture(scope="module", params=[False, True], ids=["http", "https"])
def server(request: pytest.FixtureRequest) -> Iterator[testing.Server]:
    with testing.server([BUCKET], tls=request.param) as running:
        yield running


@pytest.fixture
def s3(server: testing.Server) -> Iterator[Any]:
    """A client that tries each request once, and the object ``k``."""
    server.clear_faults()
    client = boto3.client(
        "s3",
        config=Config(
            s3={"addressing_style": "path", "payload_signing_enabled": False},
            retries={"total_max_attempts": 1},
            read_timeout=0.5,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY)
    yield client
    server.clear_faults()
    client.close()


def get(s3: Any, key: str = "k") -> bytes:
    body: bytes = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


def put(s3: Any, key: str, body: bytes = BODY, **arguments: Any) -> None:
    s3.put_object(Bucket=BUCKET, Key=key, Body=body, **arguments)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("SlowDown", 503),
        ("InternalError", 500),
        ("ExpiredToken", 400),
        ("RequestTimeTooSkewed", 403),
        ("AccessDenied", 403),
    ],
)
def test_an_error_is_s3s_own_and_nothing_is_done(server: testing.Server, s3: Any, code: str, status: int) -> None:
    server.inject(f"error:{code} on=PutObject times=1")
    with pytest.raises(ClientError) as caught:
        put(s3, "new", b"x")
    answer = caught.value.response
    assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert answer["ResponseMetadata"]["RequestId"]
    with pytest.raises(ClientError, match="NoSuchKey"):
        get(s3, "new")
    put(s3, "new", b"x")
    assert server.faults() == [(f"error:{code} on=PutObject times=1", 1)]
    s3.delete_object(Bucket=BUCKET, Key="new")


def test_an_error_may_hide_in_a_200(server: testing.Server, s3: Any) -> None:
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="many")["UploadId"]
    part = s3.upload_part(Bucket=BUCKET, Key="many", UploadId=upload, PartNumber=1, Body=BODY)
    server.inject("error-in-200:InternalError on=CompleteMultipartUpload times=1")
    complete = {
        "Bucket": BUCKET,
        "Key": "many",
        "UploadId": upload,
        "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    }
    with pytest.raises(ClientError, match="InternalError"):
        s3.complete_multipart_upload(**complete)
    s3.complete_multipart_upload(**complete)
    assert get(s3, "many") == BODY


def test_a_dropped_request_has_no_effect_and_a_lost_answer_has(server: testing.Server, s3: Any) -> None:
    for what, there in [("drop", False), ("reset-request:1000", False), ("lose", True), ("reset:0", True)]:
        server.inject(f"{what} on=PutObject times=1")
        with pytest.raises((ConnectionClosedError, BotoCoreError)):
            put(s3, what)
        assert ("Contents" in s3.list_objects_v2(Bucket=BUCKET, Prefix=what)) == there, what


def test_an_answer_may_end_early_in_three_ways(server: testing.Server, s3: Any) -> None:
    for what in ("cut", "reset"):
        server.inject(f"{what}:1000 on=GetObject times=1")
        with pytest.raises((IncompleteReadError, ResponseStreamingError, ConnectionClosedError)):
            get(s3)
    server.inject("truncate:1000 on=GetObject times=1")
    assert get(s3) == BODY[:1000]
    assert get(s3) == BODY


def test_a_reset_is_a_reset_and_a_cut_a_close() -> None:
    """Seen on the bare socket, after the bytes that were to come."""
    with testing.Server(buckets=[BUCKET]) as server:
        host, _, port = server.endpoint_url.removeprefix("http://").partition(":")
        for what in ("reset", "cut"):
            server.inject(f"{what}:10 times=1")
            with socket.create_connection((host, int(port))) as link:
                link.sendall(b"GET /checkpoints/k HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(0.3)
                received = b""
                try:
                    while more := link.recv(4096):
                        received += more
                except ConnectionResetError:
                    assert what == "reset"
                else:
                    assert what == "cut"
                assert received.partition(b"\r\n\r\n")[2] == b"<?xml vers"
                linger = link.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
                assert struct.unpack("ii", linger) == (0, 0)


def test_a_stall_and_a_silence_last_until_the_client_gives_up(server: testing.Server, s3: Any) -> None:
    server.inject("silence on=PutObject times=1")
    with pytest.raises(ReadTimeoutError):
        put(s3, "silent")
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET, Prefix="silent")
    server.inject("stall:1000 on=GetObject times=1")
    body = s3.get_object(Bucket=BUCKET, Key="k")["Body"]
    assert body.read(1000) == BODY[:1000]
    with pytest.raises(ReadTimeoutError):
        body.read(1)


def test_a_delay_comes_before_the_answer(server: testing.Server, s3: Any) -> None:
    server.inject("delay:200ms on=HeadObject times=1")
    began = time.monotonic()
    s3.head_object(Bucket=BUCKET, Key="k")
    assert time.monotonic() - began >= 0.2


def test_one_bit_flips_on_the_way_down(server: testing.Server, s3: Any) -> None:
    server.inject("flip on=GetObject times=20")
    places = set()
    for _ in range(20):
        damaged = get(s3)
        (place,) = [at for at in range(len(BODY)) if damaged[at] != BODY[at]]
        assert (damaged[place] ^ BODY[place]).bit_count() == 1
        places.add(place)
    assert len(places) > 10
    assert get(s3) == BODY


def test_one_bit_flips_on_the_way_up(server: testing.Server, s3: Any) -> None:
    server.inject("flip-request on=PutObject times=2")
    put(s3, "damaged")
    assert sum((a ^ b).bit_count() for a, b in zip(get(s3, "damaged"), BODY, strict=True)) == 1
    with pytest.raises(ClientError, match="BadDigest"):
        put(s3, "damaged", ChecksumCRC32=base64.b64encode(struct.pack(">I", zlib.crc32(BODY))).decode())


def test_the_same_seed_flips_the_same_bits() -> None:
    def damaged(seed: int) -> bytes:
        with testing.Server(buckets=[BUCKET], faults=["flip"], fault_seed=seed) as server:
            request = urllib.request.Request(f"{server.endpoint_url}/none")
            try:
                urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                body: bytes = error.read()
                return body.partition(b"<RequestId>")[0]
            raise AssertionError("an anonymous request was let in")

    assert damaged(1) == damaged(1)
    assert len({damaged(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("rule", "named"), [("explode", "explode"), ("drop on=Upload", "Upload"), ("error:Sloth", "Sloth"), ("", "begins")]
)
def test_what_is_no_rule_is_refused(server: testing.Server, rule: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        server.inject(rule)
    with pytest.raises(ValueError, match=named):
        testing.Server(faults=[rule])
    assert server.faults() == []


def test_the_certificate_is_verified_by_whoever_verifies() -> None:
    with testing.server([BUCKET], tls=True) as server:
        assert server.endpoint_url.startswith("https://127.0.0.1:")
        assert "BEGIN CERTIFICATE" in (server.authority or "")
        boto3.client("s3").head_bucket(Bucket=BUCKET)
        with pytest.raises(SSLError):
            boto3.client("s3", verify=True, config=Config(retries={"total_max_attempts": 1})).head_bucket(Bucket=BUCKET)
        context = ssl.create_default_context(cadata=server.authority)
        port = int(server.endpoint_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as link:
            context.wrap_socket(link, server_hostname="localhost").close()
    with testing.server() as server:
        assert server.authority is None
