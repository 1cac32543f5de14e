"""Every setting × every place it can stand in, beside what boto3 makes of the same variables and files.

A row of `TABLE` is one setting with a value for each place, in the order in which places win. What is in use is asked
of both: of ours by ``Client.settings``, which sends nothing, and of botocore by the request it would send.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.exceptions
import pytest
from botocore.config import Config

from s3dcp import ConfigError, ConnectionFailed, S3ClientConfig
from s3dcp._client import client_for

ACCOUNT = "123456789012"
ARN = f"arn:aws:s3:eu-west-3:{ACCOUNT}:accesspoint/models"
AUTHORITY = Path(__file__).parents[1] / "crates/s3/tests/engine/tls/ca.pem"
KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}
Aws = Callable[..., None]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Aws:
    """Sets the text of the configuration file and the variables; no others are set."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)

    def set_up(config: str = "", credentials: str = "", /, **variables: str) -> None:
        (tmp_path / "config").write_bytes(config.encode())
        (tmp_path / "credentials").write_bytes(credentials.encode())
        files = {"AWS_CONFIG_FILE": tmp_path / "config", "AWS_SHARED_CREDENTIALS_FILE": tmp_path / "credentials"}
        for name, value in ({"AWS_EC2_METADATA_DISABLED": "true"} | files | variables).items():
            monkeypatch.setenv(name, str(value))

    set_up()
    return set_up


def ours(bucket: str = "bkt", region: str | None = None, **config: Any) -> dict[str, tuple[str, str]]:
    """Each setting in use: its value, and where it stands."""
    found = client_for(region, config=S3ClientConfig(**config)).settings(bucket)
    return {name: (value, source) for name, value, source in found}


def botocore_client(region: str | None = None, profile: str | None = None, **arguments: Any) -> Any:
    """A client of boto3 with the same variables and files, and keys of its own."""
    return boto3.Session(profile_name=profile, region_name=region, **KEYS).client("s3", **arguments)


def theirs(client: Any, bucket: str = "bkt") -> Any:
    """The request for an object that botocore would send."""
    sent = []

    def stop(request: Any, **_: Any) -> Any:
        sent.append(request)
        raise InterruptedError

    client.meta.events.register("before-send.s3", stop, unique_id="stop")
    try:
        with pytest.raises(InterruptedError):
            client.head_object(Bucket=bucket, Key="k")
    finally:
        client.meta.events.unregister("before-send.s3", unique_id="stop")
    return sent[0]


def signed_for(request: Any) -> str:
    """The region that botocore signed a request for."""
    return request.headers["Authorization"].decode().split("/")[2]


# -- the table


@dataclasses.dataclass(frozen=True)
class Row:
    """A setting by its name in `Client.settings`: what an argument says, and what each place says; the first wins.

    A place is a variable or a key of a profile: ``s3.x`` is the line ``x`` below ``s3 =``, ``services.x`` the same in
    the profile's services section. Values differ from those of the next place.
    """

    name: str
    argument: dict[str, Any]
    places: dict[str, str]


TABLE = [
    Row(
        "endpoint_url",
        {"endpoint_url": "http://argument.test:9000"},
        {
            "AWS_ENDPOINT_URL_S3": "http://variable-s3.test:9001",
            "AWS_ENDPOINT_URL": "http://variable.test:9002",
            "services.endpoint_url": "http://services.test",
            "endpoint_url": "https://profile.test",
        },
    ),
    Row(
        "region",
        {"region": "us-east-2"},
        {"AWS_REGION": "us-west-1", "AWS_DEFAULT_REGION": "us-west-2", "region": "eu-west-1"},
    ),
    Row("addressing_style", {"force_path_style": True}, {"s3.addressing_style": "virtual"}),
    Row(
        "use_fips_endpoint",
        {"use_fips_endpoint": True},
        {"AWS_USE_FIPS_ENDPOINT": "false", "use_fips_endpoint": "true"},
    ),
    Row(
        "use_dualstack_endpoint",
        {"use_dualstack_endpoint": False},
        {
            "s3.use_dualstack_endpoint": "true",
            "AWS_USE_DUALSTACK_ENDPOINT": "false",
            "use_dualstack_endpoint": "true",
        },
    ),
    Row("use_accelerate_endpoint", {"use_accelerate_endpoint": False}, {"s3.use_accelerate_endpoint": "true"}),
    Row(
        "use_arn_region",
        {},
        {"AWS_S3_USE_ARN_REGION": "false", "s3_use_arn_region": "true", "s3.use_arn_region": "false"},
    ),
    Row("ca_bundle", {"ca_bundle": "{tmp}/0.pem"}, {"AWS_CA_BUNDLE": "{tmp}/1.pem", "ca_bundle": "{tmp}/2.pem"}),
    Row(
        "request_checksum_calculation",
        {},
        {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported", "request_checksum_calculation": "when_required"},
    ),
    Row(
        "response_checksum_validation",
        {},
        {"AWS_RESPONSE_CHECKSUM_VALIDATION": "when_supported", "response_checksum_validation": "when_required"},
    ),
]
ARGUMENT = -1
CELLS = [
    pytest.param(row, at, id=f"{row.name}-{place}")
    for row in TABLE
    for at, place in enumerate(["argument", *row.places] if row.argument else row.places, -1 if row.argument else 0)
]


def file_of(keys: dict[str, str]) -> str:
    """A configuration file whose default profile says this."""

    def below(start: str) -> str:
        return "".join(
            f"  {key.removeprefix(start)} = {value}\n" for key, value in keys.items() if key.startswith(start)
        )

    plain = "".join(f"{key} = {value}\n" for key, value in keys.items() if "." not in key)
    nested = f"s3 =\n{below('s3.')}" if below("s3.") else ""
    services = f"services = mine\n[services mine]\ns3 =\n{below('services.')}" if below("services.") else ""
    return f"[default]\n{plain}{nested}{services}"


def told(place: str) -> str:
    """How our settings name a place."""
    if place.isupper():
        return place
    return 's3.endpoint_url of services "mine"' if "services" in place else f'{place} of profile "default"'


def used_by_botocore(name: str, region: str | None, argument: dict[str, Any]) -> str:
    """What botocore makes of a setting, read off the request it would send, or off its client."""
    s3 = {key: argument[key] for key in ("use_dualstack_endpoint", "use_accelerate_endpoint") if key in argument}
    s3 |= {"addressing_style": "path"} if "force_path_style" in argument else {}
    config = Config(s3=s3 or None, use_fips_endpoint=argument.get("use_fips_endpoint"))
    given = {"endpoint_url": argument.get("endpoint_url"), "verify": argument.get("ca_bundle"), "config": config}
    client = botocore_client(region, **given)
    if name == "ca_bundle":
        return str(client._endpoint.http_session._verify)
    if name.startswith(("request_", "response_")):
        return str(getattr(client.meta.config, name))
    try:
        request = theirs(client, ARN if name == "use_arn_region" else "bkt")
    except botocore.exceptions.BotoCoreError:
        return "false" if name == "use_arn_region" else "refused"
    url = urlsplit(request.url)
    return {
        "endpoint_url": f"{url.scheme}://{url.netloc}",
        "region": signed_for(request),
        "addressing_style": "path" if url.path.startswith("/bkt") else "virtual",
        "use_fips_endpoint": str("fips" in url.netloc).lower(),
        "use_dualstack_endpoint": str("dualstack" in url.netloc).lower(),
        "use_accelerate_endpoint": str("accelerate" in url.netloc).lower(),
        "use_arn_region": "true",
    }[name]


@pytest.mark.parametrize(("row", "at"), CELLS)
def test_each_place_wins_over_those_after_it_as_in_boto3(aws: Aws, tmp_path: Path, row: Row, at: int) -> None:
    def filled(value: Any) -> Any:
        return value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value

    for number in range(3):
        (tmp_path / f"{number}.pem").write_text(AUTHORITY.read_text())
    argument = {name: filled(value) for name, value in row.argument.items()} if at == ARGUMENT else {}
    places = {place: filled(value) for place, value in list(row.places.items())[max(at, 0) :]}
    keys = {place: value for place, value in places.items() if not place.isupper()}
    aws(file_of(keys), **{place: value for place, value in places.items() if place.isupper()})
    region = argument.pop("region", None) if row.name == "region" else "us-east-1"
    found = ours("bkt", region, **argument)[row.name]
    if at == ARGUMENT:
        ((field, value),) = row.argument.items()
        value = {"force_path_style": "path"}.get(
            field, str(filled(value)) if isinstance(value, str) else str(value).lower()
        )
        assert found == (value, field)
    else:
        place, value = next(iter(places.items()))
        assert found == (value, told(place))
    if "AWS_REGION" in places and at != ARGUMENT:
        # The one variable of these that botocore does not read; AWS's other SDKs do.
        assert used_by_botocore(row.name, region, argument) == places["AWS_DEFAULT_REGION"]
    else:
        assert used_by_botocore(row.name, region, argument) == found[0]


def test_what_nobody_says_is_aws_as_in_boto3(aws: Aws) -> None:
    aws()
    found = ours("bkt", "eu-west-1")
    assert {name: source for name, (_, source) in found.items()} == {
        **dict.fromkeys(found, "default"),
        "region": "region",
        "bucket_url": 'bucket "bkt"',
        "signing_region": 'bucket "bkt"',
    }
    request = theirs(botocore_client("eu-west-1"))
    assert f"{found['bucket_url'][0]}k" == request.url
    assert found["signing_region"][0] == signed_for(request) == "eu-west-1"


# -- profiles and files


@pytest.mark.parametrize(
    ("config", "credentials", "variables", "profile"),
    [
        ("[profile 'a b']\n{0}", "", {}, "a b"),
        ('[profile "a b"]\n{0}', "", {"AWS_DEFAULT_PROFILE": "a b"}, None),
        ("[default]\n{0}", "", {}, None),
        ("[default]\r\n{0}\r\n", "", {}, None),
        ("# mine\n\n[default]\n{0}", "", {}, None),
        ("[profile default]\n{0}", "", {}, None),
        ("[profile a]\nendpoint_url = http://wrong.test\n[profile b]\n{0}", "", {"AWS_PROFILE": "b"}, None),
        ("[profile a]\nendpoint_url = http://wrong.test\n[profile b]\n{0}", "", {"AWS_PROFILE": "a"}, "b"),
        ("[profile a]\nregion = eu-west-1\n", "[a]\n{0}", {}, "a"),
        ("[default]\nregion = eu-west-1\n", "[default]\n{0}", {}, None),
    ],
)
def test_a_profile_is_found_as_in_boto3(
    aws: Aws, config: str, credentials: str, variables: dict[str, str], profile: str | None
) -> None:
    line = "endpoint_url = https://found.test\n"
    aws(config.format(line), credentials.format(line), **variables)
    assert ours("bkt", "eu-west-1", profile=profile)["endpoint_url"][0] == "https://found.test"
    assert theirs(botocore_client("eu-west-1", profile)).url.startswith("https://found.test/")


def test_a_profiles_name_with_spaces_needs_no_quotes_though_in_boto3_it_does(aws: Aws) -> None:
    aws("[profile a b]\nendpoint_url = https://found.test\n")
    assert ours("bkt", "eu-west-1", profile="a b")["endpoint_url"][0] == "https://found.test"
    with pytest.raises(botocore.exceptions.ProfileNotFound):
        botocore_client("eu-west-1", "a b")


def test_a_file_with_a_byte_order_mark_is_read_where_boto3_refuses_it(aws: Aws) -> None:
    aws("\ufeff[default]\r\nendpoint_url = https://found.test\r\n")
    assert ours("bkt", "eu-west-1")["endpoint_url"][0] == "https://found.test"
    with pytest.raises(botocore.exceptions.ConfigParseError):
        theirs(botocore_client("eu-west-1"))


@pytest.mark.parametrize(
    ("config", "variables", "words", "refused_by_boto3"),
    [
        ("[default]\nregion\n", {}, ["config", "line 2"], True),
        ("region = eu-west-1\n", {}, ["config", "line 1"], True),
        ("", {"AWS_PROFILE": "nobody"}, ["AWS_PROFILE", "nobody", "config"], True),
        ("[default]\nservices = lost\n", {}, ["services of profile", "lost"], True),
        ("[default]\nca_bundle = /no/such.pem\n", {}, ['ca_bundle of profile "default"', "/no/such.pem"], False),
        ("[default]\nuse_fips_endpoint = maybe\n", {}, ['use_fips_endpoint of profile "default"', "maybe"], False),
        ("", {"AWS_USE_DUALSTACK_ENDPOINT": "1"}, ["AWS_USE_DUALSTACK_ENDPOINT", "1"], False),
        ("[default]\ns3 =\n  addressing_style = maybe\n", {}, ["s3.addressing_style of profile", "maybe"], True),
        ("[default]\nrequest_checksum_calculation = maybe\n", {}, ["request_checksum_calculation of", "maybe"], True),
    ],
)
def test_what_cannot_be_understood_is_an_error_that_says_where_it_stands(
    aws: Aws, config: str, variables: dict[str, str], words: list[str], refused_by_boto3: bool
) -> None:
    aws(config, **variables)
    with pytest.raises(ConfigError) as caught:
        ours("bkt", "eu-west-1")
    assert all(word in str(caught.value) for word in words), caught.value
    if refused_by_boto3:
        with pytest.raises((botocore.exceptions.BotoCoreError, OSError)):
            theirs(botocore_client("eu-west-1"))
    else:
        theirs(botocore_client("eu-west-1"))


def test_settings_of_a_services_section_other_than_the_endpoint_do_not_count_as_in_boto3(aws: Aws) -> None:
    aws(file_of({"services.addressing_style": "path", "services.use_accelerate_endpoint": "true"}))
    url = ours("bkt", "eu-west-1")["bucket_url"][0]
    assert f"{url}k" == theirs(botocore_client("eu-west-1")).url == "https://bkt.s3.eu-west-1.amazonaws.com/k"


# -- hosts


ALIAS = "models-aqfqprnstn7aefdfbarligizwgyfouse1a-s3alias"
DIRECTORY_BUCKETS = [
    *("bkt--use1-az4--x-s3", "my--bkt--usw2-lax1-az1--x-s3", "bkt--use1-az4--xa-s3"),
    *("bkt--x-s3", "a.bkt--use1-az4--x-s3", "--use1-az4--x-s3"),
]
VARIANTS = [
    {"use_fips_endpoint": fips, "use_dualstack_endpoint": dual_stack, "use_accelerate_endpoint": accelerate}
    for fips, dual_stack, accelerate in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(k for k, on in variant.items() if on) or "-")
def test_hosts_and_what_cannot_be_combined_are_botocores(aws: Aws, region: str, variant: dict[str, bool]) -> None:
    aws()
    partition = boto3.Session().get_partition_for_region(region)
    neighbour = {"aws": "ap-south-1", "aws-cn": "cn-northwest-1", "aws-us-gov": "us-gov-east-1"}.get(partition, region)
    s3 = {"use_accelerate_endpoint": variant["use_accelerate_endpoint"], "us_east_1_regional_endpoint": "regional"}
    client = botocore_client(
        region,
        config=Config(
            use_fips_endpoint=variant["use_fips_endpoint"],
            use_dualstack_endpoint=variant["use_dualstack_endpoint"],
            s3=s3,
        ),
    )
    points = [f"arn:{partition}:s3:{where}:{ACCOUNT}:accesspoint/models" for where in (region, neighbour)]
    other = "cn-north-1" if partition == "aws" else "us-east-1"
    wrong = f"arn:{partition}:s3:{other}:{ACCOUNT}:accesspoint/models"
    reached = 0
    names = ["bkt", "a.bkt", "Bkt_1", ALIAS, *DIRECTORY_BUCKETS]
    for bucket in [*names, *points, points[0].replace("point/", "point:"), wrong]:
        try:
            request = theirs(client, bucket)
        except botocore.exceptions.BotoCoreError:
            with pytest.raises(ConfigError):
                ours(bucket, region, **variant)
            continue
        found = ours(bucket, region, **variant)
        # Of a directory bucket a session is asked for first.
        assert f"{found['bucket_url'][0].rstrip('/')}/k" == request.url.replace("/?session", "/k")
        assert found["signing_region"][0] == signed_for(request)
        reached += 1
    refused = variant["use_fips_endpoint"] and (variant["use_accelerate_endpoint"] or partition == "aws-cn")
    assert reached > 0 or refused or (partition == "aws-cn" and variant["use_accelerate_endpoint"])


@pytest.mark.parametrize("endpoint_url", ["https://store.test", "http://store.test:9000", "https://store.test/s3"])
@pytest.mark.parametrize("bucket", ["bkt", "arn"])
def test_hosts_below_another_endpoint_are_botocores_with_addressing_style_virtual(
    aws: Aws, endpoint_url: str, bucket: str
) -> None:
    aws(file_of({"s3.addressing_style": "virtual"}))
    bucket = ARN if bucket == "arn" else bucket
    url = ours(bucket, "us-east-1", endpoint_url=endpoint_url)["bucket_url"][0]
    assert f"{url.rstrip('/')}/k" == theirs(botocore_client("us-east-1", endpoint_url=endpoint_url), bucket).url


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_fips_endpoint": "true"}, ["use_fips_endpoint", 'of profile "default"', "http://store.test"]),
        ({"s3.use_accelerate_endpoint": "true"}, ["use_accelerate_endpoint", "of profile", "http://store.test"]),
        ({"use_dualstack_endpoint": "true"}, ["use_dualstack_endpoint", "of profile", "http://store.test"]),
    ],
)
def test_a_variant_of_aws_with_another_endpoint_is_refused_by_both_places(
    aws: Aws, config: dict[str, str], words: list[str]
) -> None:
    aws(file_of(config), AWS_ENDPOINT_URL="http://store.test")
    with pytest.raises(ConfigError) as caught:
        ours("bkt", "us-east-1")
    assert all(word in str(caught.value) for word in [*words, "AWS_ENDPOINT_URL"]), caught.value


def test_a_multi_region_access_point_is_refused_by_what_it_needs(aws: Aws) -> None:
    with pytest.raises(ConfigError, match="multi-region access point; these need signatures of version 4A"):
        ours(f"arn:aws:s3::{ACCOUNT}:accesspoint/mfzwi23gnjvgw.mrap", "us-east-1")


def test_the_endpoint_and_its_place_are_in_the_error_where_it_cannot_be_reached(aws: Aws) -> None:
    aws("[default]\nendpoint_url = http://127.0.0.1:9\n", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    client = client_for("us-east-1", config=S3ClientConfig(max_attempts=1))
    with pytest.raises(ConnectionFailed, match=r'http://127.0.0.1:9 \(endpoint_url of profile "default"\)'):
        client.head_object("bkt", "k")


# -- the command


def test_the_command_shows_the_same_settings(aws: Aws) -> None:
    aws(file_of({"services.endpoint_url": "http://store.test:9000"}), AWS_REGION="eu-west-1")
    done = subprocess.run(
        [sys.executable, "-m", "s3dcp", "settings", "s3://bkt", "--json"], check=True, capture_output=True, text=True
    )
    shown = {setting["name"]: (setting["value"], setting["source"]) for setting in json.loads(done.stdout)}
    assert shown == ours()
    assert shown["endpoint_url"] == ("http://store.test:9000", 's3.endpoint_url of services "mine"')
    arguments = ["settings", f"s3://{ARN}/run", "--endpoint-url", "https://mine.test"]
    done = subprocess.run([sys.executable, "-m", "s3dcp", *arguments], check=True, capture_output=True, text=True)
    assert f"https://models-{ACCOUNT}.mine.test/" in done.stdout
