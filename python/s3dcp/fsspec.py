"""An fsspec file system on s3dcp's engine, for frameworks that list, look and delete through fsspec.

``s3dcp://bucket/key`` works wherever s3dcp is installed. `register` makes ``s3://`` mean the same in this process, and
the variable ``S3DCP_FSSPEC=1`` in every process that imports ``torch.distributed.checkpoint``.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike

from . import _native
from .client_config import S3ClientConfig
from .errors import NotFound
from .file_system import ObjectWriter, S3FileSystem

__all__ = ["S3FsspecFileSystem", "register"]

_PIECE_BYTES = 64 * 1024 * 1024
_EVERYTHING = 2**63 - 1


def register(protocol: str = "s3") -> None:
    """Have fsspec use s3dcp for ``<protocol>://`` in this process, whatever was there before."""
    fsspec.register_implementation(protocol, S3FsspecFileSystem, clobber=True)


class S3FsspecFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Buckets and keys as files and folders; a folder is there while a key below it is.

    Args:
        region: AWS region of the buckets; None takes it from the environment or profile.
        endpoint_url: S3 endpoint; None for ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile, else AWS.
        s3client_config: settings of the S3 client.
        anon: send requests without a signature, as ``unsigned`` of `S3ClientConfig`.
        profile: as ``profile`` of `S3ClientConfig`.
        client_kwargs: ``endpoint_url`` and ``region_name``, as s3fs takes them.
        storage_options: fsspec's own.

    Nothing is cached: what others write is seen. Credentials come from the AWS chain and are no argument.

    Raises:
        ValueError: an argument cannot work; the message names it.
    """

    protocol = ("s3dcp", "s3")
    root_marker = ""

    def __init__(
        self,
        region: str | None = None,
        endpoint_url: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        anon: bool = False,
        profile: str | None = None,
        client_kwargs: dict[str, Any] | None = None,
        **storage_options: Any,
    ) -> None:
        if storage_options.keys() & {"key", "secret", "token"}:
            raise ValueError("key, secret, token: credentials are no argument; they come from the AWS chain")
        known = {"endpoint_url", "region_name"}
        if unknown := sorted((client_kwargs or {}).keys() - known):
            raise ValueError(
                f"client_kwargs: {', '.join(unknown)}: only {', '.join(sorted(known))} have a meaning here"
            )
        super().__init__(**storage_options)
        if anon or profile:
            if s3client_config is not None:
                raise ValueError("s3client_config: has unsigned and profile of its own; give it alone")
            s3client_config = S3ClientConfig(unsigned=anon, profile=profile)
        self._files = S3FileSystem(
            region or (client_kwargs or {}).get("region_name"),
            s3client_config=s3client_config,
            endpoint_url=endpoint_url or (client_kwargs or {}).get("endpoint_url"),
        )

    @property
    def _client(self) -> _native.Client:
        return self._files.client

    def _split(self, path: str) -> tuple[str, str]:
        """Bucket and key of a path.

        Raises:
            ValueError: there is no bucket in it.
        """
        name = self._strip_protocol(path)
        bucket, _, key = name.partition("/")
        if bucket.startswith("arn:"):  # that of an access point holds a slash
            bucket, key = _native.parse_s3_uri(f"s3://{name}", "path")
        if not bucket:
            raise ValueError(f"path={path!r}: must begin with a bucket; buckets are not listed")
        return bucket, key

    # -- looking

    def ls(self, path: str, detail: bool = True, limit: int | None = None, **kwargs: Any) -> list[Any]:
        """What lies directly in a folder, or the file itself.

        Args:
            path: a bucket, folder or file.
            detail: dicts with ``name``, ``size`` (bytes), ``type``, ``ETag`` and ``LastModified``, else names alone.
            limit: so many entries at most, from the first on; None for all.

        Raises:
            FileNotFoundError: there is nothing.
        """
        bucket, key = self._split(path)
        entries = list(self._folder(bucket, key, limit))
        if not entries and key:
            entries = [self.info(path)]
            if entries[0]["type"] == "directory":
                entries = []
        return entries if detail else [entry["name"] for entry in entries]

    def _folder(self, bucket: str, key: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
        folder = _folder_key(key)
        objects, prefixes = self._client.list_folder(bucket, folder, _EVERYTHING if limit is None else limit)
        entries = [_directory(f"{bucket}/{prefix.rstrip('/')}") for prefix in prefixes]
        # An object with the folder's own name is how some tools mark an empty one.
        entries += [_file(bucket, found) for found in objects if found.key != folder]
        yield from sorted(entries, key=lambda entry: entry["name"])

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """One entry, as `ls` gives it.

        Raises:
            FileNotFoundError: there is nothing.
        """
        bucket, key = self._split(path)
        if key:
            try:
                return _file(bucket, self._client.head_object(bucket, key))
            except NotFound as error:
                if error.code == "NoSuchBucket":
                    raise
        objects, prefixes = self._client.list_folder(bucket, _folder_key(key), 1)
        if key and not objects and not prefixes:
            raise FileNotFoundError(f"s3://{bucket}/{key}: there is no object, and nothing below it")
        return _directory(f"{bucket}/{key}" if key else bucket)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or folder; what cannot be found out is an error, not a no."""
        return self._kind(path) is not None

    def isfile(self, path: str) -> bool:
        """Whether there is a file; what cannot be found out is an error, not a no."""
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        """Whether there is a folder and no file; what cannot be found out is an error, not a no."""
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str | None:
        try:
            kind: str = self.info(path)["type"]
        except FileNotFoundError:
            return None
        return kind

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files below a folder, with one listing where the depth is not limited."""
        prefix = kwargs.pop("prefix", "")
        if maxdepth is not None or withdirs:
            found = super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
            start = f"{self._strip_protocol(path)}/{prefix}"
            found = {name: info for name, info in found.items() if not prefix or name.startswith(start)}
        else:
            bucket, key = self._split(path)
            folder = _folder_key(key)
            below = self._client.list_objects(bucket, folder + prefix)
            found = {f"{bucket}/{each.key}": _file(bucket, each) for each in below if each.key != folder}
            if not found and key and not prefix and self.isfile(path):
                found = {f"{bucket}/{key}": self.info(path)}
        return found if detail else sorted(found)

    def modified(self, path: str) -> datetime.datetime:
        """When the object was written, or the newest below a folder, UTC.

        Raises:
            FileNotFoundError: there is nothing.
        """
        found = self.info(path)
        files = [found] if found["type"] == "file" else list(self.find(path, detail=True).values())
        if not files:
            raise FileNotFoundError(f"s3://{found['name']}: there is no file in it")
        modified: datetime.datetime = max(file["LastModified"] for file in files)
        return modified

    created = modified

    def ukey(self, path: str) -> str:
        """What changes when the object does: its ETag."""
        return f"{self.info(path)['ETag']}"

    checksum = ukey

    # -- reading

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> S3FsspecFile:
        if mode == "xb" and self.exists(path):
            raise FileExistsError(path)
        return S3FsspecFile(
            self, path, mode, block_size or "default", autocommit, cache_options=cache_options, **kwargs
        )

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """The bytes of a file from `start` to `end`; negative ones count from its end."""
        return self.cat_ranges([path], [start], [end], on_error="raise")[0]  # type: ignore[no-any-return]

    def cat_ranges(
        self, paths: Any, starts: Any, ends: Any, max_gap: int | None = None, on_error: str = "return", **kwargs: Any
    ) -> list[Any]:
        """The bytes of many ranges, all fetched at once; where one fails, each is tried alone, and tells of itself."""
        starts, ends = (each if isinstance(each, list) else [each] * len(paths) for each in (starts, ends))
        found: list[Any] = [None] * len(paths)
        ranges: dict[str, list[tuple[int, tuple[str, int, int]]]] = {}
        for number, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
            try:
                bucket, wanted = self._range(path, start, end)
                ranges.setdefault(bucket, []).append((number, wanted))
            except Exception as error:
                if on_error != "return":
                    raise
                found[number] = error
        for bucket, several in ranges.items():
            try:
                bodies: list[Any] = list(self._client.read_ranges(bucket, [wanted for _, wanted in several]))
            except Exception:
                bodies = [self._read_alone(bucket, wanted) for _, wanted in several]
            for (number, _), body in zip(several, bodies, strict=True):
                if isinstance(body, Exception) and on_error != "return":
                    raise body
                found[number] = body if isinstance(body, Exception) else bytes(body)
        return found

    def _read_alone(self, bucket: str, wanted: tuple[str, int, int]) -> Any:
        """One range, as far as the file goes, or why it cannot be read."""
        key, start, end = wanted
        try:
            end = min(end, self._client.head_object(bucket, key).size)
            return self._client.read_ranges(bucket, [(key, start, end)])[0] if start < end else b""
        except Exception as error:
            return error

    def _range(self, path: str, start: int | None, end: int | None) -> tuple[str, tuple[str, int, int]]:
        bucket, key = self._split(path)
        if start is None or start < 0 or end is None or end < 0:
            size = self._client.head_object(bucket, key).size
            start, end, _ = slice(start, end).indices(size)
        return bucket, (key, start, max(start, end))

    def get_file(
        self, rpath: str, lpath: Any = None, callback: Callback = DEFAULT_CALLBACK, outfile: Any = None, **kwargs: Any
    ) -> None:
        """Copy one file here, in pieces whose ranges come at once."""
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        found = self.info(rpath)
        if found["type"] == "directory":
            if outfile is not None:
                raise FileNotFoundError(f"s3://{found['name']}: is a folder, not a file")
            os.makedirs(lpath, exist_ok=True)
        elif outfile is not None:
            self._copy_out(rpath, found["size"], outfile, callback)
        else:
            os.makedirs(os.path.dirname(os.path.abspath(lpath)), exist_ok=True)
            with open(lpath, "wb") as file:
                self._copy_out(rpath, found["size"], file, callback)

    def _copy_out(self, path: str, size: int, outfile: Any, callback: Callback) -> None:
        bucket, key = self._split(path)
        callback.set_size(size)
        for start in range(0, size, _PIECE_BYTES):
            end = min(start + _PIECE_BYTES, size)
            outfile.write(self._client.read_ranges(bucket, [(key, start, end)])[0])
            callback.relative_update(end - start)

    # -- writing

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write one file."""
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        with self._files.create_stream(f"s3://{self._strip_protocol(path)}", "wb") as stream:
            stream.write(value)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file; one that is there is emptied, or left as it is without `truncate`."""
        if truncate or not self.exists(path):
            self.pipe_file(path, b"")

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy one file: on the server within a bucket, else through here."""
        (bucket, key), (new_bucket, new_key) = self._split(path1), self._split(path2)
        found = self.info(path1)
        if found["type"] == "directory":
            return
        if bucket == new_bucket:
            self._client.copy_object(bucket, key, new_key)
        else:
            with self._files.create_stream(f"s3://{new_bucket}/{new_key}", "wb") as stream:
                self._copy_out(path1, found["size"], stream, DEFAULT_CALLBACK)

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Does nothing: S3 has no folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Does nothing: S3 has no folders."""

    def rmdir(self, path: str) -> None:
        """Does nothing: a folder goes with the last file in it."""

    # -- deleting

    def rm_file(self, path: str) -> None:
        """Delete one file.

        Raises:
            FileNotFoundError: there is none.
        """
        bucket, key = self._split(path)
        self._client.head_object(bucket, key)
        self._client.delete_objects(bucket, [key])

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files; with `recursive` all below a folder, where a checkpoint's index goes first.

        A shard file that an index elsewhere names stays: see ``s3dcp_checkpoint::remove``.

        Raises:
            FileNotFoundError: there is nothing.
        """
        if not recursive or maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for each in [path] if isinstance(path, str) else path:
            bucket, key = self._split(each)
            kind = self.info(each)["type"]
            self._client.remove(bucket, key)
            if kind == "file":
                self._client.delete_objects(bucket, [key])


class S3FsspecFile(AbstractBufferedFile):  # type: ignore[misc]
    """One file, read by ranges or written in order. What was written is there once it is closed, and not after an
    exception in its ``with`` block."""

    _writer: ObjectWriter | None = None

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, min(end, self.size))  # type: ignore[no-any-return]

    def _initiate_upload(self) -> None:
        bucket, key = self.fs._split(self.path)
        self._writer = ObjectWriter(self.fs._client, bucket, key)
        if self.mode == "ab" and self.fs.exists(self.path):
            self.fs.get_file(self.path, outfile=self._writer)

    def _upload_chunk(self, final: bool = False) -> bool:
        assert self._writer is not None
        self._writer.write(self.buffer.getbuffer())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        """Make the file visible."""
        if self._writer is not None:
            self._writer.close()

    def discard(self) -> None:
        """Drop what was written."""
        if self._writer is not None:
            self._writer.abort()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self.writable():
            self.forced = True  # nothing of the buffer is sent any more
            self.discard()
        self.close()


def _folder_key(key: str) -> str:
    return f"{key}/" if key else ""


def _directory(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(bucket: str, found: _native.ObjectInfo) -> dict[str, Any]:
    time = found.last_modified
    return {
        "name": f"{bucket}/{found.key}",
        "size": found.size,
        "type": "file",
        "ETag": found.etag,
        "LastModified": None if time is None else datetime.datetime.fromtimestamp(time, datetime.timezone.utc),
    }
