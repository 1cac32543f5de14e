"""A folder of safetensors files on S3: which files are its, and what their headers say.

A file is believed no more than its size allows: a header is bounded before it is read, and every tensor's bytes must
lie in its file and be as many as dtype and shape need.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import torch

from .. import _native
from .._dtypes import SAFETENSORS_NAMES
from .._safetensors import SAVED_OFFSETS_KEY, SHARDING_KEY
from ..errors import Corrupt, NotFound, shown
from ..file_system import split_path

# Names of Hugging Face's and of torch's, which are private there and were others in older releases.
INDEX_NAME = "model.safetensors.index.json"
SUFFIX = ".safetensors"
SHARDED_NAME = "sharded"
SAVE_ID_KEY = "s3dcp.save_id"
"""In a file's metadata: which save wrote it."""

OWN_NAMES = re.compile(r"(shard-\d{5,}-)?model-\d{5,}-of-\d{5,}(-\d+)?\.safetensors")
"""The files that torch's writer and ours make."""

_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}
_FIRST_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 100_000_000  # as of the format's own library


@dataclass
class StoredTensor:
    """One tensor in a file, or one chunk of one: `offsets` is where it begins in the whole."""

    name: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    start: int
    nbytes: int


class Folder:
    """The safetensors files directly in the folder `path`.

    Args:
        client: the native client.
        path: an S3 URI.

    Raises:
        ConfigError: `path` is none.
    """

    def __init__(self, client: _native.Client, path: str) -> None:
        self.client = client
        self.path = path
        self.bucket, self.key = split_path(path)

    def key_of(self, name: str) -> str:
        """The key of the file called `name`."""
        return _native.join_key(self.key, name)

    def sizes(self) -> dict[str, int]:
        """The size of each safetensors file, by name."""
        objects, _ = self.client.list_folder(self.bucket, self.key_of(""), 2**63 - 1)
        names = {found.key.rpartition("/")[2]: found.size for found in objects}
        return {name: size for name, size in names.items() if name.endswith(SUFFIX)}

    def weight_map(self) -> dict[str, str] | None:
        """The file of each tensor by name, as the folder's index says; None where there is no index.

        Raises:
            Corrupt: the index is none.
        """
        try:
            body, _ = self.client.get_object(self.bucket, self.key_of(INDEX_NAME))
        except NotFound as error:
            if error.code == "NoSuchBucket":
                raise
            return None
        try:
            found = json.loads(body)["weight_map"]
            is_map = all(isinstance(file, str) and "/" not in file for file in found.values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            is_map = False
        if not is_map:
            raise Corrupt(f"{self.path}/{INDEX_NAME}: is no index of safetensors files", bucket=self.bucket)
        return dict(found)

    def tensors(self) -> list[StoredTensor]:
        """All that lies in the folder: in the files that the index names, or in all where there is none.

        Raises:
            NotFound: there are no such files, or one that the index names is not there.
            Corrupt: a file is none, or files are of several saves.
        """
        sizes = self.sizes()
        weights = self.weight_map()
        names = sorted(sizes) if weights is None else sorted(set(weights.values()))
        if not names:
            raise NotFound(f"no safetensors files at {self.path}", bucket=self.bucket, key=self.key)
        for name in names:
            if name not in sizes:
                missing = f"{self.path} is incomplete: {INDEX_NAME} names {shown(name)}, which does not exist"
                raise NotFound(missing, bucket=self.bucket, key=self.key_of(name))
        found: list[StoredTensor] = []
        saves: dict[str | None, str] = {}
        for name, (header, data_start) in self._headers({name: sizes[name] for name in names}).items():
            tensors, save_id = _parse(header, f"s3://{self.bucket}/{self.key_of(name)}", name, data_start, sizes[name])
            saves.setdefault(save_id, name)
            found += tensors
        if len(saves) > 1 and weights is None:
            first, second, *_ = saves.values()
            raise Corrupt(
                f"{self.path} holds files of several saves, of which {shown(first)} and {shown(second)} are two: a "
                "save over another was cut short, or is under way",
                bucket=self.bucket,
            )
        return found

    def _headers(self, sizes: dict[str, int]) -> dict[str, tuple[dict[str, Any], int]]:
        """The header of each file, and where its values begin; asked for at once."""
        wanted = [(self.key_of(name), 0, min(size, _FIRST_BYTES)) for name, size in sizes.items()]
        for (name, size), (_, _, end) in zip(sizes.items(), wanted, strict=True):
            if end < 8:
                raise self._corrupt(name, f"has {size} bytes, too few for a safetensors file")
        firsts = dict(zip(sizes, self.client.read_ranges(self.bucket, wanted), strict=True))
        ends = {}
        for name, first in firsts.items():
            length = int.from_bytes(first[:8], "little")
            ends[name] = 8 + length
            if length > _MAX_HEADER_BYTES or ends[name] > sizes[name]:
                raise self._corrupt(name, f"has no header of a safetensors file: it would have {length} bytes")
        longer = [name for name, end in ends.items() if end > len(firsts[name])]
        rest = [(self.key_of(name), len(firsts[name]), ends[name]) for name in longer]
        for name, more in zip(longer, self.client.read_ranges(self.bucket, rest) if rest else [], strict=True):
            firsts[name] += more
        headers = {}
        for name, first in firsts.items():
            try:
                header = json.loads(bytes(first[8 : ends[name]]))
            except (ValueError, RecursionError) as error:
                raise self._corrupt(name, f"has a damaged header: {error}") from error
            if not isinstance(header, dict):
                raise self._corrupt(name, "has a header that is no JSON object")
            headers[name] = header, ends[name]
        return headers

    def _corrupt(self, name: str, what: str) -> Corrupt:
        key = self.key_of(name)
        return Corrupt(f"s3://{self.bucket}/{key} {what}", bucket=self.bucket, key=key)


def file_name(number: int, highest: int, rank: int | None = None) -> str:
    """The name of file `number` of `highest`; of a rank's shards, who is counted from 1 on, where there is one."""
    shard = "" if rank is None else f"shard-{rank:05}-"
    return f"{shard}model-{number:05}-of-{highest:05}{SUFFIX}"


def _parse(
    header: dict[str, Any], where: str, file: str, data_start: int, size: int
) -> tuple[list[StoredTensor], str | None]:
    """The tensors of a file, and the save that wrote it where it says so."""
    metadata = header.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    try:
        sharding = json.loads(metadata.get(SHARDING_KEY, "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise Corrupt(f"{where}: its {SHARDING_KEY} is damaged: {error}") from error
    tensors = []
    for name, entry in header.items():
        try:
            dtype = _DTYPES[entry["dtype"]]
            shape = _numbers(entry["shape"])
            start, end = _numbers(entry["data_offsets"])
            offsets = _numbers(sharding[name][SAVED_OFFSETS_KEY]) if name in sharding else (0,) * len(shape)
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise Corrupt(f"{where}: its header does not describe the tensor {shown(name)}: {what}") from error
        nbytes = math.prod(shape) * dtype.itemsize
        if end - start != nbytes or data_start + end > size or len(offsets) != len(shape):
            raise Corrupt(f"{where}: the tensor {shown(name)} is not where its header says")
        tensors.append(StoredTensor(name, file, dtype, shape, offsets, data_start + start, nbytes))
    return tensors, metadata.get(SAVE_ID_KEY)


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**62 for value in values):
        raise ValueError(f"{values!r:.80} are no sizes")
    return tuple(values)
