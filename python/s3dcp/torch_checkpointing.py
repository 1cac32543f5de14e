"""``torch_checkpointing`` on S3: ``CheckpointManager.Config(storage_config=S3StorageConfig())``.

It writes a checkpoint to a temporary folder, ``<parent>/tmp_<name>``, and renames that when every rank is done. S3
renames nothing. Here a file of the temporary folder goes below ``<parent>/<name>`` at once, under a key that no other
save has, and the rename is the conditional PUT of an index that names the files: before it the checkpoint is not there,
after it all of it is, and of two that save the same one is refused. The index is a ``.metadata`` as those of
`S3StorageWriter`, so that ``s3dcp prune`` and a recursive ``rm`` treat such a checkpoint like any other.

Made for torch_checkpointing 0.1.1, which is before its 1.0 and may change.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import io
import mmap
import os
import re
import secrets
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch_checkpointing.checkpoint_writer import DEFAULT_TEMP_DIR_PREFIX
from torch_checkpointing.storage.base_storage import ReadArgs, Storage, StorageConfig

from . import _native
from ._compat import INDEX_VERSION
from ._load.index import read_index
from ._ranks import world_size
from .client_config import S3ClientConfig
from .errors import ConfigError, NotFound
from .file_system import ObjectReader, S3FileSystem, WriteStream, split_path

__all__ = ["S3Storage", "S3StorageConfig"]

_STAGED = re.compile(r"(?P<file>.+)/0-(?P<id>[0-9a-f]{16})\.distcp")
_INDEX = ".metadata"
_EVERYTHING = 2**63 - 1
# Writes below this are gathered, and what nobody keeps alive is copied in such pieces.
_PIECE_BYTES = 8 * 1024 * 1024
# Reads below this come from blocks that are kept.
_BLOCK_BYTES = 1024 * 1024
_BLOCKS = 8


@dataclasses.dataclass
class S3StorageConfig(StorageConfig):  # type: ignore[misc]
    """Where and how checkpoints are stored; the ``storage_config`` of ``torch_checkpointing``.

    Args:
        region: AWS region of the bucket; None takes it from the environment or profile.
        s3client_config: settings of the S3 client.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        folder: ``s3://bucket/folder`` that checkpoint ids which are no S3 URIs lie below; None refuses those.
        temp_dir_prefix: that of the ``CheckpointWriterConfig``.
        conditional_commit: what to do where a server does not honour conditional writes: ``"warn"``, ``"require"``
            (refuse to commit) or ``"off"`` (do not find out).

    Raises:
        ValueError: an argument cannot work; the message names it.
    """

    region: str | None = None
    s3client_config: S3ClientConfig | None = None
    endpoint_url: str | None = None
    folder: str | None = None
    temp_dir_prefix: str = DEFAULT_TEMP_DIR_PREFIX
    conditional_commit: Literal["warn", "require", "off"] = "warn"

    def __post_init__(self) -> None:
        if self.folder is not None:
            split_path(self.folder, "folder")
        if not self.temp_dir_prefix or "/" in self.temp_dir_prefix:
            raise ValueError(f"temp_dir_prefix={self.temp_dir_prefix!r}: must be the beginning of a folder's name")
        if self.conditional_commit not in ("warn", "require", "off"):
            raise ValueError(f"conditional_commit={self.conditional_commit!r}: must be 'warn', 'require' or 'off'")
        self._files()

    def _files(self) -> S3FileSystem:
        return S3FileSystem(self.region, s3client_config=self.s3client_config, endpoint_url=self.endpoint_url)

    def create_storage(self) -> S3Storage:
        """A storage with these settings."""
        return S3Storage(self)


@dataclasses.dataclass(frozen=True)
class _Place:
    """An object: its key, and where it is a file of a temporary folder, the checkpoint's folder and its name there."""

    bucket: str
    key: str
    folder: str | None = None
    file: str = ""


@dataclasses.dataclass(frozen=True)
class _Found:
    """A file that is there."""

    key: str
    size: int


class S3Storage(Storage):  # type: ignore[misc]
    """Files of checkpoints on S3.

    A path is an ``s3://`` URI, also as a ``Path``, which keeps one slash of it. There are no empty folders. A file of a
    committed checkpoint is not deleted alone, and reads see a plain object of its name first.
    """

    def __init__(self, config: S3StorageConfig) -> None:
        self._config = config
        self._files = config._files()
        self._indexes: dict[tuple[str, str], tuple[str | None, dict[str, _Found]]] = {}

    @property
    def _client(self) -> _native.Client:
        return self._files.client

    @property
    def mmap_fill_workers(self) -> int:
        """Always one, as each read is fetched in as many ranges at once as the client finds useful."""
        return 1

    # -- paths

    def _place(self, path: str | os.PathLike[str]) -> _Place:
        text = os.fspath(path)
        if text.startswith("s3:/"):
            text = f"s3://{text[4:].lstrip('/')}"
        elif self._config.folder is None:
            raise ConfigError(
                f"path={text!r}: must begin with s3://, or folder= of S3StorageConfig must say what it lies below"
            )
        else:
            text = f"{self._config.folder.rstrip('/')}/{text.strip('/')}"
        bucket, key = split_path(text.rstrip("/"))
        segments, prefix = key.split("/"), self._config.temp_dir_prefix
        for number in reversed(range(len(segments))):
            name = segments[number].removeprefix(prefix)
            if name and name != segments[number]:
                folder = "/".join([*segments[:number], name])
                return _Place(bucket, key, folder, "/".join(segments[number + 1 :]))
        return _Place(bucket, key)

    def remap_path(self, path: Path) -> str:
        """`path` as an ``s3://`` URI."""
        place = self._place(path)
        return f"s3://{place.bucket}/{place.key}"

    # -- finding

    def _index(self, bucket: str, folder: str) -> dict[str, _Found]:
        """The files of the checkpoint committed in `folder`, by name; none where there is no checkpoint."""
        key = _native.join_key(folder, _INDEX)
        try:
            etag = self._client.head_object(bucket, key).etag
            known = self._indexes.get((bucket, folder))
            if known is None or known[0] is None or known[0] != etag:
                index = self._client.get_index(bucket, key)
                known = index.etag, _files_of(index, bucket, folder)
                self._indexes[bucket, folder] = known
        except NotFound:
            self._indexes.pop((bucket, folder), None)
            return {}
        return known[1]

    def _committed(self, place: _Place) -> tuple[str, dict[str, _Found]] | None:
        """The name below its checkpoint's folder that `place` has, and the checkpoint's files; None outside of any."""
        segments = place.key.split("/")
        for count in range(len(segments), 0, -1):
            if files := self._index(place.bucket, "/".join(segments[:count])):
                return "/".join(segments[count:]), files
        return None

    def _staged(self, place: _Place) -> dict[str, _Found]:
        """The files of a temporary folder or below: the latest of each name, and none that is committed."""
        if place.folder is None:
            return {}
        committed = {found.key for found in self._index(place.bucket, place.folder).values()}
        return self._latest(place.bucket, place.folder, place.file, committed)

    def _latest(self, bucket: str, folder: str, below: str, without: Iterable[str] = ()) -> dict[str, _Found]:
        start = _native.join_key(folder, "")
        times: dict[str, tuple[float, str]] = {}
        files = {}
        listed = self._client.list_objects(bucket, f"{start}{below}/" if below else start)
        for each in listed:
            match = _STAGED.fullmatch(each.key.removeprefix(start))
            if match is None or each.key in without:
                continue
            written = each.last_modified or 0.0, match["id"]
            if written >= times.get(match["file"], (0.0, "")):
                times[match["file"]] = written
                files[match["file"]] = _Found(each.key, each.size)
        return files

    def _find(self, path: str | os.PathLike[str]) -> tuple[str, _Found]:
        """Bucket and object of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        place = self._place(path)
        if place.folder is None or not place.file:
            try:
                return place.bucket, _Found(place.key, self._client.head_object(place.bucket, place.key).size)
            except NotFound as error:
                if error.code == "NoSuchBucket":
                    raise
        committed = self._committed(place)
        if committed is not None and committed[0] in committed[1]:
            return place.bucket, committed[1][committed[0]]
        if place.file and (found := self._staged(place).get(place.file)):
            return place.bucket, found
        raise FileNotFoundError(errno.ENOENT, "there is no such file", self.remap_path(Path(path)))

    def _isfile(self, path: Path) -> bool:
        try:
            self._find(path)
        except FileNotFoundError:
            return False
        return True

    def exists(self, path: Path) -> bool:
        """Whether there is a file or folder; what cannot be found out is an error, not a no."""
        return self.isdir(path) or self._isfile(path)

    def isdir(self, path: Path) -> bool:
        """Whether there is a folder with something in it."""
        place = self._place(path)
        committed = self._committed(place)
        if committed is not None and _below(committed[1], committed[0]):
            return True
        return bool(_below(self._staged(place), place.file)) or self._holds(place.bucket, place.key)

    def _holds(self, bucket: str, folder: str) -> bool:
        """Whether more lies below a folder than files of saves that were not committed."""
        objects, prefixes = self._client.list_folder(bucket, _native.join_key(folder, ""), _EVERYTHING)
        return any(not _is_staged(each.key) for each in objects) or any(
            self._holds(bucket, prefix.rstrip("/")) for prefix in prefixes
        )

    def getsize(self, path: Path) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._find(path)[1].size

    def ls(self, path: Path) -> list[str]:
        """Names of what lies directly in a folder.

        Raises:
            FileNotFoundError: there is nothing.
            NotADirectoryError: it is a file.
        """
        place = self._place(path)
        committed = self._committed(place)
        names = set(_below(committed[1], committed[0])) if committed is not None else set()
        names.update(_below(self._staged(place), place.file))
        objects, prefixes = self._client.list_folder(place.bucket, _native.join_key(place.key, ""), _EVERYTHING)
        names.update(_name(each.key) for each in objects if not _is_staged(each.key) and _name(each.key) != _INDEX)
        for prefix in prefixes:
            folder = prefix.rstrip("/")
            if self._holds(place.bucket, folder):
                names.add(_name(folder))
            elif committed is None and self._latest(place.bucket, folder, ""):
                names.add(self._config.temp_dir_prefix + _name(folder))
        if not names:
            where = self.remap_path(path)
            if self._isfile(path):
                raise NotADirectoryError(errno.ENOTDIR, "is a file", where)
            raise FileNotFoundError(errno.ENOENT, "there is nothing", where)
        return sorted(names)

    # -- reading

    def stream_read(self, path: Path, read_args: ReadArgs | None = None) -> Any:
        """A seekable stream over a file, whose ``readinto`` has the bytes written where they belong.

        ``direct_io`` and ``timeout_us`` have no meaning here: `S3ClientConfig` has time limits.

        Raises:
            FileNotFoundError: there is none.
            OSError: it has not the ``known_size_bytes``.
        """
        bucket, found = self._find(path)
        args = read_args or ReadArgs()
        if args.known_size_bytes not in (None, found.size):
            raise OSError(
                f"{self.remap_path(path)}: has {found.size} bytes, not known_size_bytes={args.known_size_bytes}"
            )
        if not args.pre_read_full_file:
            return _ReadStream(self._client, bucket, found)
        # BytesIO takes these bytes for its own, and nobody else has them.
        stream = io.BytesIO(bytes(found.size))
        with stream.getbuffer() as memory:
            _read_into(self._client, bucket, found.key, 0, memory)
        return stream

    def read(self, path: Path, read_args: ReadArgs | None = None) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        stream: io.BytesIO = self.stream_read(path)
        return stream.getvalue()

    def mmap_fill(self, expected: int, path: Path, workers: int = 1, chunk_bytes: int = 0) -> mmap.mmap:
        """New memory with the file in it, fetched straight there; the hook ``mmap_fill`` of ``torch_checkpointing``.

        ``CheckpointReader(..., mmap_fill_factory=lambda storage: storage.mmap_fill)`` uses it.

        Args:
            expected: bytes of the file.
            path: the file.
            workers, chunk_bytes: without meaning here: the client chooses its ranges.

        Raises:
            FileNotFoundError: there is no file.
            OSError: it has other than `expected` bytes.
        """
        bucket, found = self._find(path)
        if found.size != expected:
            raise OSError(f"{self.remap_path(path)}: has {found.size} bytes, not expected={expected}")
        filled = mmap.mmap(-1, expected)
        with memoryview(filled) as memory:
            _read_into(self._client, bucket, found.key, 0, memory)
        return filled

    # -- writing

    def stream_write(self, path: Path) -> _WriteStream:
        """A stream whose bytes are the file once it is closed, and not after an exception in its ``with`` block."""
        return self.get_write_stream(path, None)

    def get_write_stream(self, path: Path, data: object) -> _WriteStream:
        """The same for ``torch.save`` of `data`: its tensors in host memory go up from where they are.

        They must not be changed before the stream is closed.
        """
        place = self._place(path)
        if place.folder is None or not place.file:
            return _WriteStream(None, self._client.object_writer(place.bucket, place.key), _storages(data))
        # The time comes first: of two files of one name the later one counts.
        save_id = f"{time.time_ns() // 1_000_000:011x}{secrets.randbits(20):05x}"
        save = _native.Save(self._client, place.bucket, place.folder, None, None, None, save_id)
        save.divide_budget(world_size(), 1)
        return _WriteStream(save, save.shard(f"{place.file}/", 0, 0), _storages(data))

    def write(self, path: Path, data: Any) -> None:
        """Write one file, straight from `data`."""
        with self.stream_write(path) as stream:
            stream.write_in_place(data)

    def mkdir(self, path: Path, recursive: bool = True) -> None:
        """Does nothing: S3 has no folders."""

    # -- renaming and deleting

    def rename(
        self, src_path: Path, dst_path: Path, is_directory: bool = False, background_cleanup: bool = False
    ) -> None:
        """Commit a temporary folder by one conditional write; anything else is copied on the server, then deleted.

        Args:
            src_path: a file or folder.
            dst_path: its new path, of the same bucket.
            is_directory: without meaning here: S3 says which it is.
            background_cleanup: without meaning here: nothing of a checkpoint is moved.

        Raises:
            FileExistsError: something is at `dst_path`, or a checkpoint was committed there meanwhile.
            FileNotFoundError: there is nothing at `src_path`.
            ValueError: the paths are in different buckets, or the temporary folder is not that of `dst_path`.
        """
        source, target = self._place(src_path), self._place(dst_path)
        if source.bucket != target.bucket:
            raise ValueError(f"dst_path={str(dst_path)!r}: must be in bucket {source.bucket!r}, as src_path is")
        if source.folder is not None and not source.file:
            if source.folder != target.key:
                raise ValueError(
                    f"temp_dir_prefix={self._config.temp_dir_prefix!r}: must be that of CheckpointWriterConfig, by "
                    f"which {_name(source.key)} becomes {_name(target.key)}"
                )
            self._commit(source.bucket, target.key)
        elif self.isdir(src_path):
            if self.exists(dst_path):
                raise FileExistsError(errno.ENOTEMPTY, "is occupied", self.remap_path(dst_path))
            self._move_folder(Path(src_path), Path(dst_path))
        else:
            if self.isdir(dst_path):
                raise IsADirectoryError(errno.EISDIR, "is a folder", self.remap_path(dst_path))
            self._move_file(src_path, dst_path)

    def _move_folder(self, source: Path, target: Path) -> None:
        for name in self.ls(source):
            if self.isdir(source / name):
                self._move_folder(source / name, target / name)
            else:
                self._move_file(source / name, target / name)

    def _move_file(self, source: Path, target: Path) -> None:
        bucket, found = self._find(source)
        place = self._place(target)
        if place.file:
            raise ValueError(f"dst_path={str(target)!r}: nothing is moved into a temporary folder")
        self._client.copy_object(bucket, found.key, place.key)
        self.delete(source)

    def _commit(self, bucket: str, folder: str) -> None:
        listed = self._client.list_objects(bucket, _native.join_key(folder, ""))
        if any(not _is_staged(each.key) for each in listed) or self._is_object(bucket, folder):
            raise FileExistsError(errno.ENOTEMPTY, "is occupied", f"s3://{bucket}/{folder}")
        files = self._latest(bucket, folder, "")
        if not files:
            raise FileNotFoundError(errno.ENOENT, "no file was written for this checkpoint", f"s3://{bucket}/{folder}")
        save_id = secrets.token_hex(8)
        save = _native.Save(self._client, bucket, folder, None, None, None, save_id)
        save.prepare(False, self._config.conditional_commit)
        start = len(_native.join_key(folder, ""))
        metadata = Metadata(
            state_dict_metadata={name: BytesStorageMetadata() for name in files},
            storage_data={
                MetadataIndex(name): _StorageInfo(found.key[start:], 0, found.size) for name, found in files.items()
            },
            storage_meta=StorageMeta(checkpoint_id=f"s3://{bucket}/{folder}", save_id=save_id),
        )
        metadata.version = INDEX_VERSION
        for warning in save.commit(_native.write_index(metadata, save_id)):
            warnings.warn(warning, stacklevel=3)

    def _is_object(self, bucket: str, key: str) -> bool:
        try:
            self._client.head_object(bucket, key)
        except NotFound:
            return False
        return True

    def delete(self, path: Path) -> None:
        """Delete a file.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it belongs to a committed checkpoint; `rmdir` deletes that.
        """
        place = self._place(path)
        bucket, found = self._find(path)
        committed = self._committed(place)
        if committed is not None and found in committed[1].values():
            raise PermissionError(
                errno.EPERM, "belongs to a checkpoint that is there, which rmdir deletes", self.remap_path(path)
            )
        self._client.delete_objects(bucket, [found.key])
        while place.file and (older := self._staged(place).get(place.file)):
            self._client.delete_objects(bucket, [older.key])

    def rmdir(self, path: Path) -> None:
        """Delete a folder with all that is in it; of a checkpoint the index goes first, of a temporary one its files.

        Raises:
            FileNotFoundError: there is none.
        """
        place = self._place(path)
        if not self.isdir(path):
            raise FileNotFoundError(errno.ENOENT, "there is no such folder", self.remap_path(path))
        while staged := self._staged(place):
            self._client.delete_objects(place.bucket, [found.key for found in staged.values()])
        if self._holds(place.bucket, place.key):
            self._client.remove(place.bucket, place.key)


class _ReadStream(ObjectReader):
    """Random access to one object. Large reads go straight into the caller's memory, small ones out of kept blocks."""

    def __init__(self, client: _native.Client, bucket: str, found: _Found) -> None:
        super().__init__(client, bucket, found.key, found.size)
        self._blocks: OrderedDict[int, bytearray] = OrderedDict()

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer).cast("B") as view:
            count = max(0, min(len(view), self._size - self._position))
            if count >= _BLOCK_BYTES:
                with view[:count] as target:
                    _read_into(self._client, self._bucket, self._key, self._position, target)
            else:
                done = 0
                while done < count:
                    number, start = divmod(self._position + done, _BLOCK_BYTES)
                    piece = self._block(number)[start : start + count - done]
                    view[done : done + len(piece)] = piece
                    done += len(piece)
        self._position += count
        return count

    def readall(self) -> bytes:
        """All that is left, asked for at once."""
        stream = io.BytesIO(bytes(max(0, self._size - self._position)))
        with stream.getbuffer() as memory:
            _read_into(self._client, self._bucket, self._key, self._position, memory)
        self._position = max(self._size, self._position)
        return stream.getvalue()

    def _block(self, number: int) -> bytearray:
        block = self._blocks.pop(number, None)
        if block is None:
            start = number * _BLOCK_BYTES
            ranges = [(self._key, start, min(start + _BLOCK_BYTES, self._size))]
            block = self._client.read_ranges(self._bucket, ranges)[0]
        self._blocks[number] = block
        if len(self._blocks) > _BLOCKS:
            self._blocks.popitem(last=False)
        return block


class _WriteStream(WriteStream):
    """One object, whose tensors go up from where they are.

    Args:
        save: what the file belongs to; None for an object of its own.
        shard: its writer.
        storages: memory that stays as it is until the stream is closed, by address.
    """

    def __init__(
        self, save: _native.Save | None, shard: _native.ShardWriter, storages: dict[int, torch.UntypedStorage]
    ) -> None:
        self._save, self._shard, self._storages = save, shard, storages
        self._gathered = bytearray()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if len(self._gathered) + len(view) < _PIECE_BYTES and not self._owner(view, data):
            self._gathered += view
        else:
            self._send_gathered()
            self._send(view, self._owner(view, data))
        self._position += len(view)
        return len(view)

    def write_in_place(self, data: Any) -> None:
        """Write memory that stays as it is until the stream is closed."""
        view = memoryview(data).cast("B")
        self._send_gathered()
        self._send(view, data)
        self._position += len(view)

    def _owner(self, view: memoryview, data: Any) -> Any:
        """What keeps the memory of a view as it is; None where nobody is known to."""
        if len(view) < _BLOCK_BYTES:
            return None
        if isinstance(data, bytes):
            return data
        storage = self._storages.get(_address(view))
        return storage if storage is not None and len(view) <= storage.nbytes() else None

    def _send(self, view: memoryview, owner: Any) -> None:
        if not len(view):
            return
        if owner is not None:
            self._shard.raw_memory(_address(view), len(view), owner)
            return
        for start in range(0, len(view), _PIECE_BYTES):
            piece = numpy.array(view[start : start + _PIECE_BYTES], dtype=numpy.uint8)
            self._shard.raw_memory(piece.ctypes.data, piece.nbytes, piece)

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        if gathered:
            self._shard.raw_memory(_address(memoryview(gathered)), len(gathered), gathered)

    def _finish(self) -> None:
        self._send_gathered()
        self._shard.start_finishing()
        self._shard.wait()

    def _give_up(self) -> None:
        self._shard.abort()
        if self._save is not None:
            self._save.discard([])


def _files_of(index: _native.StoredIndex, bucket: str, folder: str) -> dict[str, _Found]:
    """The files that the index of a checkpoint names; none where it is not one of this storage."""
    metadata = read_index(index, f"s3://{bucket}/{_native.join_key(folder, _INDEX)}", frozenset())
    layout = _native.Layout(folder)
    files = {}
    for item, info in metadata.storage_data.items():
        match = _STAGED.fullmatch(info.relative_path)
        if match is not None and match["file"] == item.fqn:
            files[item.fqn] = _Found(layout.resolve(info.relative_path), info.length)
    return files


def _read_into(client: _native.Client, bucket: str, key: str, start: int, memory: memoryview) -> None:
    """Fetch the bytes of an object from `start` on straight into `memory`, until it is full."""
    if not len(memory):
        return
    folder, _, name = key.rpartition("/")
    index = MetadataIndex(name)
    # An object of an index is any range of any file.
    metadata = Metadata({name: BytesStorageMetadata()}, storage_data={index: _StorageInfo(name, start, len(memory))})
    nothing = torch.Size((0,))
    item = ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)
    target = (ctypes.c_char * len(memory)).from_buffer(memory)
    load = client.load(bucket, folder, False, world_size())
    part = load.whole(load.find(metadata, [item], {}).items[0])
    with load:
        load.start([(part, ctypes.addressof(target))], target).wait()


def _storages(data: object) -> dict[int, torch.UntypedStorage]:
    """The host memory of the tensors in `data`, by address."""
    storages = {}
    for tensor in _tensors(data):
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.layout is torch.strided and tensor.is_cpu:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage
    return storages


def _tensors(data: object) -> Iterator[torch.Tensor]:
    if isinstance(data, torch.Tensor):
        yield data
    elif isinstance(data, dict):
        for each in data.values():
            yield from _tensors(each)
    elif isinstance(data, (list, tuple, set)):
        for each in data:
            yield from _tensors(each)


def _address(view: memoryview) -> int:
    address: int = numpy.frombuffer(view, dtype=numpy.uint8).ctypes.data
    return address


def _is_staged(key: str) -> bool:
    return _STAGED.fullmatch(key) is not None


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _below(files: Iterable[str], folder: str) -> list[str]:
    """The first segments of what lies below a folder."""
    start = f"{folder}/" if folder else ""
    return [name.removeprefix(start).partition("/")[0] for name in files if name.startswith(start)]
