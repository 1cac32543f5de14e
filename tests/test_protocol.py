"""What S3 answers, as boto3 and the peer's client see it: by the embedded server on both back-ends, or by another."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import io
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from s3dcp import testing
from support.by_hand import BUCKET, CHECKSUMS, KEYS, MIB, Upload, checksum_of, connect, crc32, get, put, refusal


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        name = metafunc.config.getoption("--s3")
        servers = ["memory", "disk"] if name == "embedded" else [name]
        metafunc.parametrize("server", servers, indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[testing.Server]:
    if request.param in ("memory", "disk"):
        with testing.Server(tmp_path_factory.mktemp("store") if request.param == "disk" else None) as running:
            yield running
    else:
        yield request.getfixturevalue("s3dcp_server")


@pytest.fixture
def s3(server: testing.Server) -> Iterator[Any]:
    """A client, and an empty bucket called `BUCKET`."""
    server.create_bucket(BUCKET)
    yield connect(server)
    server.delete_bucket(BUCKET)


def test_any_key_is_kept_listed_and_deleted(s3: Any) -> None:
    for key in KEYS:
        put(s3, key, key.encode())
    listed = [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert listed == sorted(KEYS, key=str.encode)
    for key in KEYS:
        assert get(s3, key) == key.encode()
    answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in [*KEYS, "absent"]]})
    assert len(answer["Deleted"]) == len(KEYS) + 1
    assert "Contents" not in s3.list_objects_v2(Bucket=BUCKET)


def test_a_key_may_have_1024_bytes(s3: Any) -> None:
    put(s3, "x" * 1024, b"body")
    assert get(s3, "x" * 1024) == b"body"


def test_a_longer_key_is_refused(s3: Any) -> None:
    assert refusal(s3.put_object, Bucket=BUCKET, Key="x" * 1025) == ("KeyTooLongError", 400)


def test_headers_and_user_metadata_come_back(s3: Any) -> None:
    stored = {
        "ContentType": "application/x-checkpoint",
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "ContentDisposition": "attachment",
        "CacheControl": "no-store",
        "Metadata": {"step": "500", "loss": "0.25"},
    }
    put(s3, "object", b"body", **stored)
    head = s3.head_object(Bucket=BUCKET, Key="object")
    assert {name: head[name] for name in stored} == stored
    assert head["ContentLength"] == 4
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "object"})
    copy = s3.head_object(Bucket=BUCKET, Key="copy")
    assert {name: copy[name] for name in stored} == stored
    replaced = {"MetadataDirective": "REPLACE", "Metadata": {"step": "501"}}
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "object"}, **replaced)
    assert s3.head_object(Bucket=BUCKET, Key="copy")["Metadata"] == {"step": "501"}


def test_a_copy_of_an_object_to_itself_must_change_something(s3: Any) -> None:
    put(s3, "object", b"body")
    source = {"Bucket": BUCKET, "Key": "object"}
    assert refusal(s3.copy_object, Bucket=BUCKET, Key="object", CopySource=source) == ("InvalidRequest", 400)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=90-", slice(90, 100)),
        ("bytes=90-1000", slice(90, 100)),
        ("bytes=-7", slice(93, 100)),
        ("bytes=-1000", slice(0, 100)),
    ],
)
def test_a_range_is_partial_content(s3: Any, header: str, expected: slice) -> None:
    body = bytes(range(100))
    put(s3, "object", body)
    answer = s3.get_object(Bucket=BUCKET, Key="object", Range=header)
    assert answer["Body"].read() == body[expected]
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert answer["ContentRange"] == f"bytes {expected.start}-{expected.stop - 1}/100"
    assert "ChecksumCRC32" not in answer, "the checksum is that of the whole object"


def test_ranges_beyond_the_end_are_not_satisfiable(s3: Any) -> None:
    put(s3, "object", b"0123456789")
    put(s3, "empty")
    assert refusal(s3.get_object, Bucket=BUCKET, Key="object", Range="bytes=10-") == ("InvalidRange", 416)
    assert refusal(s3.get_object, Bucket=BUCKET, Key="empty", Range="bytes=0-0") == ("InvalidRange", 416)
    assert get(s3, "empty") == b""


def test_parts_can_be_read_by_number(s3: Any) -> None:
    upload = Upload(s3, "object")
    bodies = [os.urandom(5 * MIB), os.urandom(5 * MIB + 3), b"end"]
    upload.complete([upload.part(number, body) for number, body in enumerate(bodies, 1)])
    for number, body in enumerate(bodies, 1):
        answer = s3.get_object(Bucket=BUCKET, Key="object", PartNumber=number)
        assert answer["Body"].read() == body
        assert answer["PartsCount"] == 3
    call = {"Bucket": BUCKET, "Key": "object", "PartNumber": 4}
    assert refusal(s3.get_object, **call) == ("InvalidPartNumber", 416)
    # Ranges that cross from part to part.
    whole = b"".join(bodies)
    edge = 5 * MIB
    assert get(s3, "object", Range=f"bytes={edge - 2}-{edge + 2}") == whole[edge - 2 : edge + 3]
    assert get(s3, "object", Range="bytes=-5") == whole[-5:]


@pytest.fixture
def keys(s3: Any) -> list[str]:
    """What is in the bucket."""
    keys = [f"{top}/{n:02}/x y" for top in ("a", "b") for n in range(7)] + ["c", "d+e"]
    for key in keys:
        put(s3, key)
    return keys


@pytest.mark.parametrize("version", ["list_objects", "list_objects_v2"])
def test_listings_page_and_group(s3: Any, keys: list[str], version: str) -> None:
    for size in (1, 2, 5, 100):
        paging: dict[str, Any] = {"Bucket": BUCKET, "PaginationConfig": {"PageSize": size}}
        pages = s3.get_paginator(version).paginate(**paging)
        assert [entry["Key"] for page in pages for entry in page.get("Contents", [])] == keys
        pages = s3.get_paginator(version).paginate(**paging, Delimiter="/")
        found = [(page.get("CommonPrefixes", []), page.get("Contents", [])) for page in pages]
        assert [entry["Prefix"] for prefixes, _ in found for entry in prefixes] == ["a/", "b/"]
        assert [entry["Key"] for _, objects in found for entry in objects] == ["c", "d+e"]


def test_listings_start_where_told(s3: Any, keys: list[str]) -> None:
    below = s3.list_objects_v2(Bucket=BUCKET, Prefix="a/", Delimiter="/", MaxKeys=3)
    assert [entry["Prefix"] for entry in below["CommonPrefixes"]] == ["a/00/", "a/01/", "a/02/"]
    assert below["IsTruncated"]
    assert below["KeyCount"] == 3
    after = s3.list_objects_v2(Bucket=BUCKET, StartAfter="b/06/x y")
    assert [entry["Key"] for entry in after["Contents"]] == ["c", "d+e"]
    assert s3.list_objects_v2(Bucket=BUCKET, MaxKeys=0)["KeyCount"] == 0


def test_a_made_up_continuation_token_is_refused(s3: Any) -> None:
    assert refusal(s3.list_objects_v2, Bucket=BUCKET, ContinuationToken="?") == ("InvalidArgument", 400)


def test_a_bucket_is_made_once(s3: Any) -> None:
    assert refusal(s3.create_bucket, Bucket=BUCKET) == ("BucketAlreadyOwnedByYou", 409)


def test_a_bucket_needs_a_valid_name(s3: Any) -> None:
    assert refusal(s3.create_bucket, Bucket="Not_Valid") == ("InvalidBucketName", 400)


def test_buckets_are_made_listed_and_deleted(s3: Any) -> None:
    s3.create_bucket(Bucket="another")
    names = [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    assert names == ["another", BUCKET]
    s3.put_object(Bucket="another", Key="object", Body=b"")
    assert refusal(s3.delete_bucket, Bucket="another") == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket="another", Key="object")
    s3.delete_bucket(Bucket="another")
    assert refusal(s3.head_bucket, Bucket="another") == ("404", 404)


def test_a_bucket_tells_its_region(s3: Any) -> None:
    assert s3.head_bucket(Bucket=BUCKET)["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket=BUCKET)["LocationConstraint"] is None


def test_what_does_not_exist_is_named(s3: Any) -> None:
    assert refusal(s3.get_object, Bucket=BUCKET, Key="absent") == ("NoSuchKey", 404)
    assert refusal(s3.head_object, Bucket=BUCKET, Key="absent") == ("404", 404)
    assert refusal(s3.get_object, Bucket="absent", Key="absent") == ("NoSuchBucket", 404)
    assert refusal(s3.put_object, Bucket="absent", Key="x", Body=b"x" * MIB) == ("NoSuchBucket", 404)
    assert refusal(s3.list_objects_v2, Bucket="absent") == ("NoSuchBucket", 404)
    call = {"Bucket": BUCKET, "Key": "x", "UploadId": "absent"}
    assert refusal(s3.upload_part, **call, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
    assert refusal(s3.abort_multipart_upload, **call) == ("NoSuchUpload", 404)
    s3.delete_object(Bucket=BUCKET, Key="absent")


def test_a_put_that_wants_no_object_replaces_none(s3: Any) -> None:
    put(s3, "object", b"1", IfNoneMatch="*")
    call = {"Bucket": BUCKET, "Key": "object", "Body": b"2"}
    assert refusal(s3.put_object, **call, IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert get(s3, "object") == b"1"


def test_a_put_that_wants_an_object_replaces_no_other(s3: Any) -> None:
    first = put(s3, "object", b"1")["ETag"]
    call = {"Bucket": BUCKET, "Key": "object", "Body": b"2"}
    assert refusal(s3.put_object, **call, IfMatch='"other"') == ("PreconditionFailed", 412)
    assert get(s3, "object") == b"1"
    second = put(s3, "object", b"2", IfMatch=first)["ETag"]
    assert second != first
    assert refusal(s3.put_object, **call, IfMatch=first) == ("PreconditionFailed", 412)
    absent = {"Bucket": BUCKET, "Key": "absent", "Body": b"", "IfMatch": first}
    assert refusal(s3.put_object, **absent) == ("NoSuchKey", 404)


def test_a_conditional_completion_holds(s3: Any) -> None:
    first = put(s3, "object", b"1")["ETag"]
    upload = Upload(s3, "object")
    parts = [upload.part(1, b"3")]
    assert refusal(upload.complete, parts=parts, IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refusal(upload.complete, parts=parts, IfMatch='"other"') == ("PreconditionFailed", 412)
    upload.complete(parts, IfMatch=first)
    assert get(s3, "object") == b"3"


def test_conditional_reads_hold(s3: Any) -> None:
    put(s3, "object", b"body")
    head = s3.head_object(Bucket=BUCKET, Key="object")
    etag, modified = head["ETag"], head["LastModified"]
    call = {"Bucket": BUCKET, "Key": "object"}
    assert get(s3, "object", IfMatch=etag) == b"body"
    assert get(s3, "object", IfNoneMatch='"other"') == b"body"
    assert refusal(s3.get_object, **call, IfMatch='"other"') == ("PreconditionFailed", 412)
    assert refusal(s3.get_object, **call, IfNoneMatch=etag) == ("304", 304)
    assert refusal(s3.head_object, **call, IfModifiedSince=modified) == ("304", 304)
    assert refusal(s3.head_object, **call, IfUnmodifiedSince=modified.replace(year=2000)) == ("412", 412)


@pytest.mark.parametrize("kind", ["single", "multipart"])
def test_of_racing_conditional_writers_exactly_one_wins(server: testing.Server, s3: Any, kind: str) -> None:
    writers = 12
    clients = [connect(server) for _ in range(writers)]
    start = threading.Barrier(writers)

    def race(writer: int, key: str) -> bool:
        client = clients[writer]
        if kind == "multipart":
            upload = Upload(client, key)
            parts = [upload.part(1, str(writer).encode())]
            start.wait()
            attempt = lambda: upload.complete(parts, IfNoneMatch="*")  # noqa: E731
        else:
            start.wait()
            attempt = lambda: put(client, key, str(writer).encode(), IfNoneMatch="*")  # noqa: E731
        try:
            attempt()
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        for turn in range(10):
            won = list(pool.map(race, range(writers), [str(turn)] * writers))
            assert won.count(True) == 1
            assert get(s3, str(turn)) == str(won.index(True)).encode()


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_checksums_in_headers_are_verified_and_returned(s3: Any, algorithm: str) -> None:
    body = os.urandom(100_001)
    field, right = f"Checksum{algorithm}", checksum_of(algorithm, body)
    answer = put(s3, "object", body, **{field: right})
    assert (answer[field], answer["ChecksumType"]) == (right, "FULL_OBJECT")
    # Without checksum validation, for which boto3 would need a library of its own.
    back = s3.head_object(Bucket=BUCKET, Key="object", ChecksumMode="ENABLED")
    assert back[field] == right
    call = {"Bucket": BUCKET, "Key": "object", "Body": b"other"}
    assert refusal(s3.put_object, **call, **{field: right}) == ("BadDigest", 400)
    assert refusal(s3.put_object, **call, **{field: "AAAA"}) == ("InvalidRequest", 400)
    assert get(s3, "object") == body, "a refused body must not replace the object"


def put_with_trailer(server: testing.Server, key: str, body: bytes, name: str, value: str) -> int:
    """Puts an object in the aws-chunked encoding, its checksum in a trailer, and gives the status."""
    request = AWSRequest(
        "PUT",
        f"{server.endpoint_url}/{BUCKET}/{key}",
        headers={
            "content-encoding": "aws-chunked",
            "x-amz-decoded-content-length": str(len(body)),
            "x-amz-trailer": name,
        },
    )
    request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", "us-east-1").add_auth(request)
    chunks = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    encoded = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    encoded += b"0\r\n%s:%s\r\n\r\n" % (name.encode(), value.encode())
    connection = http.client.HTTPConnection(server.endpoint_url.removeprefix("http://"))
    with contextlib.closing(connection):
        connection.request("PUT", f"/{BUCKET}/{key}", encoded, dict(request.headers))
        return connection.getresponse().status


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_checksums_in_trailers_are_verified(server: testing.Server, s3: Any, algorithm: str) -> None:
    body = os.urandom(200_001)
    name, right = f"x-amz-checksum-{algorithm.lower()}", checksum_of(algorithm, body)
    assert put_with_trailer(server, "object", body, name, right) == 200
    head = s3.head_object(Bucket=BUCKET, Key="object", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == right
    assert "ContentEncoding" not in head, "aws-chunked is how it travelled, not what it is"
    assert get(s3, "object") == body
    assert put_with_trailer(server, "wrong", body, name, checksum_of(algorithm, b"other")) == 400
    assert refusal(s3.head_object, Bucket=BUCKET, Key="wrong") == ("404", 404)


def test_known_checksum_values() -> None:
    assert checksum_of("CRC32", b"123456789") == "y/Q5Jg=="
    assert checksum_of("CRC32C", b"123456789") == "4waSgw=="
    assert checksum_of("CRC64NVME", b"123456789") == "rosUhgp5mIg="


def test_content_md5_is_verified(s3: Any) -> None:
    md5 = base64.b64encode(hashlib.md5(b"body").digest()).decode()
    assert put(s3, "object", b"body", ContentMD5=md5)["ETag"] == f'"{hashlib.md5(b"body").hexdigest()}"'
    call = {"Bucket": BUCKET, "Key": "object", "Body": b"bodY"}
    assert refusal(s3.put_object, **call, ContentMD5=md5) == ("BadDigest", 400)
    assert refusal(s3.put_object, **call, ContentMD5="nonsense") == ("InvalidDigest", 400)


def test_a_multipart_upload_has_one_checksum_of_the_whole_object(s3: Any) -> None:
    bodies = [os.urandom(5 * MIB), os.urandom(6 * MIB), b"end"]
    whole = b"".join(bodies)
    upload = Upload(s3, "object", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    parts = [upload.part(number, body, ChecksumAlgorithm="CRC32") for number, body in enumerate(bodies, 1)]
    wrong = {"ChecksumCRC32": crc32(b"other"), "ChecksumType": "FULL_OBJECT"}
    assert refusal(upload.complete, parts=parts, **wrong) == ("BadDigest", 400)
    answer = upload.complete(parts, ChecksumCRC32=crc32(whole), ChecksumType="FULL_OBJECT")
    assert answer["ChecksumCRC32"] == crc32(whole)
    head = s3.head_object(Bucket=BUCKET, Key="object", ChecksumMode="ENABLED")
    assert (head["ChecksumCRC32"], head["ChecksumType"]) == (crc32(whole), "FULL_OBJECT")
    assert get(s3, "object") == whole


def test_a_composite_checksum_is_of_the_parts_checksums(s3: Any) -> None:
    bodies = [os.urandom(5 * MIB), b"end"]
    upload = Upload(s3, "object", ChecksumAlgorithm="SHA256")
    parts = [upload.part(number, body, ChecksumAlgorithm="SHA256") for number, body in enumerate(bodies, 1)]
    digests = b"".join(hashlib.sha256(body).digest() for body in bodies)
    expected = base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-2"
    answer = upload.complete(parts)
    assert (answer["ChecksumSHA256"], answer["ChecksumType"]) == (expected, "COMPOSITE")
    call = {"Bucket": BUCKET, "Key": "x", "ChecksumAlgorithm": "SHA256", "ChecksumType": "FULL_OBJECT"}
    assert refusal(s3.create_multipart_upload, **call) == ("InvalidRequest", 400)


def test_a_part_with_another_algorithm_than_its_upload_is_refused(s3: Any) -> None:
    upload = Upload(s3, "object", ChecksumAlgorithm="CRC32")
    with pytest.raises(ClientError, match="expected checksum Type: crc32, actual checksum Type: sha256"):
        upload.part(1, b"body", ChecksumAlgorithm="SHA256")


def test_completing_an_upload_checks_its_parts(s3: Any) -> None:
    upload = Upload(s3, "object", Metadata={"a": "b"})
    first, second = upload.part(2, b"x" * 5 * MIB), upload.part(5, b"tail")
    small = upload.part(3, b"small")
    assert refusal(upload.complete, parts=[second, first]) == ("InvalidPartOrder", 400)
    assert refusal(upload.complete, parts=[first, first]) == ("InvalidPartOrder", 400)
    assert refusal(upload.complete, parts=[first, {**second, "ETag": '"no"'}]) == ("InvalidPart", 400)
    assert refusal(upload.complete, parts=[first, {**second, "PartNumber": 9}]) == ("InvalidPart", 400)
    assert refusal(upload.complete, parts=[first, small, second]) == ("EntityTooSmall", 400)
    assert refusal(upload.complete, parts=[]) == ("MalformedXML", 400)
    assert refusal(upload.complete, parts=[first], MpuObjectSize=7) == ("InvalidRequest", 400)
    assert refusal(s3.upload_part, **upload.names, PartNumber=10_001, Body=b"") == ("InvalidArgument", 400)
    listed = s3.list_parts(**upload.names, MaxParts=2)
    assert [(part["PartNumber"], part["Size"]) for part in listed["Parts"]] == [(2, 5 * MIB), (3, 5)]
    assert listed["IsTruncated"]
    rest = s3.list_parts(**upload.names, PartNumberMarker=listed["NextPartNumberMarker"])
    assert [part["PartNumber"] for part in rest["Parts"]] == [5]
    replaced = upload.part(5, b"new tail")
    answer = upload.complete([first, replaced])
    assert re.fullmatch(r'"[0-9a-f]{32}-2"', answer["ETag"])
    assert get(s3, "object") == b"x" * 5 * MIB + b"new tail"
    assert s3.head_object(Bucket=BUCKET, Key="object")["Metadata"] == {"a": "b"}
    assert refusal(s3.list_parts, **upload.names) == ("NoSuchUpload", 404)


def test_a_repeated_completion_answers_like_the_first(s3: Any) -> None:
    upload = Upload(s3, "object")
    parts = [upload.part(1, b"body")]
    etag = upload.complete(parts)["ETag"]
    assert etag
    assert upload.complete(parts)["ETag"] == etag


def test_uploads_are_listed_until_they_end(s3: Any) -> None:
    uploads = [Upload(s3, key) for key in "abcdefghijkl"]
    listed = s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [(entry["Key"], entry["UploadId"]) for entry in listed] == [
        (upload.names["Key"], upload.names["UploadId"]) for upload in uploads
    ]
    page = s3.list_multipart_uploads(Bucket=BUCKET, MaxUploads=1)
    assert page["IsTruncated"]
    markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
    rest = s3.list_multipart_uploads(Bucket=BUCKET, **markers)["Uploads"]
    assert [entry["UploadId"] for entry in rest] == [upload.names["UploadId"] for upload in uploads[1:]]
    for upload in uploads:
        s3.abort_multipart_upload(**upload.names)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


def test_uploads_of_one_key_are_listed_in_the_order_they_began(s3: Any) -> None:
    uploads = [Upload(s3, "object").names["UploadId"] for _ in range(12)]
    assert [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == uploads


def test_copies_are_objects_of_their_own(s3: Any) -> None:
    body = os.urandom(11 * MIB)
    put(s3, "source", body)
    source = {"Bucket": BUCKET, "Key": "source"}
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=source)
    upload = Upload(s3, "joined")
    parts = []
    for number, (first, last) in enumerate([(0, 6 * MIB - 1), (6 * MIB, 11 * MIB - 1)], 1):
        answer = s3.upload_part_copy(
            **upload.names, PartNumber=number, CopySource=source, CopySourceRange=f"bytes={first}-{last}"
        )
        parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    upload.complete(parts)
    s3.delete_object(**source)
    assert get(s3, "copy") == body
    assert get(s3, "joined") == body
    assert refusal(s3.copy_object, Bucket=BUCKET, Key="x", CopySource=source) == ("NoSuchKey", 404)


def test_a_copy_of_another_object_than_expected_is_refused(s3: Any) -> None:
    put(s3, "source", b"body")
    conditional = {"CopySource": {"Bucket": BUCKET, "Key": "source"}, "CopySourceIfMatch": '"other"'}
    assert refusal(s3.copy_object, Bucket=BUCKET, Key="x", **conditional) == ("PreconditionFailed", 412)


def test_copies_have_the_checksum_of_their_bytes(s3: Any) -> None:
    body = os.urandom(11 * MIB)
    put(s3, "source", body, ChecksumAlgorithm="CRC32")
    source = {"Bucket": BUCKET, "Key": "source"}
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource=source)
    assert s3.head_object(Bucket=BUCKET, Key="copy", ChecksumMode="ENABLED")["ChecksumCRC32"] == crc32(body)
    upload = Upload(s3, "joined", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
    copied = s3.upload_part_copy(**upload.names, PartNumber=1, CopySource=source)
    parts = [{"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]}]
    upload.complete(parts, ChecksumCRC32=crc32(body), ChecksumType="FULL_OBJECT")


def test_an_object_that_is_overwritten_while_it_is_read_is_read_to_its_end(s3: Any) -> None:
    body = os.urandom(24 * MIB)
    put(s3, "object", body)
    stream = s3.get_object(Bucket=BUCKET, Key="object")["Body"]
    head = stream.read(MIB)
    put(s3, "object", b"new")
    assert head + stream.read() == body
    assert get(s3, "object") == b"new"


def test_the_transfer_manager_moves_files_in_parts(s3: Any, tmp_path: Path) -> None:
    body = os.urandom(23 * MIB + 1)
    (tmp_path / "up").write_bytes(body)
    transfer = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    s3.upload_file(str(tmp_path / "up"), BUCKET, "object", Config=transfer)
    s3.download_file(BUCKET, "object", str(tmp_path / "down"), Config=transfer)
    assert (tmp_path / "down").read_bytes() == body


def test_signatures_are_verified(server: testing.Server, s3: Any) -> None:
    put(s3, "object", b"body")
    wrong_secret = connect(server, aws_secret_access_key="wrong")
    assert refusal(wrong_secret.get_object, Bucket=BUCKET, Key="object") == ("SignatureDoesNotMatch", 403)
    big = {"Bucket": BUCKET, "Key": "object", "Body": os.urandom(8 * MIB)}
    assert refusal(wrong_secret.put_object, **big) == ("SignatureDoesNotMatch", 403)
    wrong_key = connect(server, aws_access_key_id="nobody")
    assert refusal(wrong_key.get_object, Bucket=BUCKET, Key="object") == ("InvalidAccessKeyId", 403)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server.endpoint_url}/{BUCKET}/object")
    with caught.value:
        assert caught.value.code == 403
        assert b"AccessDenied" in caught.value.read()
    assert get(s3, "object") == b"body"


def test_a_tampered_body_is_refused(server: testing.Server, s3: Any) -> None:
    tampering = connect(server)

    def tamper(request: Any, **_: Any) -> None:
        request.body = b"tampered"

    tampering.meta.events.register("before-send.s3.PutObject", tamper)
    call = {"Bucket": BUCKET, "Key": "object", "Body": b"original"}
    assert refusal(tampering.put_object, **call)[1] == 400
    assert refusal(s3.head_object, Bucket=BUCKET, Key="object") == ("404", 404)


def test_presigned_urls_work_until_they_are_changed(s3: Any) -> None:
    put(s3, "object", b"body")
    url = s3.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": "object"})
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"body"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url.replace("object", "other"))
    with caught.value:
        assert caught.value.code == 403


@pytest.mark.parametrize("style", ["path", "virtual"])
def test_path_and_virtual_host_style_name_the_same_bucket(
    server: testing.Server, s3: Any, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not every resolver knows the names below localhost.
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *more, **named: resolve("127.0.0.1", *more, **named))
    port = server.endpoint_url.rsplit(":", 1)[1]
    client = connect(server, endpoint_url=f"http://localhost:{port}", config={"s3": {"addressing_style": style}})
    hosts = []
    client.meta.events.register("before-send.s3", lambda request, **_: hosts.append(request.url))
    client.put_object(Bucket=BUCKET, Key="a b/c", Body=style.encode())
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["a b/c"]
    assert get(s3, "a b/c") == style.encode()
    assert all((f"{BUCKET}.localhost" in host) == (style == "virtual") for host in hosts)


def test_the_peers_client_reads_writes_and_lists(server: testing.Server, s3: Any) -> None:
    peer = pytest.importorskip("s3torchconnector._s3client")
    with testing.environment(server):
        client = peer.S3Client("us-east-1", endpoint=server.endpoint_url)
        bodies = {"small": b"hello", "empty": b"", "large": os.urandom(40 * MIB + 7)}
        for key, body in bodies.items():
            writer = client.put_object(BUCKET, f"peer/{key}")
            writer.write(body)
            writer.close()
        for key, body in bodies.items():
            assert get(s3, f"peer/{key}") == body
            assert client.get_object(BUCKET, f"peer/{key}").read() == body
            assert client.head_object(BUCKET, f"peer/{key}").size == len(body)
        listed = [info.key for page in client.list_objects(BUCKET, "peer/") for info in page.object_info]
        assert listed == [f"peer/{key}" for key in sorted(bodies)]
        client.copy_object(BUCKET, "peer/large", BUCKET, "peer/copy")
        client.delete_object(BUCKET, "peer/large")
        assert get(s3, "peer/copy") == bodies["large"]
        reader = client.get_object(BUCKET, "peer/copy")
        reader.seek(20 * MIB)
        assert reader.read(5) == bodies["large"][20 * MIB : 20 * MIB + 5]
        with pytest.raises(Exception, match=r"(?i)not found|NoSuchKey|does not exist"):
            client.get_object(BUCKET, "peer/absent").read()


def test_an_aborted_body_leaves_nothing(server: testing.Server, s3: Any) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 4 * MIB:
                raise OSError("the source broke")
            return super().read(size)

    with pytest.raises(Exception, match="the source broke"):
        put(s3, "object", Broken(b"x" * 8 * MIB))  # type: ignore[arg-type]
    assert refusal(s3.head_object, Bucket=BUCKET, Key="object") == ("404", 404)
