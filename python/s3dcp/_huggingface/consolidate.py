"""Whole tensors out of sharded safetensors files, without a disk: ranges of shards become the next bytes of a file.

A tensor is taken a block of rows at a time, so that memory is bounded by blocks and not by the largest tensor. The
index of the new files goes last: without it nobody takes them for a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from .._compat import ReaderTransforms
from .._load.rank_load import RankLoad
from .._ranks import this_rank, together, world_size
from .._safetensors import file_header
from ..client_config import S3ClientConfig
from ..errors import shown
from ..file_system import ObjectWriter, S3FileSystem
from .folder import INDEX_NAME, OWN_NAMES, Folder, file_name
from .reader import index_of

__all__ = ["consolidate_safetensors_files", "consolidate_safetensors_files_on_every_rank"]

BLOCK_BYTES = 64 * 1024 * 1024


def consolidate_safetensors_files(
    input_dir: str,
    output_dir: str,
    fqn_to_index_mapping: dict[str, int],
    num_threads: int = 1,
    *,
    region: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    endpoint_url: str | None = None,
) -> None:
    """Make whole tensors in `output_dir` of the shards in `input_dir`; torch's function of this name, on S3.

    Args:
        input_dir: S3 URI of a folder that a distributed save made.
        output_dir: S3 URI of the folder for ``model-….safetensors`` and ``model.safetensors.index.json``.
        fqn_to_index_mapping: the number of the file for each tensor, from 1 on.
        num_threads: files that are made at a time.
        region: AWS region of the buckets; None takes it from the environment or profile.
        s3client_config: settings of the S3 client.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.

    Raises:
        ValueError: an argument cannot work; the message names it.
        NotFound: there are no shards.
        Corrupt: shards are damaged, of several saves, or miss parts of a tensor.
    """
    client = S3FileSystem(region, s3client_config=s3client_config, endpoint_url=endpoint_url).client
    job = _Job(Folder(client, input_dir), Folder(client, output_dir), fqn_to_index_mapping)
    job.begin()
    job.write(job.files, num_threads)
    job.commit()


def consolidate_safetensors_files_on_every_rank(
    input_dir: str,
    output_dir: str,
    fqn_to_index_mapping: dict[str, int],
    num_threads: int = 1,
    process_group: Any = None,
    *,
    region: str | None = None,
    s3client_config: S3ClientConfig | None = None,
    endpoint_url: str | None = None,
) -> None:
    """The same with the files spread over the ranks of `process_group`, every one of which calls it.

    A failure is raised on all ranks, and leaves no index.

    Args:
        input_dir, output_dir, fqn_to_index_mapping, num_threads: as for `consolidate_safetensors_files`.
        process_group: None for the default one.
        region, s3client_config, endpoint_url: as for `consolidate_safetensors_files`.
    """
    client = S3FileSystem(region, s3client_config=s3client_config, endpoint_url=endpoint_url).client
    rank, ranks = this_rank(process_group), world_size(process_group)
    job = together(
        lambda: _Job(Folder(client, input_dir), Folder(client, output_dir), fqn_to_index_mapping), process_group
    )
    mine = [file for number, file in enumerate(job.files) if number % ranks == rank]
    together(lambda: job.begin() if rank == 0 else None, process_group)
    together(lambda: job.write(mine, num_threads), process_group)
    together(lambda: job.commit() if rank == 0 else None, process_group)


class _Job:
    """One consolidation.

    Attributes:
        files: the names of the new files.
    """

    def __init__(self, source: Folder, target: Folder, mapping: dict[str, int]) -> None:
        if (source.bucket, source.key) == (target.bucket, target.key):
            raise ValueError(f"output_dir={target.path!r}: must be another folder than input_dir")
        self._source, self._target = source, target
        self._metadata: Metadata = index_of(source.tensors())
        contents = self._metadata.state_dict_metadata
        if not mapping or not all(type(number) is int and number >= 1 for number in mapping.values()):
            raise ValueError("fqn_to_index_mapping: must give each tensor the number of a file, from 1 on")
        for name in (*mapping, *contents):
            if name not in contents:
                raise ValueError(f"fqn_to_index_mapping: names {shown(name)}, which is not in {source.path}")
            if name not in mapping:
                raise ValueError(f"fqn_to_index_mapping: has no number for {shown(name)} of {source.path}")
        highest = max(mapping.values())
        self._names: dict[str, list[str]] = {}
        for name, number in mapping.items():
            self._names.setdefault(file_name(number, highest), []).append(name)
        self.files = sorted(self._names)

    def begin(self) -> None:
        """What was there is a model no more, before any of its files is replaced."""
        self._target.client.delete_objects(self._target.bucket, [self._target.key_of(INDEX_NAME)])

    def write(self, files: list[str], num_threads: int) -> None:
        """Make these files."""
        with ThreadPoolExecutor(max(1, num_threads)) as threads:
            for done in [threads.submit(self._write_file, file) for file in files]:
                done.result()

    def commit(self) -> None:
        """Make the files a model, and delete what an earlier one had beside them."""
        weight_map = {name: file for file, names in self._names.items() for name in names}
        write_index(self._target, weight_map, sum(map(self._nbytes, weight_map)))
        delete_others(self._target, set(self.files))

    def _write_file(self, file: str) -> None:
        writer = self._target.client.object_writer(self._target.bucket, self._target.key_of(file))
        try:
            tensors = [(name, self._tensor(name)) for name in self._names[file]]
            header = [(name, tensor.properties.dtype, tensor.size) for name, tensor in tensors]
            writer.raw(file_header(header, {"format": "pt"}))
            for block in self._blocks(self._names[file]):
                if block.nbytes:
                    writer.raw_memory(block.data_ptr(), block.nbytes, block)
            writer.start_finishing()
            writer.wait()
        except BaseException:
            writer.abort()
            raise

    def _tensor(self, name: str) -> TensorStorageMetadata:
        found = self._metadata.state_dict_metadata[name]
        assert isinstance(found, TensorStorageMetadata)
        return found

    def _nbytes(self, name: str) -> int:
        return math.prod(self._tensor(name).size) * self._tensor(name).properties.dtype.itemsize

    def _blocks(self, names: list[str]) -> Iterator[torch.Tensor]:
        """The bytes of the tensors in their order, of many small ones or of some rows at a time."""
        waiting: list[tuple[str, ChunkStorageMetadata]] = []
        nbytes = 0
        for name in names:
            for chunk in _row_blocks(tuple(self._tensor(name).size), self._tensor(name).properties.dtype.itemsize):
                size = math.prod(chunk.sizes) * self._tensor(name).properties.dtype.itemsize
                if waiting and nbytes + size > BLOCK_BYTES:
                    yield from self._load(waiting)
                    waiting, nbytes = [], 0
                waiting.append((name, chunk))
                nbytes += size
        yield from self._load(waiting)

    def _load(self, wanted: list[tuple[str, ChunkStorageMetadata]]) -> list[torch.Tensor]:
        planner = _Into()
        items: list[ReadItem] = []
        blocks = []
        for name, chunk in wanted:
            tensor = self._tensor(name)
            block = torch.empty(tuple(chunk.sizes), dtype=tensor.properties.dtype, device="cpu")
            blocks.append(block)
            found = create_read_items_for_chunk_list(name, tensor, [chunk])
            if sum(math.prod(item.lengths) for item in found) != block.numel():
                raise ValueError(f"{self._source.path}: parts of {shown(name)} are missing, or there twice")
            # several blocks of one tensor may be wanted at once, told apart by where they begin in it
            for item in found:
                planner.targets[id(item)] = narrow_tensor_by_index(block, item.dest_offsets, item.lengths)
            items += found
        source = self._source
        load = RankLoad(source.client, source.bucket, source.key, self._metadata, ReaderTransforms(), True, True)
        load.run(LoadPlan(items), planner)
        return blocks


class _Into(LoadPlanner):
    """Gives each item its own target."""

    def __init__(self) -> None:
        self.targets: dict[int, torch.Tensor] = {}

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        return self.targets[id(read_item)]

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        raise NotImplementedError


def _row_blocks(shape: tuple[int, ...], item_size: int) -> Iterator[ChunkStorageMetadata]:
    """`shape` in blocks of rows that lie one after another, each of about `BLOCK_BYTES` at most."""
    if not shape:
        yield ChunkStorageMetadata(torch.Size(()), torch.Size(()))
        return
    row_bytes = math.prod(shape[1:]) * item_size
    rows = max(1, BLOCK_BYTES // max(1, row_bytes))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        yield ChunkStorageMetadata(torch.Size((first, *[0] * (len(shape) - 1))), torch.Size((count, *shape[1:])))


def write_index(folder: Folder, weight_map: dict[str, str], total_size: int) -> None:
    """Put the index of a folder, which makes its files a model."""
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    with ObjectWriter(folder.client, folder.bucket, folder.key_of(INDEX_NAME)) as stream:
        stream.write(json.dumps(index, indent=2).encode())


def delete_others(folder: Folder, keep: set[str]) -> None:
    """Delete what an earlier save left in a folder, under names that saves give."""
    others = [folder.key_of(name) for name in folder.sizes() if name not in keep and OWN_NAMES.fullmatch(name)]
    if others:
        folder.client.delete_objects(folder.bucket, others)
