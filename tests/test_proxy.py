"""Proxies of the environment: what goes by them, what does not, and that their passwords are nowhere else."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import pytest
import torch
import torch.distributed.checkpoint as dcp

from s3dcp import (
    ConfigError,
    ConnectionFailed,
    S3ClientConfig,
    S3DcpError,
    S3StorageReader,
    S3StorageWriter,
    testing,
)
from s3dcp._client import client_for
from support.environment import kept_environment
from support.proxy import Proxy, proxy

PASSWORD = "hunter:2/@%"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies() -> Iterator[None]:
    """No proxy; afterwards the environment is what it was, in whatever order servers and tests put theirs back."""
    with kept_environment():
        for name in VARIABLES:
            os.environ.pop(name, None)
            os.environ.pop(name.lower(), None)
        yield


@pytest.fixture(params=[False, True], ids=["http", "https"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[testing.Server]:
    """A server that the AWS variables lead to, and no exception from proxies for it."""
    with testing.server(buckets=["bkt"], tls=request.param) as running:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield running


def url_of(running: Proxy, password: str = PASSWORD) -> str:
    return f"http://me:{quote(password, safe='')}@{running.address}"


def state(value: float = 1.0) -> dict[str, torch.Tensor]:
    """More than one part, and what is far smaller."""
    generator = torch.Generator().manual_seed(7)
    return {
        "large": torch.randn(3 << 20, generator=generator) * value,
        "small": torch.arange(7) * value,
        "empty": torch.empty(0),
    }


def save_and_load(path: str) -> None:
    config = S3ClientConfig(part_size=5 << 20, max_attempts=1, deadline=120)
    saved, loaded = state(), {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    dcp.save(saved, storage_writer=S3StorageWriter("us-east-1", path, s3client_config=config), no_dist=True)
    dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", path, s3client_config=config), no_dist=True)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


@pytest.mark.parametrize("small", [False, True], ids=["capitals", "small"])
@pytest.mark.parametrize("common", [False, True], ids=["of-the-scheme", "of-all"])
def test_a_checkpoint_goes_by_a_proxy_with_a_password(
    server: testing.Server, monkeypatch: pytest.MonkeyPatch, small: bool, common: bool
) -> None:
    scheme = urlsplit(server.endpoint_url).scheme
    name = "ALL_PROXY" if common else f"{scheme.upper()}_PROXY"
    with proxy(PASSWORD) as running:
        monkeypatch.setenv(name.lower() if small else name, url_of(running))
        save_and_load("s3://bkt/run")
    assert running.refused == 0
    methods = {method for method, _ in running.asked}
    if scheme == "https":
        assert methods == {"CONNECT"}
        assert {target for _, target in running.asked} == {urlsplit(server.endpoint_url).netloc}
    else:
        assert methods >= {"PUT", "POST", "GET"}
        assert all(target.startswith(f"{server.endpoint_url}/bkt") for _, target in running.asked)
        # Not one request found another way.
        assert len(running.asked) == sum(server.stats().requests.values())
        assert "Authorization" in {name.title() for name in running.seen_by_services}


def test_the_other_schemes_proxy_is_left_alone(server: testing.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "HTTP_PROXY" if server.endpoint_url.startswith("https") else "HTTPS_PROXY"
    with proxy() as running:
        monkeypatch.setenv(other, f"http://{running.address}")
        save_and_load("s3://bkt/run")
    assert running.asked == []


@pytest.mark.parametrize("without", ["127.0.0.1", "127.0.0.0/8", "*", "other.test, 127.0.0.1"])
def test_no_proxy_leaves_a_host_out(server: testing.Server, monkeypatch: pytest.MonkeyPatch, without: str) -> None:
    with proxy() as running:
        monkeypatch.setenv("ALL_PROXY", f"http://{running.address}")
        monkeypatch.setenv("NO_PROXY", without)
        save_and_load("s3://bkt/run")
    assert running.asked == []


# -- which proxy


def shown(**settings: Any) -> tuple[str, str]:
    """The proxy in use, and where it stands; sends nothing."""
    found = client_for("eu-west-1", config=S3ClientConfig(**settings)).settings("bkt")
    return next((value, source) for name, value, source in found if name == "proxy")


@pytest.mark.parametrize(
    ("without", "endpoint_url", "by_proxy", "botocore_agrees"),
    [
        (None, None, True, True),
        ("amazonaws.com", None, False, True),
        (".amazonaws.com", None, False, True),
        ("s3.eu-west-1.amazonaws.com", None, False, True),
        ("zonaws.com", None, True, True),
        ("AMAZONAWS.COM", None, False, True),
        ("*", None, False, True),
        ("other.test", "http://store.test:9000", True, True),
        ("other.test,store.test", "http://store.test:9000", False, True),
        ("10.1.2.3", "http://10.1.2.3:9000", False, True),
        # Networks are curl's, and not botocore's.
        ("10.0.0.0/8", "http://10.1.2.3:9000", False, False),
        ("10.0.0.0/8", "http://11.1.2.3:9000", True, True),
        ("::1", "http://[::1]:9000", False, False),
        ("store.test:9000", "http://store.test:9000", False, True),
        ("store.test:9001", "http://store.test:9000", True, True),
        ("store.test:443", "https://store.test", False, False),
    ],
)
def test_the_settings_say_which_proxy_is_in_use_and_never_its_password(
    monkeypatch: pytest.MonkeyPatch,
    without: str | None,
    endpoint_url: str | None,
    by_proxy: bool,
    botocore_agrees: bool,
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("ALL_PROXY", "http://me:hunter2@proxy.test:3128")
    if without is not None:
        monkeypatch.setenv("NO_PROXY", without)
    expected = ("http://proxy.test:3128", "ALL_PROXY") if by_proxy else ("none", "default")
    assert shown(endpoint_url=endpoint_url) == expected
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):  # botocore does not know the common one
        monkeypatch.setenv(name, "http://me:hunter2@proxy.test:3128")
    session = boto3.Session(region_name="eu-west-1", aws_access_key_id="id", aws_secret_access_key="secret")
    client = session.client("s3", endpoint_url=endpoint_url)
    assert bool(client._endpoint.http_session._proxy_config._proxies) == (by_proxy or not botocore_agrees)


def test_a_changed_proxy_means_another_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert shown() == ("none", "default")
    monkeypatch.setenv("https_proxy", "proxy.test:3128")
    assert shown() == ("http://proxy.test:3128", "https_proxy")


@pytest.mark.parametrize("value", ["socks5://me:hunter2@proxy.test", "https://me:hunter2@proxy.test", "me hunter2"])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "all_proxy"])
def test_what_is_no_http_proxy_is_refused_by_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name} must be") as caught:
        shown()
    assert "hunter2" not in repr(caught.value)


# -- what goes wrong


def everything_said(error: BaseException) -> str:
    said, cause = "", error
    while cause is not None:
        said += f"{cause} {cause!r} {vars(cause)}"
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return said


@pytest.mark.parametrize("password", ["wrong-hunter", None])
def test_a_proxy_that_refuses_the_password_is_a_clear_error_after_one_request(
    server: testing.Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, password: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    name = f"{urlsplit(server.endpoint_url).scheme.upper()}_PROXY"
    with proxy(PASSWORD) as running:
        value = f"http://{running.address}" if password is None else url_of(running, password)
        monkeypatch.setenv(name, value)
        client = client_for("us-east-1")
        with pytest.raises(ConfigError) as caught:
            client.head_object("bkt", "k")
        stats = client.stats()
        text = f"{client.settings('bkt')} {client!r} {stats!r} {vars(S3ClientConfig())}"
    assert len(running.asked) == 1
    assert f"the proxy http://{running.address} ({name})" in str(caught.value)
    said = everything_said(caught.value) + caplog.text + text
    assert not any(secret in said for secret in ("hunter", "Basic", "bWU6"))
    assert caught.value.attempts == 1
    assert stats.retries == 0


def test_a_proxy_that_is_not_there_is_named_with_its_variable(
    server: testing.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://me:hunter2@127.0.0.1:9")
    client = client_for("us-east-1", config=S3ClientConfig(max_attempts=1))
    with pytest.raises(
        ConnectionFailed, match=r"cannot connect to the proxy http://127.0.0.1:9 \(ALL_PROXY\)"
    ) as caught:
        client.head_object("bkt", "k")
    assert "check ALL_PROXY and its port" in str(caught.value)
    assert "hunter2" not in everything_said(caught.value)


def test_a_service_that_the_proxy_does_not_reach_is_named_with_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with testing.server(buckets=["bkt"], tls=True):
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy")
        with proxy(to=("127.0.0.1", 9)) as running:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{running.address}")
            client = client_for("us-east-1", config=S3ClientConfig(max_attempts=2))
            with pytest.raises(ConnectionFailed, match=rf"by the proxy http://{running.address} \(HTTPS_PROXY\)"):
                client.head_object("bkt", "k")
        assert len(running.asked) == 2


# -- credentials


def without_keys(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variable", "host"),
    [
        ("AWS_USE_FIPS_ENDPOINT", "sts-fips.us-east-1.amazonaws.com"),
        ("AWS_USE_DUALSTACK_ENDPOINT", "sts.us-east-1.api.aws"),
        (None, "sts.us-east-1.amazonaws.com"),
    ],
)
def test_sts_is_asked_by_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str | None, host: str
) -> None:
    (tmp_path / "token").write_text("a token")
    without_keys(
        monkeypatch,
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
        AWS_ROLE_ARN="arn:aws:iam::123456789012:role/x",
    )
    if variable is not None:
        monkeypatch.setenv(variable, "true")
    with proxy(PASSWORD, to=("127.0.0.1", 9)) as running:
        monkeypatch.setenv("HTTPS_PROXY", url_of(running))
        with pytest.raises(S3DcpError) as caught:
            client_for("us-east-1", config=S3ClientConfig(max_attempts=1, deadline=1)).head_object("bkt", "k")
    assert ("CONNECT", f"{host}:443") in running.asked
    assert running.refused == 0
    assert "hunter" not in everything_said(caught.value)


def test_instance_metadata_and_containers_are_never_asked_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    config = S3ClientConfig(max_attempts=1, deadline=1)
    for variables in (
        {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"},
        {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/x"},
    ):
        without_keys(monkeypatch, **files, **variables)
        with proxy() as running:
            monkeypatch.setenv("ALL_PROXY", f"http://{running.address}")
            with pytest.raises(S3DcpError):
                client_for("us-east-1", config=config).head_object("bkt", "k")
        assert running.asked == []


# -- the embedded server


@pytest.mark.parametrize("before", [None, "other.test"])
def test_the_embedded_server_is_reached_without_the_proxy_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is not None:
        monkeypatch.setenv("no_proxy", before)
    with proxy() as running:
        monkeypatch.setenv("ALL_PROXY", f"http://{running.address}")
        monkeypatch.setenv("HTTP_PROXY", f"http://{running.address}")
        with testing.server(buckets=["bkt"]):
            save_and_load("s3://bkt/run")
            boto3.client("s3").head_bucket(Bucket="bkt")
            expected = "127.0.0.1" if before is None else f"{before},127.0.0.1"
            assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected
        assert os.environ.get("no_proxy") == before
        assert "NO_PROXY" not in os.environ
    assert running.asked == []


def test_the_server_command_tells_of_it_where_the_machine_has_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        arguments = [sys.executable, "-m", "s3dcp", "serve", "--address", "127.0.0.1:0"]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = ""
            for line in process.stdout:
                lines += line
                if re.match("export AWS_REGION=", line):
                    break
            process.terminate()
            lines += process.stdout.read()
        return lines

    assert "NO_PROXY" not in said()
    monkeypatch.setenv("HTTP_PROXY", "http://me:hunter2@proxy.test")
    monkeypatch.setenv("NO_PROXY", "other.test")
    assert "export NO_PROXY='other.test,127.0.0.1' no_proxy='other.test,127.0.0.1'\n" in said()


# -- access points


def test_a_checkpoint_behind_an_access_point_is_saved_and_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The proxy leads the access point's host name to a server that takes it for a bucket's."""
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    arn = "arn:aws:s3:eu-west-3:123456789012:accesspoint/models"
    with testing.server(buckets=["models-123456789012"], region="eu-west-3") as server:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.delenv("no_proxy")
        port = urlsplit(server.endpoint_url).port
        assert port
        with proxy(to=("127.0.0.1", port)) as running:
            monkeypatch.setenv("HTTP_PROXY", f"http://{running.address}")
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{port}")
            monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
            save_and_load(f"s3://{arn}/run/step-1")
            fs = S3StorageReader("us-east-1", f"s3://{arn}/run/step-1").fs
            assert all(name.startswith(f"s3://{arn}/run/step-1/") for name in fs.ls(f"s3://{arn}/run/step-1"))
        hosts = {urlsplit(target).netloc for _, target in running.asked}
    assert hosts == {f"models-123456789012.localhost:{port}"}
