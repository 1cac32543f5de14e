"""The errors of s3dcp: one base, one class per kind, each also the built-in a caller would catch.

Branch on the class or on ``kind``, never on the text. Errors pickle with their attributes, because
``torch.distributed.checkpoint`` gathers them over ranks; through it they arrive inside
``CheckpointException.failures[rank][0]``.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

__all__ = [
    "AlreadyExists",
    "ConfigError",
    "Conflict",
    "ConnectionFailed",
    "Corrupt",
    "Denied",
    "InternalError",
    "Interrupted",
    "NotFound",
    "PreconditionFailed",
    "S3DcpError",
    "ServiceError",
    "Throttled",
    "Timeout",
]


AnyError = TypeVar("AnyError", bound="S3DcpError")


def shown(text: str) -> str:
    """`text` for messages, which go to files: what UTF-8 cannot say of a tensor's name stands there as its escape."""
    return text.encode(errors="backslashreplace").decode()


class S3DcpError(Exception):
    """Base of all errors of s3dcp.

    Attributes:
        message: what went wrong, in one line (also ``str(error)``).
        kind: the kind as a word, e.g. ``"NotFound"``; each kind has a class of its own.
        retryable: whether trying again later can help (the engine's own retries are already spent).
        maybe_applied: whether the request may have taken effect although it failed.
        bucket: of the object that the error concerns, if it does.
        key: that object's.
        part: number of the part of a multipart upload, from 1.
        attempts: how many times the request was sent.
        elapsed: seconds from the first attempt to the failure.
        request_id: S3's id of the last request, for AWS support.
        status: the last HTTP status.
        code: S3's error code, e.g. ``"NoSuchBucket"``.
    """

    kind: ClassVar[str] = "Error"

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        maybe_applied: bool = False,
        bucket: str | None = None,
        key: str | None = None,
        part: int | None = None,
        attempts: int = 0,
        elapsed: float = 0.0,
        request_id: str | None = None,
        status: int | None = None,
        code: str | None = None,
    ) -> None:
        message = shown(message)
        super().__init__(message)
        self.message = message
        self.retryable = retryable
        self.maybe_applied = maybe_applied
        self.bucket = bucket
        self.key = key
        self.part = part
        self.attempts = attempts
        self.elapsed = elapsed
        self.request_id = request_id
        self.status = status
        self.code = code

    def __str__(self) -> str:
        return self.message

    def with_message(self: AnyError, message: str) -> AnyError:
        """The same error with another message: for a caller that knows more about the purpose."""
        again = copy.copy(self)
        again.message = message
        again.args = (message,)
        return again


class NotFound(S3DcpError, FileNotFoundError):
    """The bucket, the object or the checkpoint does not exist."""

    kind = "NotFound"


class AlreadyExists(S3DcpError, FileExistsError, RuntimeError):
    """Checkpoint already exists, or another writer committed first. (A `RuntimeError` as well, as torch raises.)"""

    kind = "AlreadyExists"


class Conflict(S3DcpError):
    """Something changed underneath: ranks read different indexes, or a checkpoint was replaced during a load."""

    kind = "Conflict"


class PreconditionFailed(S3DcpError):
    """A conditional request found the object in another state than expected."""

    kind = "PreconditionFailed"


class Throttled(S3DcpError):
    """S3 kept answering ``503 SlowDown`` until the deadline."""

    kind = "Throttled"


class Denied(S3DcpError, PermissionError):
    """S3 refused the credentials, or there are none."""

    kind = "Denied"


class Corrupt(S3DcpError, ValueError):
    """Stored bytes are not what was written: a checksum, a length or a format is wrong."""

    kind = "Corrupt"


class Timeout(S3DcpError, TimeoutError):
    """The operation's deadline passed."""

    kind = "Timeout"


class ConfigError(S3DcpError, ValueError):
    """An argument or setting cannot work; the message names it, its value and the limit."""

    kind = "Config"


class ConnectionFailed(S3DcpError, ConnectionError):
    """The endpoint could not be reached, or the connection kept breaking."""

    kind = "Connection"


class Interrupted(S3DcpError):
    """The operation was cancelled before its end."""

    kind = "Interrupted"


class ServiceError(S3DcpError):
    """S3 answered with an error that no other kind covers; see ``code`` and ``status``."""

    kind = "Service"


class InternalError(S3DcpError, RuntimeError):
    """A defect of s3dcp itself, which is worth a report; the message says where."""

    kind = "Internal"


_BY_KIND: dict[str, type[S3DcpError]] = {
    cls.kind: cls
    for cls in (
        NotFound,
        AlreadyExists,
        Conflict,
        PreconditionFailed,
        Throttled,
        Denied,
        Corrupt,
        Timeout,
        ConfigError,
        ConnectionFailed,
        Interrupted,
        ServiceError,
        InternalError,
    )
}


def from_kind(kind: str, message: str, attributes: dict[str, Any]) -> S3DcpError:
    """The error of `kind` with `message`; called by the native module."""
    return _BY_KIND.get(kind, ServiceError)(message, **attributes)
