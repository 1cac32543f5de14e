"""`S3FileSystem`: the file operations that ``torch.distributed.checkpoint`` knows, on S3."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, TypeVar

from torch.distributed.checkpoint.filesystem import FileSystemBase

from . import _native
from ._client import client_for
from .client_config import S3ClientConfig, refuse_password
from .errors import ConfigError, NotFound

__all__ = ["S3FileSystem"]

READ_AHEAD_BYTES = 8 * 1024 * 1024
WRITE_BUFFER_BYTES = 1024 * 1024


AnyPath = TypeVar("AnyPath", bound="str | os.PathLike[str]")


def split_path(path: str | os.PathLike[str], argument: str = "path") -> tuple[str, str]:
    """``s3://bucket/some/path`` -> ``("bucket", "some/path")``; every character of the key counts.

    What lies in a folder of that key, `_native.join_key` says.

    Raises:
        ConfigError: `path` is no S3 URI; the message names `argument` and its value.
    """
    uri = os.fspath(path)
    if isinstance(path, PurePath) and not uri.startswith("s3://"):
        raise ConfigError(f"{argument}={path!r}: pathlib keeps one slash of s3://, so give the path as a string")
    try:
        return _native.parse_s3_uri(uri, argument)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{argument}={uri!r}: must be text that UTF-8 can say, as keys are") from error


class S3FileSystem(FileSystemBase):
    """S3 behind torch's ``FileSystemBase``; drop-in for the class of this name in ``s3torchconnector.dcp``.

    Args:
        region: AWS region of the bucket.
        s3_client: a native client to share; made from the other arguments when None, at first use.
        s3client_config: settings of the S3 client.
        reader_constructor: accepted for compatibility and ignored: there is one reader, which fetches ranges.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.

    It pickles without its live client.
    """

    def __init__(
        self,
        region: str | None,
        s3_client: _native.Client | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: Any = None,
        *,
        endpoint_url: str | None = None,
    ) -> None:
        refuse_password(endpoint_url)
        self._region = region
        self._config = s3client_config
        self._endpoint_url = endpoint_url
        self._client = s3_client
        self._path: str | os.PathLike[str] = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None}

    @property
    def client(self) -> _native.Client:
        """The native client; every file system of a process with the same settings shares one."""
        return self._client or client_for(self._region, self._endpoint_url, self._config)

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A stream over one object: ``"rb"`` reads (seekable), ``"wb"`` writes and completes on leaving.

        When the body of the ``with`` statement raises, a write leaves nothing behind.

        Raises:
            ValueError: another mode.
            NotFound: the object to read does not exist.
        """
        bucket, key = split_path(path)
        if mode == "rb":
            with open_reader(self.client, bucket, key) as reader:
                yield reader
        elif mode == "wb":
            with ObjectWriter(self.client, bucket, key) as writer:
                yield writer
        else:
            raise ValueError(
                f"Invalid {mode=} mode argument: create_stream only supports rb (read mode) & wb (write mode)"
            )

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """`path`, a ``/`` unless it ends with one, and `suffix`."""
        return posixpath.join(os.fspath(path), suffix)

    def init_path(self, path: AnyPath) -> AnyPath:
        """Remember `path`, and give it back as it is."""
        self._path = path
        return path

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy on the server, then delete the old object. Not atomic: commits never use it.

        Raises:
            ValueError: the paths are in different buckets.
        """
        bucket, key = split_path(path)
        new_bucket, new_key = split_path(new_path, "new_path")
        if bucket != new_bucket:
            raise ValueError(
                f"Source and destination buckets cannot be different: new_path={os.fspath(new_path)!r} must be in "
                f"bucket {bucket!r}, as path is"
            )
        self.client.copy_object(bucket, key, new_key)
        self.client.delete_objects(bucket, [key])

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Does nothing: S3 has no folders."""

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is an object at `path` (S3 does not say whether the bucket exists); other failures raise."""
        bucket, key = split_path(path)
        try:
            self.client.head_object(bucket, key)
        except NotFound:
            return False
        return True

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete the object at `path`; failures raise."""
        bucket, key = split_path(path)
        self.client.delete_objects(bucket, [key])

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """URIs of all objects below `path`."""
        bucket, key = split_path(path)
        below = self.client.list_objects(bucket, _native.join_key(key, ""))
        return [f"s3://{bucket}/{info.key}" for info in below]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether `checkpoint_id` is an S3 URI."""
        try:
            split_path(checkpoint_id)
        except (ValueError, TypeError):
            return False
        return True


def open_reader(client: _native.Client, bucket: str, key: str) -> io.BufferedReader:
    """A seekable stream over one object, which reads ahead.

    Raises:
        NotFound: there is none.
    """
    size = client.head_object(bucket, key).size
    return io.BufferedReader(ObjectReader(client, bucket, key, size), READ_AHEAD_BYTES)


class ObjectReader(io.RawIOBase):
    """Random access to one object by ranged reads."""

    def __init__(self, client: _native.Client, bucket: str, key: str, size: int) -> None:
        self._client, self._bucket, self._key, self._size = client, bucket, key, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"offset={offset!r}: before the start of the object")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        view[:count] = self._fetch(count)
        return count

    def readall(self) -> bytes:
        """All that is left, asked for at once; `io.RawIOBase` would send a request for every few KiB."""
        return bytes(self._fetch(self._size - self._position))

    def _fetch(self, count: int) -> bytearray:
        """The next `count` bytes; none when it is not positive."""
        if count <= 0:
            return bytearray()
        start, end = self._position, self._position + count
        body = self._client.read_ranges(self._bucket, [(self._key, start, end)])[0]
        self._position = end
        return body


class WriteStream(io.RawIOBase):
    """One object, written in order; it exists once `close` has returned.

    As a context manager it leaves nothing behind when the body raises.
    """

    _position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            super().close()
            try:
                self._finish()
            except BaseException:
                self._give_up()
                raise

    def abort(self) -> None:
        """Drop what was written."""
        if not self.closed:
            super().close()
            self._give_up()

    def _finish(self) -> None:
        """Complete the object."""
        raise NotImplementedError

    def _give_up(self) -> None:
        """Leave no object."""
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        self.abort()


class ObjectWriter(WriteStream):
    """One object, written through a small buffer."""

    def __init__(self, client: _native.Client, bucket: str, key: str) -> None:
        self._native = client.object_writer(bucket, key, copies=True)
        self._native.begin_raw()
        self._buffer = bytearray()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(view) >= WRITE_BUFFER_BYTES:
            self._drain()
            self._native.write(bytes(view))
        else:
            self._buffer += view
            if len(self._buffer) >= WRITE_BUFFER_BYTES:
                self._drain()
        self._position += len(view)
        return len(view)

    def _drain(self) -> None:
        if self._buffer:
            self._native.write(bytes(self._buffer))
            self._buffer.clear()

    def _finish(self) -> None:
        self._drain()
        self._native.end()
        self._native.start_finishing()
        self._native.wait()

    def _give_up(self) -> None:
        self._native.abort()
