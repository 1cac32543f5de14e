"""Who is let in by the embedded server, and what it costs the server to turn others away: their heads, no more."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import os
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import botocore.auth
import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from s3dcp import testing
from support.by_hand import BUCKET, MIB, connect, get, put

pytestmark = pytest.mark.s3("embedded")

REGION = "us-east-1"
ANNOUNCED = 9 * 1000**3
"""What a body is said to be long."""
OFFERED = 256 * MIB
"""What of it is sent, if the server lets it be."""

SERVE = f"""
import sys
from s3dcp import testing
with testing.Server(buckets=["{BUCKET}"], tls=sys.argv[1] == "https") as server:
    with open(sys.argv[2], "w") as file:
        file.write(server.authority or "")
    print(server.endpoint_url, flush=True)
    sys.stdin.read()
"""


class Process(NamedTuple):
    """A server in a process of its own, with the keys that everyone knows."""

    pid: int
    endpoint_url: str
    authority: Path
    access_key: str = "s3dcp"
    secret_key: str = "s3dcp-secret"

    @property
    def host(self) -> str:
        return self.endpoint_url.split("//")[1]

    def open(self) -> socket.socket:
        address, port = self.host.split(":")
        connection = socket.create_connection((address, int(port)), timeout=30)
        if not self.endpoint_url.startswith("https"):
            return connection
        context = ssl.create_default_context(cafile=self.authority)
        return context.wrap_socket(connection, server_hostname=address)

    def peak(self) -> int:
        """The most memory that the process has had at a time, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def client(self, **changes: Any) -> Any:
        return connect(self, verify=str(self.authority), **changes)  # type: ignore[arg-type]

    def works(self) -> bool:
        client = self.client()
        body = os.urandom(MIB)
        put(client, "object", body)
        return get(client, "object") == body


@pytest.fixture(params=["http", "https"])
def process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    if not Path("/proc/self/status").exists():
        pytest.skip("what a process uses is read from /proc")
    authority = tmp_path / "authority.pem"
    program = [sys.executable, "-c", SERVE, request.param, str(authority)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        yield Process(running.pid, running.stdout.readline().strip(), authority)
        running.stdin.close()
    assert running.returncode == 0


def head(process: Process, method: str, target: str, **headers: str) -> bytes:
    named = {"Host": process.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if "Transfer-Encoding" not in named:
        named.setdefault("Content-Length", str(ANNOUNCED))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def signed(process: Process, method: str, target: str, service: str = "s3", **headers: str) -> bytes:
    """A head that is signed, but with another secret."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = AWSRequest(method, f"{process.endpoint_url}{target}", {"Host": process.host, **named})
    auth = S3SigV4Auth if service == "s3" else SigV4Auth
    auth(Credentials(process.access_key, "a wrong secret"), service, REGION).add_auth(request)
    # The signer says the digest of no body.
    return head(process, method, target, **{**dict(request.headers.items()), **named})


def presigned(process: Process, method: str, **arguments: Any) -> str:
    """The target of a URL that is presigned, but with another secret."""
    client = process.client(aws_secret_access_key="a wrong secret", config={"signature_version": "s3v4"})
    url = client.generate_presigned_url(method, {"Bucket": BUCKET, "Key": "object", **arguments})
    return str(url).removeprefix(process.endpoint_url)


def form(process: Process, **fields: str) -> bytes:
    fields = {"key": "object", **fields}
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return "".join([*parts, file]).encode()


def signed_form(process: Process) -> bytes:
    client = process.client(config={"signature_version": "s3v4"})
    return form(process, **client.generate_presigned_post(BUCKET, "object")["fields"])


FORM = {"Content_Type": "multipart/form-data; boundary=b"}
CHUNKED = {"Transfer-Encoding": "chunked"}
STREAMED = {
    "X_Amz_Content_SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
    "X_Amz_Decoded_Content_Length": str(ANNOUNCED),
    "Content_Encoding": "aws-chunked",
}
OBJECT = f"/{BUCKET}/object"

# What begins a request, and the status that it is answered with.
ATTACKS: dict[str, tuple[Callable[[Process], bytes], int]] = {
    "a form": (lambda to: head(to, "POST", f"/{BUCKET}", **FORM) + form(to), 501),
    "a form in chunks": (lambda to: head(to, "POST", f"/{BUCKET}", **FORM, **CHUNKED), 501),
    "a form with a policy": (lambda to: head(to, "POST", f"/{BUCKET}", **FORM) + signed_form(to), 501),
    "a form to a key": (lambda to: head(to, "POST", OBJECT, **FORM) + form(to), 501),
    "a form in a signed request": (lambda to: signed(to, "POST", f"/{BUCKET}", **FORM) + form(to), 501),
    "a form without a boundary": (lambda to: head(to, "POST", "/", Content_Type="Multipart/Form-Data"), 501),
    "a form of urlencoded fields": (
        lambda to: head(to, "POST", "/", Content_Type="application/x-www-form-urlencoded"),
        403,
    ),
    "an object": (lambda to: head(to, "PUT", OBJECT), 403),
    "an object in chunks": (lambda to: head(to, "PUT", OBJECT, **CHUNKED), 403),
    "an object of a wrong signature": (lambda to: signed(to, "PUT", OBJECT), 403),
    "an object of a wrong signature over its digest": (
        lambda to: signed(to, "PUT", OBJECT, X_Amz_Content_SHA256="0" * 64),
        403,
    ),
    "an object in signed chunks": (lambda to: signed(to, "PUT", OBJECT, **STREAMED), 403),
    "an object in chunks of a wrong signature": (lambda to: signed(to, "PUT", OBJECT, **CHUNKED), 403),
    "an object at a presigned URL": (lambda to: head(to, "PUT", presigned(to, "put_object")), 403),
    "a part": (lambda to: signed(to, "PUT", f"{OBJECT}?partNumber=1&uploadId=x"), 403),
    "keys to delete": (lambda to: head(to, "POST", f"/{BUCKET}?delete"), 403),
    "keys to delete of a wrong signature": (lambda to: signed(to, "POST", f"/{BUCKET}?delete="), 403),
    "parts to complete": (lambda to: signed(to, "POST", f"{OBJECT}?uploadId=x", **CHUNKED), 403),
    "a bucket": (lambda to: head(to, "PUT", "/another"), 403),
    "a service whose body is signed": (lambda to: signed(to, "POST", "/", "sts"), 400),
    "a signature of the older kind": (
        lambda to: head(to, "PUT", OBJECT, Authorization="AWS s3dcp:x", Date="Thu, 01 Jan 2026 00:00:00 GMT"),
        400,
    ),
    "another host": (lambda to: head(to, "PUT", OBJECT, Host="s3.amazonaws.com"), 403),
    "a bucket in the host": (lambda to: head(to, "PUT", "/object", Host=f"{BUCKET}.localhost"), 403),
    "a body to a read": (lambda to: head(to, "GET", OBJECT), 403),
    "a body that is waited with": (lambda to: head(to, "PUT", OBJECT, Expect="100-continue"), 403),
    "nothing that there is": (lambda to: head(to, "PATCH", "/?x=y"), 403),
}


def attack(process: Process, name: str) -> tuple[int, int]:
    """The status of the answer, which comes before the body does, and how much of the body could be sent then."""
    beginning = ATTACKS[name][0](process)
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n" if b"chunked" in beginning else b"x" * 65536
    sent = 0
    with process.open() as connection:
        connection.sendall(beginning)
        answer = http.client.HTTPResponse(connection, method="GET")
        answer.begin()
        # The server closes; a client that does not care goes on.
        with contextlib.suppress(OSError):
            while sent < OFFERED:
                connection.sendall(piece)
                sent += len(piece)
        return answer.status, sent


def test_nothing_without_a_valid_signature_costs_more_than_its_head(process: Process) -> None:
    assert process.works()
    before = process.peak()
    with ThreadPoolExecutor(len(ATTACKS)) as threads:
        outcomes = dict(zip(ATTACKS, threads.map(lambda name: attack(process, name), ATTACKS), strict=True))
    assert {name: status for name, (status, _) in outcomes.items()} == {
        name: status for name, (_, status) in ATTACKS.items()
    }
    taken = {name: sent for name, (_, sent) in outcomes.items() if sent >= OFFERED}
    assert not taken, "nobody takes what nobody asked for"
    assert process.peak() - before < 16 * MIB
    assert process.works()


def test_heads_that_never_end_are_bounded(process: Process) -> None:
    assert process.works()
    before = process.peak()
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(process.open())
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nx-long: ")
            with contextlib.suppress(OSError):
                connection.sendall(b"x" * MIB)
        assert process.peak() - before < 16 * MIB
        assert process.works()


@pytest.mark.slow
def test_a_head_that_comes_too_slowly_is_not_waited_for(s3dcp_server: testing.Server) -> None:
    address, port = s3dcp_server.endpoint_url.removeprefix("http://").split(":")
    with socket.create_connection((address, int(port)), timeout=1) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nx-long: ")
        for _ in range(300):
            try:
                assert connection.recv(1 << 16) == b"", "a head that is not whole has no answer"
            except TimeoutError:
                connection.sendall(b"x")
                continue
            except ConnectionError:
                pass
            return
    pytest.fail("the server still waits")


def test_a_signed_request_that_is_refused_keeps_its_connection(s3dcp_server: testing.Server, s3dcp_bucket: str) -> None:
    address = s3dcp_server.endpoint_url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=30)
    sockets = []
    for bucket, status in [("absent-bucket", 404), (s3dcp_bucket, 200), ("absent-bucket", 404)]:
        request = AWSRequest("PUT", f"{s3dcp_server.endpoint_url}/{bucket}/object", {"Host": address}, b"x" * 8 * MIB)
        keys = Credentials(s3dcp_server.access_key, s3dcp_server.secret_key)
        S3SigV4Auth(keys, "s3", REGION).add_auth(request)
        connection.request("PUT", f"/{bucket}/object", request.data, dict(request.headers.items()))
        sockets.append(connection.sock)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()
    assert len(set(sockets)) == 1


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-amz-meta-owner", "someone else"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-copy-source", f"{BUCKET}/secret"),
        ("x-amz-acl", "public-read"),
        ("X-Amz-Security-Token", "token"),
        ("x-amz-unknown", ""),
    ],
)
def test_a_header_that_was_added_to_a_signed_request_is_refused(header: str, value: str) -> None:
    with testing.Server(buckets=[BUCKET]) as server:
        s3 = connect(server)
        put(s3, "object", b"before")
        put(s3, "secret", b"secret")
        adding = connect(server)
        adding.meta.events.register("before-send.s3", lambda request, **_: request.headers.update({header: value}))
        with pytest.raises(ClientError) as caught:
            put(adding, "object", b"after")
        error = caught.value.response["Error"]
        assert (error["Code"], error["HeadersNotSigned"]) == ("AccessDenied", header.lower())
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403

        url = presigned_url(server, "PUT")
        assert ask("PUT", url, b"after", {header: value}) == (403, "AccessDenied")
        assert get(s3, "object") == b"before"
        assert ask("PUT", url, b"after", {"Content-Type": "text/plain"}) == (200, "")
        assert get(s3, "object") == b"after"


def presigned_url(server: testing.Server, method: str, expires: Any = 60, **keys: str) -> str:
    request = AWSRequest(method, f"{server.endpoint_url}/{BUCKET}/object")
    credentials = Credentials(server.access_key, keys.get("secret_key", server.secret_key))
    S3SigV4QueryAuth(credentials, "s3", REGION, expires).add_auth(request)
    return str(request.url)


def ask(method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """The status, and the code of the error where it is one."""
    request = urllib.request.Request(url, body, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, re.search(r"<Code>(.*)</Code>", error.read().decode())[1]  # type: ignore[index]


@pytest.fixture
def server() -> Iterator[testing.Server]:
    """One with an object in it."""
    with testing.Server(buckets=[BUCKET]) as running:
        put(connect(running), "object", b"body")
        yield running


@pytest.mark.parametrize(
    ("expires", "answer"),
    [
        (1, (200, "")),
        (604_800, (200, "")),
        (604_801, (400, "AuthorizationQueryParametersError")),
        (0, (400, "AuthorizationQueryParametersError")),
        (-5, (400, "AuthorizationQueryParametersError")),
        (1 << 32, (400, "AuthorizationQueryParametersError")),
        (1 << 70, (400, "AuthorizationQueryParametersError")),
        ("soon", (400, "AuthorizationQueryParametersError")),
        ("", (400, "AuthorizationQueryParametersError")),
    ],
)
def test_a_presigned_url_is_good_for_a_second_to_a_week(
    server: testing.Server, expires: Any, answer: tuple[int, str]
) -> None:
    assert ask("GET", presigned_url(server, "GET", expires)) == answer


@pytest.mark.parametrize(
    ("minutes", "expires", "status", "code"),
    [
        (-9, 600, 200, ""),
        (-11, 600, 403, "AccessDenied"),
        (-8 * 24 * 60, 604_800, 403, "AccessDenied"),
        (10, 60, 200, ""),
        (20, 60, 403, "RequestTimeTooSkewed"),
        (24 * 60, 60, 403, "RequestTimeTooSkewed"),
    ],
)
def test_a_presigned_url_has_a_beginning_and_an_end(
    server: testing.Server, minutes: int, expires: int, status: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, **__: then.replace(tzinfo=None))
    assert ask("GET", presigned_url(server, "GET", expires)) == (status, code)


@pytest.mark.parametrize(
    ("part", "replacement"),
    [
        (r"X-Amz-Date=\w+", "X-Amz-Date=20260101"),
        (r"X-Amz-Date=\w+", "X-Amz-Date=20261301T000000Z"),
        (r"&X-Amz-Date=\w+", ""),
        (r"&X-Amz-Expires=\w+", ""),
        (r"&X-Amz-SignedHeaders=\w+", ""),
        (r"s3dcp%2F\d+", "s3dcp%2F20000101"),
        (r"X-Amz-Algorithm=[\w-]+", "X-Amz-Algorithm=AWS4-HMAC-SHA1"),
    ],
)
def test_a_presigned_url_that_is_not_whole_is_a_bad_request(
    server: testing.Server, part: str, replacement: str
) -> None:
    url, count = re.subn(part, replacement, presigned_url(server, "GET"))
    assert count == 1
    assert ask("GET", url) == (400, "AuthorizationQueryParametersError")


@pytest.mark.parametrize("version", ["s3v4", "s3", None])
def test_urls_that_boto3_presigns_are_good_in_either_version(server: testing.Server, version: str | None) -> None:
    changes = {"signature_version": version} if version else {}
    client = connect(server, config={"s3": {"addressing_style": "path"}, **changes})
    for method, body, given in [("get_object", None, {}), ("put_object", b"body", {"ContentType": "text/plain"})]:
        url = client.generate_presigned_url(method, {"Bucket": BUCKET, "Key": "object", **given})
        assert ("X-Amz-Signature" in url) == (version == "s3v4")
        verb, headers = method[:3].upper(), {"Content-Type": "text/plain"} if given else {}
        assert ask(verb, url, body, headers) == (200, "")
        assert ask(verb, url, body, {**headers, "x-amz-meta-owner": "someone else"})[0] == 403
        assert ask(verb, url.replace("object", "other"), body, headers)[0] == 403


def test_headers_of_the_older_signature_which_has_no_end_are_refused(server: testing.Server) -> None:
    client = connect(server, config={"signature_version": "s3"})
    with pytest.raises(ClientError, match="Please use AWS4-HMAC-SHA256"):
        get(client, "object")


def test_a_request_is_signed_in_one_place(server: testing.Server) -> None:
    s3 = connect(server)
    query = presigned_url(server, "GET").partition("?")[2]

    def add(request: Any, **_: Any) -> None:
        request.url += f"?{query}"

    s3.meta.events.register("before-send.s3", add)
    with pytest.raises(ClientError, match="Only one auth mechanism allowed"):
        get(s3, "object")


def test_a_browsers_form_is_refused_though_its_policy_is_signed(server: testing.Server) -> None:
    client = connect(server, config=dict(Config(signature_version="s3v4")._user_provided_options))
    post = client.generate_presigned_post(BUCKET, "posted")
    fields = {**post["fields"], "file": "content"}
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    body = "".join([*parts, "--b--\r\n"]).encode()
    answer = ask("POST", post["url"], body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert answer == (501, "NotImplemented")
    assert "posted" not in [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]]


def test_a_length_that_is_a_lie_sets_no_memory_aside(process: Process) -> None:
    """Whoever has the keys may announce what he likes: memory is for what comes."""
    client = process.client(config={"signature_version": "s3v4"})
    assert process.works()
    before = process.peak()
    url = client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": "lie"})
    target = url.removeprefix(process.endpoint_url)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(process.open())
            connection.sendall(head(process, "PUT", target, Content_Length=str(5 << 30)) + b"x" * 1000)
        time.sleep(0.2)
        assert process.peak() - before < 16 * MIB
    with process.open() as connection:
        connection.sendall(head(process, "PUT", target, Content_Length=str((5 << 30) + 1)))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 400
    assert process.works()
