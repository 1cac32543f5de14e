"""`S3HuggingFaceWriter`: saves safetensors files to S3, straight from tensor memory.

Names are Hugging Face's, and the same in every save, so a save over another cannot keep the old files until the new
ones are whole. The index is what makes files a model: it goes before the first file is replaced, and comes when all are
there. Sharded files have no index; each says in its header which save it is of, and readers refuse a mixture.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from .. import _native
from .._compat import WriterTransforms
from .._progress import ProgressCallback, checked_progress, transfer_progress
from .._ranks import world_size
from .._save.files import FilePlan, item_nbytes
from .._save.resolve import Resolver
from .._save.shards import ShardFile
from .._shared_pace import SharedPace
from .._telemetry import Operation, Staged
from ..client_config import S3ClientConfig
from ..errors import shown
from ..file_system import S3FileSystem, split_path
from .consolidate import consolidate_safetensors_files, delete_others, write_index
from .folder import INDEX_NAME, SAVE_ID_KEY, SHARDED_NAME, SUFFIX, Folder, file_name

__all__ = ["S3HuggingFaceWriter"]


@dataclasses.dataclass
class _PlanData:
    """What the coordinator hands every rank through ``SavePlan.storage_data``."""

    save_id: str
    rank: int


class S3HuggingFaceWriter(FileSystemWriter):
    """Writes a folder of safetensors files on S3, as torch's ``HuggingFaceStorageWriter`` does a local one.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        path: the folder, ``s3://bucket/some/path``.
        fqn_to_index_mapping: the number of the file for each tensor, from 1 on; all in one file when None.
        thread_count: accepted for compatibility and ignored: all files of a rank go up at once.
        save_distributed: each rank saves its own shards, else one rank saves all.
        enable_consolidation: with `save_distributed`, put the shards into ``<path>/sharded``, and make whole tensors of
            them in `path` by ranges, without a disk.
        thread_count_consolidation: files that are made at a time then.
        s3client_config: settings of the S3 client.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        progress: True for a progress bar on standard error, or a callable ``(bytes_done, bytes_total)``.

    Raises:
        ValueError: an argument cannot work; the message names it.

    ``model.safetensors.index.json`` is written when all that it names is there. A save over another deletes the index
    of that one first: until the new one is there, the folder is no model. Files of the earlier save go last.
    """

    # What the writer of an older torch does not have.
    transforms = WriterTransforms()

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        fqn_to_index_mapping: dict[str, int] | None = None,
        thread_count: int = 1,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
        *,
        s3client_config: S3ClientConfig | None = None,
        endpoint_url: str | None = None,
        progress: bool | ProgressCallback = False,
    ) -> None:
        if enable_consolidation and not save_distributed:
            raise ValueError(
                "enable_consolidation=True: needs save_distributed=True, for there are no shards without it"
            )
        for name, number in (fqn_to_index_mapping or {}).items():
            if type(number) is not int or number < 1:
                raise ValueError(
                    f"fqn_to_index_mapping: {shown(name)} has {number!r}, not the number of a file from 1 on"
                )
        split_path(path)
        super().__init__(os.fspath(path), thread_count=thread_count)
        self.fqn_to_index_mapping = fqn_to_index_mapping
        self.save_distributed = save_distributed
        self.enable_consolidation = enable_consolidation
        self.thread_count_consolidation = thread_count_consolidation
        self.consolidated_output_path: str | None = None
        self._settings = {"region": region, "s3client_config": s3client_config, "endpoint_url": endpoint_url}
        self.fs: S3FileSystem = S3FileSystem(**self._settings)  # type: ignore[assignment,arg-type]
        self._go_to(os.fspath(path))
        self.progress = checked_progress(progress)
        self._plan_data: _PlanData | None = None
        self._staged: Staged | None = None
        self._operation: Operation | None = None
        self._is_coordinator = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_operation": None}

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state_dict` in host memory, for ``async_save``."""
        began = time.time_ns()
        staged: dict[str, Any] = super().stage(state_dict)
        self._staged = Staged(began)
        return staged

    def _go_to(self, path: str) -> None:
        self.path: str = path
        if self.enable_consolidation:
            self.consolidated_output_path = path
            self.path = self.fs.concat_path(path, SHARDED_NAME)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Start a new save, at `checkpoint_id` when given."""
        if checkpoint_id:
            split_path(checkpoint_id)
            self._go_to(os.fspath(checkpoint_id))
        self._plan_data = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save.

        Raises:
            ValueError: there are several ranks without collectives, each of which would write the same files.
        """
        if not kwargs.get("use_collectives", True):
            raise ValueError("use_collectives=False: safetensors files need a rank that knows what all save")
        staged, self._staged = self._staged, None
        path = os.fspath(self.consolidated_output_path or self.path)
        self._operation = Operation.of_save(path, split_path(path)[0], staged)
        with self._operation.phase("plan", goes_on=True):
            self._operation.use(self.fs.client)
        self._is_coordinator = is_coordinator

    @property
    def _this_save(self) -> Operation:
        if self._operation is None:
            raise RuntimeError("set_up_storage_writer() must be called first")
        return self._operation

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See that safetensors files can hold what is to be saved.

        Raises:
            ValueError: they cannot, or `fqn_to_index_mapping` does not say where it goes; the message names it.
        """
        with self._this_save.phase("plan", goes_on=True):
            for item in plan.items:
                name = item.index.fqn
                if item.type == WriteItemType.BYTE_IO:
                    raise ValueError(f"{shown(name)}: safetensors files hold tensors only")
                if self.fqn_to_index_mapping is not None and name not in self.fqn_to_index_mapping:
                    raise ValueError(f"fqn_to_index_mapping: has no number for {shown(name)}")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Take away the index of what was there, before any of its files is replaced.

        Raises:
            ValueError: several ranks have tensors to save, and `save_distributed` is False.
        """
        with self._this_save.phase("plan", goes_on=True):
            saving = sum(bool(plan.items) for plan in plans)
            if saving > 1 and not self.save_distributed:
                raise ValueError(
                    f"save_distributed=False: {saving} ranks have tensors to save, to files of the same names"
                )
            model = Folder(self.fs.client, self.consolidated_output_path or os.fspath(self.path))
            model.client.delete_objects(model.bucket, [model.key_of(INDEX_NAME)])
        save_id = secrets.token_hex(8)
        return [
            dataclasses.replace(plan, storage_data=_PlanData(save_id, number)) for number, plan in enumerate(plans, 1)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload this rank's files; all are there when it returns, and none when it fails."""
        with self._this_save.phase("write"):
            results = self._write_files(plan, planner)
        if not self._is_coordinator:
            self._this_save.end()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _write_files(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        data: _PlanData = plan.storage_data
        folder, client = Folder(self.fs.client, os.fspath(self.path)), self.fs.client
        files = self._files(plan.items, data.rank)
        total = sum(file.nbytes for file in files.values())
        self._this_save.note(rank=data.rank - 1, world_size=world_size(), items=len(plan.items), bytes=total)
        metadata = {SAVE_ID_KEY: data.save_id} if self.save_distributed else {}
        resolver = Resolver(planner)
        results: list[WriteResult] = []
        writers: list[tuple[_native.ShardWriter, ShardFile]] = []
        with (
            transfer_progress(self.progress, "save", os.fspath(self.path), client, "bytes_sent", total, data.rank - 1),
            SharedPace(client, True, folder.bucket, folder.key),
        ):
            try:
                for name, file in files.items():
                    native = client.object_writer(folder.bucket, folder.key_of(name))
                    shard = ShardFile(native, self.transforms, name, metadata)
                    writers.append((native, shard))
                    results += shard.write(file, resolver)
                    shard.start_finishing()
                for _, shard in writers:
                    shard.wait()
            except BaseException:
                for native, shard in writers:
                    shard.let_go()
                    native.abort()
                client.delete_objects(folder.bucket, [folder.key_of(name) for name in files])
                raise
        return results

    def _files(self, items: list[WriteItem], rank: int) -> dict[str, FilePlan]:
        """The files of a rank by name; a further chunk of a tensor goes into a further file."""
        highest = max(self.fqn_to_index_mapping.values()) if self.fqn_to_index_mapping else 1
        files: dict[str, list[WriteItem]] = {}
        seen: dict[str, int] = {}
        for item in items:
            number = self.fqn_to_index_mapping[item.index.fqn] if self.fqn_to_index_mapping else 1
            name = file_name(number, highest, rank if self.save_distributed else None)
            chunk = seen[item.index.fqn] = seen.get(item.index.fqn, 0) + 1
            if chunk > 1:
                name = f"{name.removesuffix(SUFFIX)}-{chunk}{SUFFIX}"
            files.setdefault(name, []).append(item)
        return {name: FilePlan(some, True, sum(map(item_nbytes, some))) for name, some in files.items()}

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make whole tensors where that is asked for, write the index, and delete what an earlier save left beside."""
        with self._this_save.phase("finish"):
            self._make_whole(results)
        self._this_save.end()

    def _make_whole(self, results: list[list[WriteResult]]) -> None:
        written = [result for some in results for result in some]
        weight_map = {result.index.fqn: result.storage_data.relative_path for result in written}
        folder = Folder(self.fs.client, os.fspath(self.path))
        if not self.save_distributed:
            write_index(folder, weight_map, sum(result.storage_data.length for result in written))
        delete_others(folder, {result.storage_data.relative_path for result in written})
        if self.consolidated_output_path is not None:
            consolidate_safetensors_files(
                os.fspath(self.path),
                self.consolidated_output_path,
                self.fqn_to_index_mapping or dict.fromkeys(weight_map, 1),
                self.thread_count_consolidation,
                **self._settings,  # type: ignore[arg-type]
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether `checkpoint_id` is an S3 URI."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)
