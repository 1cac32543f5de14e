"""Folders that a framework writes and reads as local files, and that live on S3.

The framework works in a staging directory. What it wrote goes up straight from the mapped files, one file of them last:
a folder on S3 without that file is one of a save that was cut short. Failures travel between ranks as values, so that
whoever fails does not leave the others waiting.
"""

from __future__ import annotations

import fcntl
import functools
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from . import _native
from .checkpoint_id import storage_for
from .errors import NotFound
from .file_system import split_path

_PIECE_BYTES = 64 * 1024 * 1024


class RemoteFolder:
    """A folder on S3, with the settings of `s3dcp.configure`.

    Args:
        uri: an S3 URI.
        marker: the file that goes up last, and without which the folder is not complete; None where there is none.

    Raises:
        ConfigError: `uri` is none.
    """

    def __init__(self, uri: str, marker: str | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.marker = marker
        self.bucket, self.key = split_path(self.uri)
        self.client: _native.Client = storage_for(self.uri, reader=True).fs.client

    def below(self, name: str) -> RemoteFolder:
        """The folder `name` in this one, of the same kind."""
        return RemoteFolder(f"{self.uri}/{name}", self.marker)

    def key_of(self, name: str) -> str:
        """The key of a file."""
        return _native.join_key(self.key, name)

    def folders(self) -> list[str]:
        """The names of the folders directly in it."""
        _, prefixes = self.client.list_folder(self.bucket, self.key_of(""), 2**63 - 1)
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes]

    def is_complete(self) -> bool:
        """Whether its marker is there."""
        assert self.marker is not None
        try:
            self.client.head_object(self.bucket, self.key_of(self.marker))
        except NotFound as error:
            if error.code == "NoSuchBucket":
                raise
            return False
        return True

    def require_complete(self) -> None:
        """Refuse a folder without its marker.

        Raises:
            NotFound: it has none.
        """
        if not self.is_complete():
            missing = f"no complete checkpoint at {self.uri}: it has no {self.marker}, which a save writes last"
            raise NotFound(missing, bucket=self.bucket, key=self.key_of(self.marker or ""))

    def upload(self, local: Path, names: Iterable[str]) -> None:
        """Put files of the local folder `local`, all at once; none is left half there."""
        writers: list[_native.ShardWriter] = []
        try:
            for name in names:
                writer = self.client.object_writer(self.bucket, self.key_of(name))
                writers.append(writer)
                file = local / name
                size = file.stat().st_size
                if size:
                    memory = torch.from_file(os.fspath(file), shared=False, size=size, dtype=torch.uint8)
                    writer.raw_memory(memory.data_ptr(), size, memory)
                else:
                    writer.raw(b"")
                writer.start_finishing()
            for writer in writers:
                writer.wait()
        except BaseException:
            for writer in writers:
                writer.abort()
            raise

    def unmark(self) -> None:
        """Make it incomplete, before any of its files changes."""
        assert self.marker is not None
        self.client.delete_objects(self.bucket, [self.key_of(self.marker)])

    def download(self, local: Path) -> None:
        """Fetch all files into the local folder `local`.

        Raises:
            ValueError: a key would be a file outside of it.
        """
        start = self.key_of("")
        for found in self.client.list_objects(self.bucket, start):
            name = found.key.removeprefix(start)
            if name.endswith("/") or not name:
                continue  # how some tools mark a folder
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or "/".join(parts) != name or "\0" in name:
                raise ValueError(f"s3://{self.bucket}/{found.key}: cannot be a file in a local folder")
            file = local / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                for first in range(0, found.size, _PIECE_BYTES):
                    end = min(first + _PIECE_BYTES, found.size)
                    stream.write(self.client.read_ranges(self.bucket, [(found.key, first, end)])[0])

    def delete(self) -> None:
        """Delete it: its marker first, and an index before the shard files that it names."""
        if self.marker is not None:
            self.unmark()
        self.client.remove(self.bucket, self.key)


def files_in(local: Path) -> list[str]:
    """All files below a local folder, as names in it."""
    return sorted(file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file())


def empty(local: Path) -> None:
    """Delete what is in a local folder, and leave the folder."""
    for entry in local.iterdir() if local.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


def push(folder: RemoteFolder, local: Path, skip: Iterable[str] = ()) -> None:
    """Make the local folder `local` of every node one on S3, where it is complete or not there; all ranks call it.

    Args:
        folder: where it goes; its marker is a file that rank 0 has.
        local: the same path on all ranks of a node.
        skip: files to leave out.
    """
    left_out = {*skip, folder.marker}
    # Which files there are is known once every rank has come here, for each writes its own.
    together(lambda: folder.unmark() if is_first() else None)
    node_names = [name for name in files_in(local) if name not in left_out] if is_first_of_node() else []
    together(lambda: folder.upload(local, node_names))
    together(lambda: folder.upload(local, [folder.marker]) if is_first() and folder.marker else None)


def push_model(folder: RemoteFolder, local: Path) -> None:
    """Put what this process wrote of a model, indexes of its files last."""
    names = files_in(local)
    last = [name for name in names if name.endswith(".index.json")]
    folder.upload(local, [name for name in names if name not in last])
    folder.upload(local, last)


# -- ranks, as accelerate knows them


def _state() -> Any:
    from accelerate import PartialState

    return PartialState()


def is_first() -> bool:
    """Whether this is rank 0."""
    return bool(_state().is_main_process)


def is_first_of_node() -> bool:
    """Whether this rank sees to the files of its node."""
    return bool(_state().is_local_main_process)


def together(step: Callable[[], object]) -> None:
    """Do `step` on every rank, and go on when all have; the failure of one is raised on all.

    Raises:
        Exception: what failed on the first rank on which something did.
    """
    from accelerate.utils import gather_object

    failure: Exception | None = None
    try:
        step()
    except Exception as error:
        failure = error
    for each in gather_object([failure]):
        if each is not None:
            raise failure or each


def told_by_first(step: Callable[[], Any]) -> Any:
    """What `step` gives on rank 0, on all ranks.

    Raises:
        Exception: what failed there.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = step()
        except Exception as error:
            found[1] = error
    found = broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def extend(cls: type, name: str, ours: Callable[..., Any]) -> None:
    """Have `ours` answer for a method of a framework, whose own it is given as its first argument."""
    theirs = getattr(cls, name)

    @functools.wraps(theirs)
    def method(*args: Any, **kwargs: Any) -> Any:
        return ours(theirs, *args, **kwargs)

    setattr(cls, name, method)


# -- staging directories


def new_directory() -> Path:
    """A staging directory in the temporary directory, the same on all ranks of a node; all ranks call it.

    Those of processes that were killed are deleted.
    """
    token = told_by_first(lambda: secrets.token_hex(8))
    directory = Path(tempfile.gettempdir()) / f"s3dcp-{token}"

    def make() -> None:
        if is_first_of_node():
            _delete_abandoned()
            _locks[directory] = _lock(directory)
            directory.mkdir(mode=0o700)

    together(make)
    return directory


def remove_directory(directory: Path) -> None:
    """Delete a staging directory that this process made."""
    shutil.rmtree(directory, ignore_errors=True)
    lock = _locks.pop(directory, None)
    if lock is not None:
        _lock_file(directory).unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def directory() -> Iterator[Path]:
    """A staging directory for a while; all ranks enter and leave."""
    made = new_directory()
    try:
        yield made
    finally:
        if is_first_of_node():
            remove_directory(made)


# The open lock of each directory of this process: who can lock it knows that its process is no more.
_locks: dict[Path, int] = {}


def _lock_file(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def _lock(directory: Path) -> int:
    lock = os.open(_lock_file(directory), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _delete_abandoned() -> None:
    for file in Path(tempfile.gettempdir()).glob("s3dcp-*.lock"):
        with suppress(OSError):  # of somebody else, in use, or just gone
            if file.stat().st_uid != os.getuid():
                continue
            lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory = file.with_suffix("")
                if directory.is_dir() or file.stat().st_mtime < time.time() - 60:
                    shutil.rmtree(directory, ignore_errors=True)
                    file.unlink(missing_ok=True)
            finally:
                os.close(lock)
