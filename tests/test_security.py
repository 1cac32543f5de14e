"""What SECURITY.md promises: transport, secrets, and what the embedded server does not let anyone do."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, ParamValidationError

from s3dcp import ConfigError, ConnectionFailed, Corrupt, S3ClientConfig, S3DcpError, S3FileSystem, testing
from support import jobs, wire
from support.children import raised_by
from support.indexes import without_checksums
from support.states import blank, training_state, values
from support.store import REGION, Store
from support.wire import Between, Request, Scripted, Tls

ACCESS_KEY = "AKIDOFTHETEST"
SECRET_KEY = "the+secret/key+of/the+test"
TOKEN = "the+session/token+of/the+test=="
PASSWORD = "hunter2-of-the-test"


ROOT = Path(__file__).parents[1]


def test_every_promise_names_tests_that_exist() -> None:
    sources = [*(ROOT / "tests").glob("test_*.py"), *(ROOT / "crates").rglob("*.rs")]
    known = {name for path in sources for name in re.findall(r"\b(?:def|fn) (\w+)\(", path.read_text())}
    rows = re.findall(r"^\| ([^|]+) \| (`[^|]+`) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    for promise, tests in rows:
        for test in re.findall(r"`([^`]+)`", tests):
            assert test in known, f"{promise}: there is no test {test}"


# -- transport


def test_a_certificate_of_an_unknown_authority_is_refused_before_anything_is_sent(
    store: Store, s3dcp_server: testing.Server
) -> None:
    with Tls(s3dcp_server.endpoint_url) as tls:
        for function in (jobs.save_training_state, jobs.check_training_state):
            error = raised_by(function, store.uri, endpoint_url=tls.url)
            assert isinstance(error, ConfigError), error
            assert "ca_bundle" in str(error)
            assert not error.retryable
        assert tls.connections > 0
        assert tls.trusted == 0
    assert store.all_keys() == []


@pytest.mark.parametrize("how", ["ca_bundle", "AWS_CA_BUNDLE"])
def test_a_bundle_makes_an_authority_known(
    store: Store, s3dcp_server: testing.Server, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "AWS_CA_BUNDLE":
        monkeypatch.setenv(how, str(wire.AUTHORITY))
    config = S3ClientConfig(ca_bundle=str(wire.AUTHORITY) if how == "ca_bundle" else None)
    with Tls(s3dcp_server.endpoint_url) as tls:
        jobs.save_training_state(store.uri, endpoint_url=tls.url, s3client_config=config)
        jobs.check_training_state(store.uri, endpoint_url=tls.url, s3client_config=config)
        assert tls.trusted > 0


def test_a_certificate_for_another_name_is_refused(store: Store, s3dcp_server: testing.Server) -> None:
    config = S3ClientConfig(ca_bundle=str(wire.AUTHORITY))
    with Tls(s3dcp_server.endpoint_url, "127.0.0.2") as tls:
        error = raised_by(jobs.save_training_state, store.uri, endpoint_url=tls.url, s3client_config=config)
        assert isinstance(error, ConfigError)
        assert "certificate" in str(error)
        assert tls.trusted == 0


def test_an_https_endpoint_never_gets_a_request_in_the_clear(store: Store) -> None:
    heard: list[bytes] = []

    class Plain(wire.Wire):
        def serve(self, connection: socket.socket) -> None:
            heard.append(connection.recv(wire.PIECE))

    with Plain() as plain:
        url = plain.url.replace("http://", "https://")
        config = S3ClientConfig(max_attempts=2)
        error = raised_by(jobs.save_training_state, store.uri, endpoint_url=url, s3client_config=config)
    assert isinstance(error, ConnectionFailed)
    assert heard
    for data in heard:
        assert data[:2] == b"\x16\x03", "the beginning of a TLS handshake"
        assert b"AWS4-HMAC-SHA256" not in data


def test_a_redirect_is_not_followed(store: Store) -> None:
    with Scripted(lambda _: wire.answer("200 OK")) as elsewhere:
        for status in ("301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            with Scripted(lambda _, status=status: wire.answer(status, Location=f"{elsewhere.url}/x")) as service:
                config = S3ClientConfig(max_attempts=2)
                for function in (jobs.save_training_state, jobs.check_training_state):
                    error = raised_by(function, store.uri, endpoint_url=service.url, s3client_config=config)
                    assert isinstance(error, S3DcpError)
        assert elsewhere.connections == 0


# -- secrets


def test_an_endpoint_with_a_password_is_refused_without_repeating_it(store: Store, monkeypatch) -> None:
    for url in (f"http://me:{PASSWORD}@127.0.0.1:1", f"me:{PASSWORD}@127.0.0.1", f"http://me:a/{PASSWORD}@host"):
        for make in (
            lambda url=url: S3ClientConfig(endpoint_url=url),
            lambda url=url: S3FileSystem(REGION, endpoint_url=url),
            lambda url=url: jobs.save({}, store.uri, endpoint_url=url),
        ):
            error = raised_by(make)
            assert isinstance(error, ValueError)
            assert "endpoint_url" in str(error)
            assert PASSWORD not in f"{error} {error!r}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        error = raised_by(S3FileSystem(REGION).exists, store.uri)
        assert isinstance(error, ConfigError)
        assert "AWS_ENDPOINT_URL" in str(error)
        assert PASSWORD not in f"{error} {error!r} {vars(error)}"


def echo(request: Request) -> bytes:
    """A refusal that repeats the request, as S3 does to help with signatures."""
    text = request.head.decode("latin-1").replace("&", "&amp;").replace("<", "&lt;")
    code = "ExpiredToken" if "/expired/" in request.target else "SignatureDoesNotMatch"
    more = f"<StringToSign>{text}</StringToSign><Token-0>{TOKEN}</Token-0><CanonicalRequest>{text}</CanonicalRequest>"
    return wire.error("403 Forbidden", code, "The request was refused.", more)


def test_no_secret_appears_in_logs_errors_tracebacks_reprs_or_pickles(tmp_path: Path) -> None:
    """A process that logs at every level runs saves, loads and failures, and shows all it has."""
    seen: list[Request] = []

    def note(request: Request) -> None:
        seen.append(request)

    malformed = tmp_path / "malformed"
    malformed.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\n{SECRET_KEY}\n  {TOKEN} = {SECRET_KEY}\n")
    commands = tmp_path / "commands"
    prints = tmp_path / "prints"
    prints.write_text(f'#!/bin/sh\nps -o args= -p $$ >>{tmp_path}/ran\necho \'{{"SecretAccessKey": "{SECRET_KEY}"\'\n')
    prints.chmod(0o755)
    commands.write_text(f"[profile broken]\ncredential_process = {prints}\n")
    chain = {
        "AWS_ACCESS_KEY_ID": "",
        "AWS_SECRET_ACCESS_KEY": "",
        "AWS_SESSION_TOKEN": "",
    }
    with (
        testing.Server(buckets=["bucket"], access_key=ACCESS_KEY, secret_key=SECRET_KEY) as server,
        testing.Server(buckets=["bucket"], access_key=ACCESS_KEY, secret_key=SECRET_KEY, region="eu-west-1") as abroad,
        Between(server.endpoint_url, note) as works,
        Between(abroad.endpoint_url, note) as wrong_region,
        Between(server.endpoint_url, lambda request: seen.append(request) or echo(request)) as refuses,
        Tls(server.endpoint_url) as untrusted,
        wire.refusing() as refusing,
    ):
        cases: dict[str, tuple[dict[str, str], str | None]] = {
            "works": ({}, works.url),
            "wrong secret": ({"AWS_SECRET_ACCESS_KEY": f"{SECRET_KEY}-not"}, works.url),
            "unknown key": ({"AWS_ACCESS_KEY_ID": "UNKNOWN"}, works.url),
            "wrong region": ({}, wrong_region.url),
            "refused with an echo": ({}, refuses.url),
            "expired": ({}, f"{refuses.url}/expired"),
            "no connection": ({}, refusing),
            "untrusted": ({}, untrusted.url),
            "password": ({}, f"http://me:{PASSWORD}@127.0.0.1:1"),
            "password in the environment": ({"AWS_ENDPOINT_URL": f"http://me:{PASSWORD}@127.0.0.1:1"}, None),
            "malformed profile": ({**chain, "AWS_SHARED_CREDENTIALS_FILE": str(malformed)}, works.url),
            "malformed credential process": (
                {**chain, "AWS_CONFIG_FILE": str(commands), "AWS_PROFILE": "broken"},
                works.url,
            ),
            "secret in a header": ({"AWS_SESSION_TOKEN": f"{TOKEN}\n"}, works.url),
        }
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_EC2_METADATA_DISABLED": "true",
            "RUST_LOG": "trace",
            "RUST_BACKTRACE": "full",
        }
        program = [sys.executable, "-X", "dev", "-X", "faulthandler", "-W", "ignore", "-m", "support.leaks", URI]
        shown = subprocess.run(
            program,
            input=json.dumps(cases).encode(),
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        )
    assert shown.returncode == 0, shown.stdout[-3000:]
    signatures = {match for request in seen for match in re.findall(r"Signature=([0-9a-f]{64})", request.head.decode())}
    assert len(signatures) > 20
    assert any(request.header("x-amz-security-token") == TOKEN for request in seen)
    for secret in (SECRET_KEY, TOKEN, PASSWORD, *signatures):
        at = shown.stdout.find(secret.encode())
        assert at < 0, shown.stdout[max(at - 1500, 0) : at + 200]
    for expected in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "eu-west-1", "ca_bundle", "DEBUG"):
        assert expected.encode() in shown.stdout
    assert SECRET_KEY not in (tmp_path / "ran").read_text()


URI = "s3://bucket/path"


# -- a hostile checkpoint


@pytest.mark.parametrize("what", ["length", "offset"])
@pytest.mark.parametrize("number", [1 << 33, 1 << 45, (1 << 63) - 1])
def test_absurd_numbers_in_an_index_set_no_memory_aside(store: Store, what: str, number: int) -> None:
    state = {"tensor": values((10,)), "object": 3}
    jobs.save(state, store.uri)
    original = store.read(".metadata")
    for name in state:
        metadata = without_checksums(original)
        for index, info in metadata.storage_data.items():
            if index.fqn == name:
                setattr(info, what, number)
        store.write(".metadata", pickle.dumps(metadata))
        assert isinstance(raised_by(jobs.load, blank(state), store.uri), Corrupt)


# -- the embedded server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory for a server, two levels below one that must stay as it is."""
    return tmp_path / "outer" / "data"


@pytest.fixture
def disk(data: Path) -> Iterator[testing.Server]:
    with testing.Server(data, ["checkpoints"]) as server:
        yield server


def connect(server: testing.Server, **changes: Any) -> Any:
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": server.access_key, "aws_secret_access_key": server.secret_key, **changes}
    return boto3.client("s3", endpoint_url=server.endpoint_url, region_name=REGION, config=config, **keys)


def send(server: testing.Server, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """A signed request whose target goes out as it is; status and body of the answer."""
    address = server.endpoint_url.removeprefix("http://")
    request = AWSRequest(method, f"{server.endpoint_url}{target}", {"Host": address, **headers}, body)
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", REGION).add_auth(request)
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, target, body, dict(request.headers.items()))
    answer = connection.getresponse()
    result = answer.status, answer.read()
    connection.close()
    return result


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    with testing.Server() as server:
        assert server.endpoint_url.startswith("http://127.0.0.1:")
    help_text = subprocess.run([sys.executable, "-m", "s3dcp", "serve", "--help"], capture_output=True, text=True)
    assert "[default: 127.0.0.1:9000]" in help_text.stdout


@pytest.mark.parametrize("hours", [-1, 1, -24 * 365])
def test_a_request_of_another_time_is_refused(s3dcp_server: testing.Server, hours: int, monkeypatch) -> None:
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: then.replace(tzinfo=None))
    status, body = send(s3dcp_server, "GET", "/")
    assert status == 403
    assert b"RequestTimeTooSkewed" in body


@pytest.mark.s3("embedded")
def test_a_request_without_a_signature_is_refused_whatever_it_asks(s3dcp_server: testing.Server, store: Store) -> None:
    store.write("object", b"body")
    address = s3dcp_server.endpoint_url.removeprefix("http://")
    target = f"/{store.bucket}/{store.path}/object".replace(" ", "%20")
    for method, path in [
        ("GET", "/"),
        ("GET", f"/{store.bucket}?list-type=2"),
        ("GET", target),
        ("HEAD", target),
        ("PUT", target),
        ("DELETE", target),
        ("POST", f"{target}?uploads"),
        ("PUT", f"{target}?partNumber=1&uploadId=x"),
        ("POST", f"/{store.bucket}?delete"),
        ("PUT", "/another-bucket"),
        ("DELETE", f"/{store.bucket}"),
        ("POST", f"/{store.bucket}"),
    ]:
        for headers in ({}, {"Authorization": "AWS4-HMAC-SHA256 nonsense"}, {"Authorization": "Bearer x"}):
            connection = http.client.HTTPConnection(address, timeout=30)
            connection.request(method, path, b"", headers)
            status = connection.getresponse().status
            connection.close()
            assert status >= 400, (method, path, headers)
    assert store.read("object") == b"body"


NASTY_KEYS = [
    "../../x",
    "a/../../../b",
    "/etc/passwd",
    "//x",
    "..",
    ".",
    "../",
    "..\\..\\x",
    "nul\0byte",
    "new\nline",
    "%2e%2e/%2e%2e/x",
    "..%2f..%2fx",
    "buckets/checkpoints/bucket.json",
    "store.json",
    "data/0",
]


def test_no_key_reaches_a_file_outside_the_directory(disk: testing.Server, data: Path) -> None:
    (data.parent / "x").write_text("precious")
    inside = re.compile(
        r"store\.json|lock|data/[0-9a-f]+|buckets/checkpoints/(bucket|objects/[0-9a-f]{2}/[0-9a-f]+)\.json"
    )
    s3 = connect(disk)
    fs = S3FileSystem(REGION, endpoint_url=disk.endpoint_url)
    with testing.environment(disk):
        for key in NASTY_KEYS:
            body = f"body of {key!r}".encode()
            with fs.create_stream(f"s3://checkpoints/{key}", "wb") as stream:
                stream.write(body)
            with fs.create_stream(f"s3://checkpoints/{key}", "rb") as stream:
                assert stream.read() == body
            if "\0" in key:
                continue  # no XML can hold it
            names = {"Bucket": "checkpoints", "Key": f"parts/{key}"}
            names["UploadId"] = s3.create_multipart_upload(**names)["UploadId"]
            etag = s3.upload_part(**names, PartNumber=1, Body=body)["ETag"]
            s3.complete_multipart_upload(**names, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
            source = {"Bucket": "checkpoints", "Key": f"parts/{key}"}
            s3.copy_object(Bucket="checkpoints", Key=f"copy/{key}", CopySource=source)
            assert s3.get_object(Bucket="checkpoints", Key=f"copy/{key}")["Body"].read() == body
        keys = {entry["Key"] for entry in s3.list_objects_v2(Bucket="checkpoints")["Contents"]}
        assert {f"copy/{key}" for key in NASTY_KEYS if "\0" not in key} <= keys
    assert files_below(data.parent.parent) - {f"outer/data/{name}" for name in files_below(data)} == {"outer/x"}
    assert (data.parent / "x").read_text() == "precious"
    assert [name for name in files_below(data) if not inside.fullmatch(name)] == []


@pytest.mark.parametrize(
    "target",
    [
        "/checkpoints/../../x",
        "/checkpoints/%2e%2e/%2e%2e/x",
        "/checkpoints/..%2f..%2fx",
        "/checkpoints/%00",
        "/../x/y",
        "/%2e%2e/x",
        "/%2e%2e%2fx/y",
        "/..",
        "/...",
        "/%00/x",
        "//x",
    ],
)
def test_no_target_reaches_a_file_outside_the_directory(disk: testing.Server, data: Path, target: str) -> None:
    (data.parent / "x").write_text("precious")
    for method in ("PUT", "GET", "DELETE"):
        status, body = send(disk, method, target, b"body" if method == "PUT" else b"")
        assert status < 500
        assert b"precious" not in body
    assert files_below(data.parent) - {f"data/{name}" for name in files_below(data)} == {"x"}
    assert (data.parent / "x").read_text() == "precious"


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".", "", "a..b", "/etc", "under_score", "x\0y", "%2e%2e"])
def test_no_bucket_has_a_name_that_is_a_path(disk: testing.Server, data: Path, name: str) -> None:
    before = files_below(data.parent.parent)
    with pytest.raises(ValueError, match="bucket name"):
        disk.create_bucket(name)
    with pytest.raises((ClientError, ParamValidationError)):
        connect(disk).create_bucket(Bucket=name)
    port = disk.endpoint_url.rsplit(":", 1)[1]
    if "\0" not in name:
        status, _ = send(disk, "PUT", "/", Host=f"{name}.localhost:{port}")
        assert status >= 400
    assert files_below(data.parent.parent) == before


@pytest.mark.parametrize(
    "source", ["../../../../etc/passwd", "/etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "checkpoints", "", "//", "../x\0"]
)
def test_no_copy_source_reaches_a_file(disk: testing.Server, source: str) -> None:
    s3 = connect(disk)
    upload = s3.create_multipart_upload(Bucket="checkpoints", Key="parts")["UploadId"]
    with pytest.raises((ClientError, ParamValidationError, ValueError)):
        s3.copy_object(Bucket="checkpoints", Key="copy", CopySource=source)
    with pytest.raises((ClientError, ParamValidationError, ValueError)):
        s3.upload_part_copy(Bucket="checkpoints", Key="parts", UploadId=upload, PartNumber=1, CopySource=source)
    assert "Contents" not in s3.list_objects_v2(Bucket="checkpoints")


def test_links_in_the_directory_are_removed_and_what_they_lead_to_stays(data: Path) -> None:
    with testing.Server(data, ["checkpoints"]) as server:
        connect(server).put_object(Bucket="checkpoints", Key="object", Body=b"body")
    outside = data.parent / "outside"
    outside.mkdir()
    (outside / "x").write_text("precious")
    (data / "buckets" / "linked").symlink_to(outside)
    (data / "data" / "00ff").symlink_to(outside / "x")
    with testing.Server(data) as server:
        s3 = connect(server)
        assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["checkpoints"]
        assert s3.get_object(Bucket="checkpoints", Key="object")["Body"].read() == b"body"
    assert (outside / "x").read_text() == "precious"
    assert not (data / "buckets" / "linked").is_symlink()
    assert not (data / "data" / "00ff").is_symlink()


def test_a_manifest_cannot_name_a_file_elsewhere(data: Path) -> None:
    with testing.Server(data, ["checkpoints"]) as server:
        connect(server).put_object(Bucket="checkpoints", Key="object", Body=b"body")
    (manifest,) = (data / "buckets" / "checkpoints" / "objects").rglob("*.json")
    original = json.loads(manifest.read_text())
    for name in ("../store.json", "/etc/passwd", "..", ""):
        segments = [{"file": name, "start": 0, "size": 4}]
        manifest.write_text(json.dumps({**original, "segments": segments}))
        with pytest.raises(OSError, match="is no name of a data file"):
            testing.Server(data)


@pytest.mark.parametrize("flood", ["one long header", "many headers", "a long target"])
def test_a_flood_of_headers_is_cut_off(s3dcp_server: testing.Server, flood: str) -> None:
    beginning, piece = {
        "one long header": (b"GET / HTTP/1.1\r\nHost: x\r\nx-long: ", b"x" * 65536),
        "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n", b"x-some: y\r\n" * 6000),
        "a long target": (b"GET /", b"x" * 65536),
    }[flood]
    address, port = s3dcp_server.endpoint_url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=30) as connection:
        connection.sendall(beginning)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                connection.sendall(piece)
                sent += len(piece)
    assert sent < 16 << 20


@pytest.mark.s3("embedded")
def test_a_document_is_bounded(s3dcp_server: testing.Server, store: Store) -> None:
    store.write("object", b"body")
    key = f"{store.path}/object".encode()
    for padding, is_taken in ((21 << 20, False), (1 << 20, True)):
        document = b"<Delete><Object><Key>" + key + b"</Key></Object>" + b" " * padding + b"</Delete>"
        status, body = send(s3dcp_server, "POST", f"/{store.bucket}?delete=", document)
        assert (status == 200) == is_taken, body
        assert (store.names() == []) == is_taken


@pytest.mark.s3("embedded")
def test_a_deeply_nested_document_does_not_end_the_server(s3dcp_server: testing.Server, store: Store) -> None:
    status, _ = send(s3dcp_server, "POST", f"/{store.bucket}?delete=", b"<a>" * 1_000_000)
    assert 400 <= status < 500
    entities = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    bomb = entities + b"<Delete><Object><Key>&b;</Key></Object></Delete>"
    status, _ = send(s3dcp_server, "POST", f"/{store.bucket}?delete=", bomb)
    assert 400 <= status < 500
    jobs.save(training_state(), store.uri)
