"""Stores that are not quite S3: without checksum headers, without DeleteObjects, with half of the conditions."""

from __future__ import annotations

import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from s3dcp import (
    AlreadyExists,
    ConfigError,
    Conflict,
    S3ClientConfig,
    S3FileSystem,
    S3StorageReader,
    S3StorageWriter,
    testing,
)

BUCKET = "checkpoints"
PATH = f"s3://{BUCKET}/run"
CONFIG = S3ClientConfig(part_size=5 << 20, max_attempts=1, deadline=60)


def save(value: float, config: S3ClientConfig | None = CONFIG, **arguments: object) -> list[str]:
    """Save a small and a large tensor, with no other warning than those returned."""
    state = {"small": torch.full((100,), value), "large": torch.full((3_000_000,), value)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dcp.save(state, storage_writer=S3StorageWriter(None, PATH, config, **arguments), no_dist=True)  # type: ignore[arg-type]
    told = ("conditional writes", "stay", "deleted")
    return [str(warning.message) for warning in caught if any(word in str(warning.message) for word in told)]


def loaded(config: S3ClientConfig | None = CONFIG) -> float:
    state = {"small": torch.zeros(100), "large": torch.zeros(3_000_000)}
    dcp.load(state, storage_reader=S3StorageReader(None, PATH, config), no_dist=True)
    value = state["small"][0].item()
    assert all(bool((tensor == value).all()) for tensor in state.values())
    return value


def shard_files() -> list[str]:
    return [name for name in S3FileSystem(None).ls(PATH) if name.endswith(".distcp")]


def applied(server: testing.Server) -> int:
    return sum(count for _rule, count in server.faults())


@pytest.mark.parametrize(
    "refusal",
    [
        "error:400/InvalidArgument header=x-amz-checksum-*",
        "error:501/NotImplemented header=x-amz-checksum-*",
        "error:501/NotImplemented header=x-amz-checksum-algorithm",
        "error:400/InvalidRequest on=DeleteObjects header=x-amz-checksum-*",
        "error:501/NotImplemented on=UploadPart header=x-amz-checksum-*",
    ],
)
def test_a_store_without_checksum_headers_is_saved_to_and_loaded_from(refusal: str) -> None:
    with testing.server([BUCKET], faults=[refusal]) as server:
        for value in (1.0, 2.0):
            assert save(value) == []
        assert loaded() == 2.0
        assert len(shard_files()) == 1
        told = applied(server)
        assert told >= 1
        assert save(3.0) == []
        assert loaded() == 3.0
        assert applied(server) == told, "what is known is not asked again"


@pytest.mark.parametrize("value", ["when_required", "WHEN_REQUIRED", " when_required\n"])
def test_checksum_headers_are_left_out_as_the_environment_says(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", value)
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", value)
    with testing.server([BUCKET], faults=["error:400/InvalidArgument header=x-amz-checksum-*"]) as server:
        save(1.0)
        save(2.0)
        assert loaded() == 2.0
        assert applied(server) == 0


def test_the_field_decides_on_checksum_headers_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "error:400/InvalidArgument header=x-amz-checksum-*"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    with testing.server([BUCKET], faults=[refusal]), pytest.raises(CheckpointException, match="InvalidArgument"):
        save(1.0, S3ClientConfig(checksum_headers=True, max_attempts=1))
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    with testing.server([BUCKET], faults=[refusal]) as server:
        save(1.0, S3ClientConfig(checksum_headers=False))
        assert applied(server) == 0


@pytest.mark.parametrize("variable", ["AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"])
def test_a_checksum_variable_with_another_value_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "sometimes")
    with pytest.raises(ConfigError, match=rf"{variable}.*when_required.*sometimes"):
        S3FileSystem("us-east-1").ls(PATH)
    with pytest.raises(ValueError, match="checksum_headers=1"):
        S3ClientConfig(checksum_headers=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "refusal", ["501/NotImplemented", "400/NotImplemented", "400/InvalidArgument", "405/MethodNotAllowed"]
)
def test_a_store_without_delete_objects_is_left_as_clean_as_any(refusal: str) -> None:
    with testing.server([BUCKET], faults=[f"error:{refusal} on=DeleteObjects"]) as server:
        for value in (1.0, 2.0, 3.0):
            assert save(value, None) == []
        assert len(shard_files()) == 1
        assert applied(server) == 1
        files = S3FileSystem(None)
        with files.create_stream(f"{PATH}/__9_0-0123456789abcdef.distcp", "wb") as stream:
            stream.write(b"x")
        command = [Path(sys.executable).with_name("s3dcp"), "prune", PATH, "--delete", "--older-than", "0s"]
        if command[0].exists():
            subprocess.run([*command, "--endpoint-url", server.endpoint_url], check=True, capture_output=True)
            assert len(shard_files()) == 1
        with files.create_stream(f"{PATH}/note", "wb") as stream:
            stream.write(b"x")
        files.rm_file(f"{PATH}/note")
        assert not files.exists(f"{PATH}/note")


def test_what_is_known_of_one_store_is_not_taken_for_another() -> None:
    with testing.server([BUCKET], faults=["error:501/NotImplemented header=if-*"]):
        assert any("conditional writes" in warning for warning in save(1.0, None))
        with pytest.raises(CheckpointException, match="conditional_commit"):
            save(2.0, None, conditional_commit="require")
    with testing.server([BUCKET]) as honours:
        assert save(1.0, None, conditional_commit="require") == []
        honours.inject("error:501/NotImplemented header=x-amz-checksum-*")
        assert save(2.0, None) == []
    refusing = testing.server([BUCKET], faults=["error:501/NotImplemented header=if-*"])
    with refusing, pytest.raises(CheckpointException, match="conditional_commit"):
        save(1.0, None, conditional_commit="require")


@pytest.mark.parametrize("refusal", ["501/NotImplemented", "400/InvalidArgument", "412/PreconditionFailed"])
def test_a_store_without_if_match_is_warned_of_at_an_overwrite_and_refused_before_it_uploads(refusal: str) -> None:
    with testing.server([BUCKET], faults=[f"error:{refusal} header=if-match on=PutObject"]):
        assert save(1.0, conditional_commit="require") == []
        before = S3FileSystem(None).ls(PATH)
        with pytest.raises(CheckpointException, match=r"conditional_commit=.require.*If-Match"):
            save(2.0, conditional_commit="require")
        assert S3FileSystem(None).ls(PATH) == before
        assert [("If-Match" in warning) for warning in save(3.0)] == [True]
        assert loaded() == 3.0


# How the header ETag of objects is written elsewhere. What UploadPart answers is left: S3 wants that back as it was.
FORMS = ("weak", "unquoted", "uppercase", "suffixed", "absent")
OF_OBJECTS = "PutObject,HeadObject,GetObject,CopyObject"

# What stores are known to do otherwise than S3, as rules of the embedded server.
QUIRKS = {
    "no checksum headers": ["error:400/InvalidArgument header=x-amz-checksum-*"],
    "checksum headers not implemented": ["error:501/NotImplemented header=x-amz-checksum-*"],
    "no conditional writes": ["error:501/NotImplemented header=if-*"],
    "conditions as unknown arguments": ["error:400/InvalidArgument header=if-none-match on=PutObject"],
    "If-Match only": ["error:501/NotImplemented header=if-none-match on=PutObject"],
    "If-None-Match only": ["error:501/NotImplemented header=if-match on=PutObject"],
    "no DeleteObjects": ["error:501/NotImplemented on=DeleteObjects"],
    "DeleteObjects is no method": ["error:405/MethodNotAllowed on=DeleteObjects"],
    "no ListParts": ["error:501/NotImplemented on=ListParts"],
    **{f"{form} ETags": [f"etag:{form} on={OF_OBJECTS}"] for form in FORMS},
    "no listing of uploads": ["error:501/NotImplemented on=ListMultipartUploads"],
    "neither checksums, conditions nor DeleteObjects": [
        "error:501/NotImplemented header=x-amz-checksum-*",
        "error:501/NotImplemented header=if-*",
        "error:501/NotImplemented on=DeleteObjects",
    ],
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_each_quirk_of_a_store_leaves_a_save_an_overwrite_a_race_and_a_load(quirk: str) -> None:
    with testing.server([BUCKET], faults=QUIRKS[quirk]):
        save(1.0)
        assert loaded() == 1.0
        save(2.0)
        assert loaded() == 2.0
        assert len(shard_files()) == 1
        with ThreadPoolExecutor(2) as pool:
            racing = [pool.submit(race, value) for value in (3.0, 4.0)]
            ended = [outcome.result() for outcome in racing]
        # Without conditions both may say that they committed: then the later index stays.
        assert [] in ended
        assert all(isinstance(error, (AlreadyExists, Conflict)) for errors in ended for error in errors)
        assert loaded() in (3.0, 4.0)
        save(5.0)
        assert loaded() == 5.0


def race(value: float) -> list[BaseException]:
    """Save beside another save; what that failed with."""
    state = {"small": torch.full((100,), value), "large": torch.full((3_000_000,), value)}
    try:
        dcp.save(state, storage_writer=S3StorageWriter(None, PATH, CONFIG), no_dist=True)
    except CheckpointException as failed:
        return [error for error, _ in failed.failures.values()]
    return []
