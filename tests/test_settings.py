"""Where a client goes and who signs: regions, endpoints, keys and certificates, as people set them."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest

from s3dcp import ConfigError, ConnectionFailed, Denied, NotFound, S3ClientConfig, S3DcpError, Timeout, testing
from s3dcp._client import _CLIENTS_KEPT, _clients, client_for
from support import wire

KEYS = "aws_access_key_id = s3dcp\naws_secret_access_key = s3dcp-secret\nregion = us-east-1\n"
ONE_TRY = S3ClientConfig(max_attempts=1, deadline=20)
WAITS = S3ClientConfig(max_attempts=1, deadline=60)


@pytest.fixture
def server() -> Iterator[testing.Server]:
    """A server that no variable leads to."""
    with testing.server(buckets=["bkt"], environment=False) as running:
        yield running


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets the text of the configuration file and the variables; no others are set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def set_up(config: str = "", credentials: str = "", **variables: str) -> None:
        (tmp_path / "config").write_text(config)
        (tmp_path / "credentials").write_text(credentials)
        files = {"AWS_CONFIG_FILE": tmp_path / "config", "AWS_SHARED_CREDENTIALS_FILE": tmp_path / "credentials"}
        for name, value in ({"AWS_EC2_METADATA_DISABLED": "true"} | files | variables).items():
            monkeypatch.setenv(name, str(value))

    set_up()
    return set_up


def ask(config: S3ClientConfig = ONE_TRY, **places: Any) -> None:
    """One request, which the server answers with 404 if it gets there and believes the signature."""
    with pytest.raises(NotFound):
        client_for(places.pop("region", None), config=config, **places).head_object("bkt", "nothing")


def failure(config: S3ClientConfig = ONE_TRY, **places: Any) -> S3DcpError:
    """The error of one request that does not get there."""
    with pytest.raises(S3DcpError) as caught:
        client_for(places.pop("region", None), config=config, **places).head_object("bkt", "nothing")
    assert not isinstance(caught.value, NotFound)
    return caught.value


# -- regions


def test_every_partition_that_botocore_knows_is_at_its_domain(aws: Callable[..., None]) -> None:
    aws(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    session = boto3.Session(aws_access_key_id="a", aws_secret_access_key="b")
    regions = ["ap-southeast-9", "cn-east-7", "eusc-de-west-9", "us-isof-west-9", "fips-us-west-2"]
    for partition in session.get_available_partitions():
        known = session.get_available_regions("s3", partition)
        regions += [known[0], known[-1]] if known else []
    config = S3ClientConfig(max_attempts=1, connect_timeout=1e-6, deadline=10)

    def hosts(region: str) -> tuple[str, str]:
        """What we ask for, as the error names it, and what botocore does."""
        said = str(failure(config, region=region))
        url = session.client("s3", region_name=region).meta.endpoint_url
        return said, f"bkt.{url.removeprefix('https://')}:443"

    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(regions, pool.map(hosts, regions), strict=True))
    assert len(answers) > 10
    answers.pop("us-east-1", None)  # botocore still goes to the global name
    for region, (said, right) in answers.items():
        assert right in said, region


# -- endpoints of profiles


@pytest.mark.parametrize(
    ("config", "variables", "profile"),
    [
        ("[default]\n{keys}endpoint_url = {url}\n", {}, None),
        ("[profile store]\n{keys}endpoint_url = {url}\n", {"AWS_PROFILE": "store"}, None),
        ("[profile store]\n{keys}endpoint_url = {url}\n", {"AWS_DEFAULT_PROFILE": "store"}, None),
        ("[profile store]\n{keys}endpoint_url = {url}\n", {}, "store"),
        ("[profile 'my store']\n{keys}endpoint_url = {url}\n", {}, "my store"),
        ("[profile my store]\n{keys}endpoint_url = {url}\n", {"AWS_PROFILE": "my store"}, None),
        ("[default]\n{keys}services = mine\n[services mine]\ns3 =\n  endpoint_url = {url}\n", {}, None),
        ("[default]\n{keys}endpoint_url = u\nservices = m\n[services m]\ns3 =\n  endpoint_url = {url}\n", {}, None),
        ("[default]\n{keys}endpoint_url = http://127.0.0.1:9\n", {"AWS_ENDPOINT_URL": "{url}"}, None),
        ("[default]\n{keys}endpoint_url = http://127.0.0.1:9\n", {"AWS_ENDPOINT_URL_S3": "{url}"}, "default"),
    ],
)
def test_the_profile_says_where_the_bucket_is(
    server: testing.Server,
    aws: Callable[..., None],
    config: str,
    variables: dict[str, str],
    profile: str | None,
) -> None:
    values = {name: value.format(url=server.endpoint_url) for name, value in variables.items()}
    aws(config.format(keys=KEYS, url=server.endpoint_url), **values)
    ask(S3ClientConfig(profile=profile, max_attempts=1, deadline=20))


@pytest.mark.parametrize(
    ("config", "variables", "words"),
    [
        ("[default\nendpoint_url = http://x\n", {}, ["config", "line 1"]),
        ("[default]\nendpoint_url http://x\n", {}, ["config", "line 2"]),
        ("[default]\nservices = lost\n", {}, ["services", "lost"]),
        ("[default]\nendpoint_url = store:9000\n", {}, ["endpoint_url of profile", "store:9000"]),
        ("[store]\nendpoint_url = http://x\n", {"AWS_PROFILE": "store"}, ["AWS_PROFILE", "[profile store]"]),
        ("", {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "maybe"}, ["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"]),
        ("", {"AWS_ENDPOINT_URL": "store"}, ["AWS_ENDPOINT_URL"]),
    ],
)
def test_what_cannot_be_understood_is_said_and_nothing_sent_to_aws(
    aws: Callable[..., None], config: str, variables: dict[str, str], words: list[str]
) -> None:
    aws(config, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1", **variables)
    error = failure()
    assert isinstance(error, ConfigError)
    for word in words:
        assert word in str(error)


def test_configured_endpoints_can_be_set_aside(server: testing.Server, aws: Callable[..., None]) -> None:
    url = server.endpoint_url
    aws(f"[default]\n{KEYS}endpoint_url = {url}\n", AWS_IGNORE_CONFIGURED_ENDPOINT_URLS="true", AWS_ENDPOINT_URL=url)
    error = failure(S3ClientConfig(max_attempts=1, connect_timeout=1e-6, deadline=10))
    assert "bkt.s3.us-east-1.amazonaws.com" in str(error)
    ask(endpoint_url=url)


# -- white space


@pytest.mark.parametrize("form", ["{}\n", "{}\r\n", " {}", "\t{}\n\n", "\ufeff{}"])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"])
def test_white_space_around_a_variable_is_dropped(
    server: testing.Server, aws: Callable[..., None], name: str, form: str
) -> None:
    right = {
        "AWS_ACCESS_KEY_ID": "s3dcp",
        "AWS_SECRET_ACCESS_KEY": "s3dcp-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.endpoint_url,
    }
    aws(**(right | {name: form.format(right[name])}))
    ask()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "s3 dcp"),
        ("AWS_SECRET_ACCESS_KEY", "the-first\nthe-second"),
        ("AWS_SECRET_ACCESS_KEY", '"s3dcp-secret"'),
        ("AWS_SESSION_TOKEN", "a b"),
        ("AWS_REGION", "us east 1"),
        ("AWS_ENDPOINT_URL", "http://ho st"),
        ("AWS_PROFILE", "no\nbody"),
        ("AWS_CA_BUNDLE", "/no/such/file"),
    ],
)
def test_a_variable_that_cannot_be_is_named_and_a_secret_not_repeated(
    server: testing.Server, aws: Callable[..., None], name: str, value: str
) -> None:
    right = {"AWS_ACCESS_KEY_ID": "s3dcp", "AWS_SECRET_ACCESS_KEY": "s3dcp-secret", "AWS_REGION": "us-east-1"}
    aws(**(right | {"AWS_ENDPOINT_URL": server.endpoint_url, name: value}))
    error = failure()
    assert isinstance(error, ConfigError)
    assert name in str(error)
    assert "KEY" not in name or value not in str(error)


def test_white_space_around_arguments_is_dropped(server: testing.Server, aws: Callable[..., None]) -> None:
    aws(f"[profile my store]\n{KEYS}")
    config = S3ClientConfig(profile=" my store\n", max_attempts=1, deadline=20)
    ask(config, region="us-east-1\n", endpoint_url=f" {server.endpoint_url}\r\n")


def test_keys_of_files_and_processes_may_have_white_space_around_them(
    server: testing.Server, aws: Callable[..., None], tmp_path: Path
) -> None:
    place = {"endpoint_url": server.endpoint_url, "region": "us-east-1"}
    aws(credentials="[default]\r\naws_access_key_id = s3dcp\u00a0\r\naws_secret_access_key = s3dcp-secret \r\n")
    ask(**place)
    printed = {"Version": 1, "AccessKeyId": "s3dcp\n", "SecretAccessKey": " s3dcp-secret\n"}
    (tmp_path / "keys.json").write_text(json.dumps(printed))
    aws(f"[default]\ncredential_process = cat {tmp_path}/keys.json\n")
    ask(**place)


# -- certificates


@pytest.mark.parametrize("how", ["AWS_CA_BUNDLE", "ca_bundle"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no certificate",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB",
        b"\x00\xff\xfe",
        None,
    ],
    ids=["empty", "text", "nonsense", "half", "binary", "folder"],
)
def test_a_damaged_bundle_is_an_error_also_where_the_service_speaks_http(
    server: testing.Server, aws: Callable[..., None], tmp_path: Path, how: str, content: bytes | None
) -> None:
    bundle = tmp_path / "authorities.pem"
    if content is None:
        bundle.mkdir()
    else:
        bundle.write_bytes(content)
    variables = {how: str(bundle)} if how == "AWS_CA_BUNDLE" else {}
    aws(f"[default]\n{KEYS}endpoint_url = {server.endpoint_url}\n", **variables)
    error = failure(S3ClientConfig(ca_bundle=str(bundle) if how == "ca_bundle" else None, deadline=20))
    assert isinstance(error, ConfigError)
    assert how in str(error)
    assert str(bundle) in str(error)


def test_a_bundle_may_hold_more_than_certificates(
    server: testing.Server, aws: Callable[..., None], tmp_path: Path
) -> None:
    bundle = tmp_path / "authorities.pem"
    key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    bundle.write_text(f"# ours\r\n{key}{wire.AUTHORITY.read_text()}\ntext\n{wire.AUTHORITY.read_text()}")
    aws(f"[default]\n{KEYS}", AWS_CA_BUNDLE=str(bundle))
    with wire.Tls(server.endpoint_url) as tls:
        ask(endpoint_url=tls.url)
    ask(endpoint_url=server.endpoint_url)


# -- credentials that come late, or for a short time


class Agent(wire.Scripted):
    """Hands out credentials over HTTP, as containers have it; `answers` are the statuses of the next requests."""

    def __init__(self, lifetime: float) -> None:
        self.answers: list[int] = []
        self.lifetime = timedelta(seconds=lifetime)
        super().__init__(self._answer)

    @property
    def requests(self) -> int:
        return len(self.seen)

    def _answer(self, _: wire.Request) -> bytes:
        if self.answers and (status := self.answers.pop(0)) != 200:
            return wire.answer(f"{status} Scripted", b"{}")
        expiry = datetime.now(timezone.utc) + self.lifetime
        keys = {
            "AccessKeyId": "s3dcp",
            "SecretAccessKey": "s3dcp-secret",
            "Token": "",
            "Expiration": expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return wire.answer("200 OK", json.dumps(keys).encode())


@pytest.fixture
def agent() -> Iterator[Callable[[float], Agent]]:
    with contextlib.ExitStack() as stack:
        yield lambda lifetime: stack.enter_context(Agent(lifetime))


def test_whoever_hands_out_credentials_may_have_a_bad_moment(
    server: testing.Server, aws: Callable[..., None], agent: Callable[[float], Agent]
) -> None:
    keys = agent(3600)
    keys.answers = [500] * 7
    aws(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{keys.url}/keys")
    ask(WAITS, region="us-east-1", endpoint_url=server.endpoint_url)
    assert keys.requests == 8


def test_a_refusal_of_credentials_is_not_waited_for(
    server: testing.Server, aws: Callable[..., None], agent: Callable[[float], Agent]
) -> None:
    keys = agent(3600)
    keys.answers = [403] * 20
    aws(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{keys.url}/keys")
    error = failure(WAITS, region="us-east-1", endpoint_url=server.endpoint_url)
    assert isinstance(error, Denied)
    assert not error.retryable
    assert keys.requests == 1


@pytest.mark.parametrize("lifetime", [200, 20, -3600])
def test_keys_for_a_short_time_are_not_fetched_for_every_request(
    server: testing.Server, aws: Callable[..., None], agent: Callable[[float], Agent], lifetime: float
) -> None:
    keys = agent(lifetime)
    aws(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{keys.url}/keys")
    started = time.monotonic()
    for _ in range(30):
        ask(region="us-east-1", endpoint_url=server.endpoint_url)
    assert keys.requests <= 1 + (time.monotonic() - started) / 5


def test_a_process_that_fails_once_is_run_again(
    server: testing.Server, aws: Callable[..., None], tmp_path: Path
) -> None:
    printed = {"Version": 1, "AccessKeyId": "s3dcp", "SecretAccessKey": "s3dcp-secret"}
    (tmp_path / "keys.json").write_text(json.dumps(printed))
    script = tmp_path / "give keys"
    script.write_text(f"#!/bin/sh\ncd '{tmp_path}'\ntest -e ran && exec cat keys.json\ntouch ran\nexit 3\n")
    script.chmod(0o755)
    aws(f"[default]\nregion = us-east-1\ncredential_process = '{script}'\n")
    ask(endpoint_url=server.endpoint_url)


IGNORING = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from s3dcp import NotFound, S3ClientConfig
from s3dcp._client import client_for
try:
    client_for("us-east-1", sys.argv[1], S3ClientConfig(max_attempts=1, deadline=30)).head_object("bkt", "nothing")
except NotFound:
    print("got there")
"""


@pytest.mark.parametrize("before", ["", "sleep 0.2; "])
def test_a_process_is_run_also_where_the_end_of_children_is_ignored(
    server: testing.Server, aws: Callable[..., None], tmp_path: Path, before: str
) -> None:
    printed = {"Version": 1, "AccessKeyId": "s3dcp", "SecretAccessKey": "s3dcp-secret"}
    (tmp_path / "keys.json").write_text(json.dumps(printed))
    aws(f"[default]\ncredential_process = {before}cat {tmp_path}/keys.json\n")
    program = [sys.executable, "-c", IGNORING, server.endpoint_url]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "got there\n", ran.stderr


def test_missing_files_and_broken_files_are_told_apart(server: testing.Server, aws: Callable[..., None]) -> None:
    place = {"endpoint_url": server.endpoint_url, "region": "us-east-1"}
    aws()
    assert isinstance(failure(**place), Denied)
    aws(credentials="[default]\naws_access_key_id s3dcp\n")
    broken = failure(**place)
    assert isinstance(broken, ConfigError)
    assert "credentials on line 2" in str(broken)


# -- connections


def test_errors_of_connections_name_the_host_and_what_to_try(aws: Callable[..., None]) -> None:
    aws(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1")
    with wire.refusing() as url:
        host = url.removeprefix("http://")
        client = client_for(None, url, ONE_TRY)
        for request in (client.head_object, client.get_object):
            with pytest.raises(ConnectionFailed, match=f"{host}.*nothing listens") as caught:
                request("bkt", "k")
            assert caught.value.retryable
    unknown = str(failure(endpoint_url="http://minio.invalid:9000"))
    assert "bkt.minio.invalid:9000" in unknown
    assert "force_path_style" in unknown
    path_style = S3ClientConfig(max_attempts=1, deadline=20, force_path_style=True)
    unknown = str(failure(path_style, endpoint_url="http://minio.invalid:9000"))
    assert "connect to minio.invalid:9000" in unknown
    assert "force_path_style" not in unknown


def test_tls_where_there_is_none_and_none_where_there_is_tls_is_said(aws: Callable[..., None]) -> None:
    aws(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1")
    with testing.server(environment=False) as plain:
        text = str(failure(endpoint_url=plain.endpoint_url.replace("http://", "https://")))
        assert "http://" in text
        assert plain.endpoint_url.removeprefix("http://") in text
    with testing.server(environment=False, tls=True) as tls:
        host = tls.endpoint_url.removeprefix("https://")
        text = str(failure(endpoint_url=tls.endpoint_url))
        assert "certificate" in text
        assert host in text
        text = str(failure(endpoint_url=tls.endpoint_url.replace("https://", "http://")))
        assert "https://" in text
        assert host in text


def test_silence_names_the_host(aws: Callable[..., None]) -> None:
    aws(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_REGION="us-east-1")
    config = S3ClientConfig(max_attempts=1, deadline=20, read_timeout=0.2)
    with wire.Scripted(lambda _: wire.silence) as silent:
        error = failure(config, endpoint_url=silent.url)
        assert isinstance(error, Timeout)
        assert silent.url.removeprefix("http://") in str(error)


# -- clients


def connections(port: int) -> int:
    """Connections of this machine to a local port."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(row.split()[2].endswith(f":{port:04X}") and row.split()[3] == "01" for row in rows)


def settled(count: Callable[[], int], most: int) -> int:
    """The count, once it has come down."""
    until = time.monotonic() + 20
    while count() > most and time.monotonic() < until:
        time.sleep(0.05)
    return count()


@pytest.mark.skipif(sys.platform != "linux", reason="connections are counted in /proc")
@pytest.mark.parametrize("method", ["head_object", "get_object"])
def test_rotating_keys_leave_no_clients_or_connections_behind(
    server: testing.Server, aws: Callable[..., None], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    aws(AWS_ACCESS_KEY_ID="s3dcp", AWS_SECRET_ACCESS_KEY="s3dcp-secret", AWS_REGION="us-east-1")
    port = int(server.endpoint_url.rpartition(":")[2])
    before = len(_clients)
    for rotation in range(50):
        monkeypatch.setenv("AWS_SESSION_TOKEN", f"token-{rotation}")
        with contextlib.suppress(S3DcpError):
            getattr(client_for(None, server.endpoint_url, ONE_TRY), method)("bkt", "nothing")
    gc.collect()
    assert len(_clients) <= min(before + 1, _CLIENTS_KEPT)
    assert settled(lambda: connections(port), 2) <= 2


def test_a_rotation_takes_effect_with_the_next_request(
    server: testing.Server, aws: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(AWS_ACCESS_KEY_ID="s3dcp", AWS_SECRET_ACCESS_KEY="s3dcp-secret", AWS_REGION="us-east-1")
    ask(endpoint_url=server.endpoint_url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert isinstance(failure(endpoint_url=server.endpoint_url), Denied)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3dcp-secret")
    ask(endpoint_url=server.endpoint_url)


def test_settings_made_over_and_over_do_not_pile_up(server: testing.Server, aws: Callable[..., None]) -> None:
    aws(AWS_ACCESS_KEY_ID="s3dcp", AWS_SECRET_ACCESS_KEY="s3dcp-secret", AWS_REGION="us-east-1")
    first = client_for(None, server.endpoint_url, ONE_TRY)
    for number in range(100):
        ask(S3ClientConfig(max_attempts=1, deadline=100 + number), endpoint_url=server.endpoint_url)
        # One that is used again and again stays.
        assert client_for(None, server.endpoint_url, ONE_TRY) is first
    assert len(_clients) == _CLIENTS_KEPT
