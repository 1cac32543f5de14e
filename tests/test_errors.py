"""The error classes: kinds, built-in bases, attributes that survive pickling."""

from __future__ import annotations

import copy
import pickle

import pytest

import s3dcp
from s3dcp import S3DcpError, errors

KINDS = [getattr(errors, name) for name in errors.__all__ if name != "S3DcpError"]
ATTRIBUTES = {
    "retryable": True,
    "maybe_applied": True,
    "bucket": "models",
    "key": "run/__0_0.distcp",
    "part": 7,
    "attempts": 10,
    "elapsed": 12.5,
    "request_id": "REQ1",
    "status": 503,
    "code": "SlowDown",
}
BUILT_IN = {
    "NotFound": FileNotFoundError,
    "AlreadyExists": FileExistsError,
    "Denied": PermissionError,
    "Timeout": TimeoutError,
    "Corrupt": ValueError,
    "Config": ValueError,
    "Connection": ConnectionError,
}


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_errors_keep_class_message_and_attributes_when_pickled_or_copied(cls, copied) -> None:
    error = cls("PUT failed", **ATTRIBUTES)
    again = copied(error)
    assert type(again) is cls
    assert str(again) == again.message == "PUT failed"
    assert again.args == error.args
    assert {name: getattr(again, name) for name in ATTRIBUTES} == ATTRIBUTES


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_every_kind_is_caught_as_the_base_and_as_its_built_in(cls) -> None:
    assert issubclass(cls, S3DcpError)
    assert issubclass(cls, BUILT_IN.get(cls.kind, Exception))
    with pytest.raises(S3DcpError):
        raise cls("message")


def test_kinds_are_distinct_and_exported() -> None:
    assert len({cls.kind for cls in KINDS}) == len(KINDS)
    for name in errors.__all__:
        assert getattr(s3dcp, name) is getattr(errors, name)


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_the_native_module_finds_the_class_of_every_kind(cls) -> None:
    error = errors.from_kind(cls.kind, "message", ATTRIBUTES)
    assert type(error) is cls
    assert error.part == 7


def test_an_unknown_kind_is_still_an_error_of_ours() -> None:
    assert isinstance(errors.from_kind("Novel", "message", {}), S3DcpError)


def test_the_message_stands_alone_even_for_built_ins_that_format_their_own() -> None:
    assert str(errors.NotFound("no such object", key="k")) == "no such object"
    assert repr(errors.Denied("refused")) == "Denied('refused')"


def test_notes_and_causes_do_not_keep_an_error_from_pickling() -> None:
    error = errors.Conflict("changed")
    error.add_note("while loading") if hasattr(error, "add_note") else None
    error.__cause__ = ValueError("inner")
    assert str(pickle.loads(pickle.dumps(error))) == "changed"
