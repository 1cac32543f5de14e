"""`S3StorageWriter`: saves a ``torch.distributed.checkpoint`` state to S3.

torch drives a save in this order, all in one thread per save: ``set_up_storage_writer`` and ``prepare_local_plan``
on every rank, ``prepare_global_plan`` on the coordinator, ``write_data`` on every rank, ``finish`` on the
coordinator (on every rank without collectives). What belongs to one save lives in a `_Save` of its thread, so that
overlapping asynchronous saves on one writer do not touch each other. Names of shard files come from this writer,
this rank and this save alone, never from a plan, which torch may have cached.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import secrets
import statistics
import threading
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from . import _native
from ._compat import INDEX_VERSION, SerializationFormat, WriterTransforms
from ._gc import GcPause
from ._progress import ProgressCallback, checked_progress, transfer_progress
from ._ranks import this_rank, world_size
from ._save.files import split_into_files
from ._save.host_copy import HostCopy, copied
from ._save.resolve import Resolver
from ._save.reuse import Reused, reuse
from ._save.shards import ShardFile, discard
from ._shared_pace import SharedPace
from ._telemetry import Operation, Staged
from .client_config import S3ClientConfig
from .errors import ConfigError
from .file_system import S3FileSystem, split_path
from .s3_prefix_strategy import DefaultPrefixStrategy, HexPrefixStrategy, S3PrefixStrategyBase

__all__ = ["S3StorageWriter"]

logger = logging.getLogger(__name__)

ConditionalCommit = Literal["warn", "require", "off"]


@dataclasses.dataclass
class _PlanData:
    """What the coordinator hands every rank through ``SavePlan.storage_data``."""

    ranks: int
    rank: int
    save_id: str | None = None
    """As the rank has put it into its plan: what is said here of a base is for that save."""
    base: dict[MetadataIndex, tuple[Any, ...]] | None = None
    """What the base has of the rank's items."""
    writes_per_second: float | None = None
    """What the path's last save found S3 to take."""


@dataclasses.dataclass
class _RankPlan:
    """What a rank of an incremental save tells the coordinator through ``SavePlan.storage_data``."""

    save_id: str


class _Results(list[WriteResult]):
    """What a rank has written, and what it found S3 to take from all ranks: each rank tells the one that commits."""

    writes_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class _DrawnId:
    """The id of a save that is to begin in this process."""

    save_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))
    process: int = dataclasses.field(default_factory=os.getpid)


@dataclasses.dataclass
class _Save:
    """The state of one save in this process."""

    native: _native.Save
    save_id: str
    path: str
    bucket: str
    path_key: str
    rank: int
    is_rank_told: bool
    is_coordinator: bool
    use_collectives: bool
    strategy: S3PrefixStrategyBase
    operation: Operation
    notes: str | None = None
    is_prepared: bool = False
    plan_data: _PlanData | None = None

    @property
    def commits(self) -> bool:
        """Whether this process commits an index."""
        return self.is_coordinator or not self.use_collectives

    def require(self, done: object, earlier: str, step: str) -> None:
        """Refuse `step` where the process that commits has not done what is `earlier`."""
        if self.commits and not done:
            raise RuntimeError(f"{earlier}() must be called before {step}()")

    def prefixes(self, ranks: int, of: Iterable[int]) -> list[str]:
        """The strategy's prefixes for some of `ranks` ranks.

        Raises:
            ConfigError: shard files cannot have such a prefix; the message names it and its rank.
        """
        bound, layout = _bind(self.strategy, ranks), _native.Layout(self.path_key)
        prefixes = []
        for rank in of:
            prefix = bound(rank)
            fault = layout.prefix_fault(prefix) if isinstance(prefix, str) else "must be a string that is not empty"
            if fault is not None:
                raise ConfigError(f"prefix_strategy={bound!r}: prefix {prefix!r} of rank {rank} {fault}")
            prefixes.append(prefix)
        return prefixes

    def storage_meta(self, writes_per_second: float | None) -> StorageMeta:
        """What the index says of the save, which found S3 to take so many requests."""
        meta = StorageMeta(checkpoint_id=self.path, save_id=self.save_id)
        epoch = getattr(self.strategy, "epoch_num", None)
        facts = {"format": 1, "ranks": self.plan_data.ranks if self.plan_data else None, "epoch": epoch}
        if self.notes is not None:
            facts["notes"] = self.notes
        if writes_per_second is not None:
            facts["writes_per_minute"] = max(round(60 * writes_per_second), 1)
        meta.s3dcp = facts  # type: ignore[attr-defined]
        return meta


class S3StorageWriter(FileSystemWriter):
    """Writes distributed checkpoints to S3; drop-in for the class of this name in ``s3torchconnector.dcp``.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        path: where the checkpoint goes, ``s3://bucket/some/path``.
        s3client_config: settings of the S3 client.
        prefix_strategy: rank to key prefix; `DefaultPrefixStrategy` when None. With an ``epoch_num``, each epoch
            keeps an index of its own at ``<path>/epoch_<n>/.metadata``, and ``<path>/.metadata`` is the newest.
            A save takes a copy of it when it begins; ``async_save`` begins in its own thread, so use one writer
            per epoch there rather than changing ``epoch_num`` while a save may be about to begin.
        thread_count: shard files per rank at most, at least 1; a rank with fewer items writes fewer. With
            ``SerializationFormat.SAFETENSORS`` objects, and further chunks of one tensor, have files of their own.
        endpoint_url: S3 endpoint; None for ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile, else AWS.
        conditional_commit: what to do where a server does not honour the conditional write that this save needs against
            racing writers: ``"warn"``, ``"require"`` (refuse to save) or ``"off"`` (do not find out).
        step_folders: what the folders of steps are called, such as ``"step-{}"``. The shard files of ``run/step-700``
            then lie below ``run`` as those of epoch 700 do, on key prefixes that are the same at every step; its index
            is at ``run/step-700/.metadata``, and readers need no option. `prefix_strategy` is `HexPrefixStrategy` when
            None; its ``epoch_num`` must be None.
        notes: what to find again without loading, as a dict that JSON can hold, 64 KiB at most:
            ``{"step": 700, "metrics": {"loss": 2.1}}``. It stands in the index; ``s3dcp ls --json`` shows it, and
            ``s3dcp keep --best`` looks for metrics in it. May be set between saves.
        incremental: whether a save leaves what has not changed where an earlier one on this path has stored it: its
            index names the older file. What differs in bytes, dtype, shape, chunks or format is sent. The base is
            the path's newest epoch or step, else what is replaced. s3dcp 0.2 must not delete below such a path.
        progress: True for a progress bar on standard error, or a callable ``(bytes_done, bytes_total)``.
        kwargs: torch's own writer arguments: ``single_file_per_rank``, ``overwrite``, ``per_thread_copy_ahead``,
            ``cache_staged_state_dict`` (the copy that ``async_save`` makes of a state is kept and written to again by
            this writer's next one, which has to begin after this one's end), ``serialization_format``, ``_extensions``.
            ``sync_files`` has no meaning on S3, where a finished write is durable, and is ignored.

    Attributes:
        save_id: identity of the save that began last, as in the names of this rank's shard files and, of the rank that
            commits, in the index (``metadata.storage_meta.save_id``); before the first save, and after `reset`, of the
            next one. Every save has its own.
        reused: what this rank did not send in the save that ended last: ``files``, ``items`` and ``bytes``.

    Raises:
        ValueError: an argument cannot work; the message names it.

    During a save, errors are `s3dcp.S3DcpError` of a kind; in a distributed save they arrive inside
    ``CheckpointException.failures[rank][0]``.
    """

    # What the writer of an older torch does not have.
    serialization_format = SerializationFormat.TORCH_SAVE
    transforms = WriterTransforms()

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: S3PrefixStrategyBase | None = None,
        thread_count: int = 1,
        *,
        endpoint_url: str | None = None,
        conditional_commit: ConditionalCommit = "warn",
        step_folders: str | None = None,
        notes: Mapping[str, Any] | None = None,
        incremental: bool = False,
        progress: bool | ProgressCallback = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(thread_count, bool) or not isinstance(thread_count, int) or thread_count < 1:
            raise ValueError(f"thread_count={thread_count!r}: must be an integer of at least 1")
        if conditional_commit not in ("warn", "require", "off"):
            raise ValueError(f"conditional_commit={conditional_commit!r}: must be 'warn', 'require' or 'off'")
        if not isinstance(incremental, bool):
            raise ValueError(f"incremental={incremental!r}: must be True or False")
        if prefix_strategy is not None and not callable(prefix_strategy):
            raise ValueError(f"prefix_strategy={prefix_strategy!r}: must map a rank to a prefix")
        _, path_key = split_path(path)
        if step_folders is not None:
            prefix_strategy = prefix_strategy or HexPrefixStrategy()
            _step_folder(step_folders, prefix_strategy, path_key)
        kwargs.pop("sync_files", None)
        super().__init__(path=path, sync_files=False, thread_count=thread_count, **kwargs)
        self.fs: S3FileSystem = S3FileSystem(  # type: ignore[assignment]
            region, s3client_config=s3client_config, endpoint_url=endpoint_url
        )
        self.path = self.fs.init_path(path)
        self.prefix_strategy = prefix_strategy or DefaultPrefixStrategy()
        self.conditional_commit = conditional_commit
        self.step_folders = step_folders
        self.notes = notes
        self.incremental = incremental
        self.reused = Reused()
        self.progress = checked_progress(progress)
        self._last_plan_data: _PlanData | None = None
        # Since when, in nanoseconds, the caller of the next asynchronous save waits, where that is before it is staged.
        self._awaited_since: int | None = None
        self._staged: Staged | None = None
        self._host_copy = HostCopy()
        self._thread = threading.local()
        self._draw_save_id()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_thread"]
        state.pop("_drawn", None)  # every copy draws its own
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread = threading.local()

    @property
    def notes(self) -> dict[str, Any] | None:
        """What the next save notes in its index."""
        return None if self._notes is None else json.loads(self._notes)

    @notes.setter
    def notes(self, notes: Mapping[str, Any] | None) -> None:
        self._notes = None if notes is None else _as_json(notes)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Start a new save, at `checkpoint_id` when given: for this thread's next save and as the new default."""
        if checkpoint_id:
            split_path(checkpoint_id)
            self.path = self.fs.init_path(checkpoint_id)
            self._thread.path = self.path
        self._draw_save_id()

    def _draw_save_id(self) -> None:
        """An id for the next save, of whichever thread begins one first."""
        self._thread.__dict__.pop("drawn", None)
        self._drawn = _DrawnId()
        self.save_id = self._drawn.save_id

    def _next_save_id(self) -> str:
        """The id of this thread's next save. No other thread, and no copy or fork of this writer, gets the same."""
        drawn: _DrawnId | None = getattr(self._thread, "drawn", None)
        if drawn is None:
            drawn = self.__dict__.pop("_drawn", None)  # one operation: of two threads, one finds it
        if drawn is None or drawn.process != os.getpid():
            drawn = _DrawnId()
        self._thread.drawn = drawn
        return drawn.save_id

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """A copy of `state_dict` in host memory, for ``async_save``; whatever the default device is."""
        began, self._awaited_since = self._awaited_since or time.time_ns(), None
        with torch.device("cpu"):
            staged = self._host_copy.of(state_dict) if self.cache_staged_state_dict else copied(state_dict)
        self._staged = Staged(began)
        return staged

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Begin a save in this thread, with a save id of its own."""
        path = self._thread.__dict__.pop("path", None) or self.path
        staged, self._staged = self._staged, None
        operation = Operation.of_save(os.fspath(path), split_path(path)[0], staged)
        with operation.phase("plan", goes_on=True):
            self._begin(path, operation, is_coordinator, kwargs.get("rank"), kwargs.get("use_collectives", True))

    def _begin(
        self,
        path: str | os.PathLike[str],
        operation: Operation,
        is_coordinator: bool,
        told: int | None,
        use_collectives: bool,
    ) -> None:
        bucket, path_key = split_path(path)
        rank = this_rank() if told is None else told
        strategy, folder = copy.deepcopy(self.prefix_strategy), None
        if self.step_folders is not None and (step := _step_folder(self.step_folders, strategy, path_key)):
            path_key, folder, strategy.epoch_num = step  # type: ignore[attr-defined]
        epoch = getattr(strategy, "epoch_num", None)
        save_id = self._next_save_id()
        operation.use(self.fs.client)
        operation.note(rank=rank, epoch=epoch, save_id=save_id)
        self._thread.save = _Save(
            native=_native.Save(
                self.fs.client,
                bucket,
                path_key,
                None if epoch is None else str(epoch),
                folder,
                None if use_collectives else rank,
                save_id,
            ),
            save_id=save_id,
            path=os.fspath(path),
            bucket=bucket,
            path_key=path_key,
            rank=rank,
            is_rank_told=told is not None,
            is_coordinator=is_coordinator,
            use_collectives=use_collectives,
            strategy=strategy,
            operation=operation,
            notes=self._notes,
        )
        del self._thread.drawn
        self.save_id = save_id

    @property
    def _save(self) -> _Save:
        try:
            save: _Save = self._thread.save
        except AttributeError:
            raise RuntimeError("set_up_storage_writer() must be called first, in the same thread") from None
        return save

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See what is at the path now; nothing is written yet that stays.

        Raises:
            AlreadyExists: a checkpoint is there and ``overwrite=False``, or one of the other kind (with or without
                collectives) is there.
        """
        save = self._save
        if self.incremental:
            plan = dataclasses.replace(plan, storage_data=_RankPlan(save.save_id))
        if not save.commits:
            return plan
        with save.operation.phase("plan", goes_on=True):
            replaces = save.native.prepare(self.overwrite, self.conditional_commit)
            save.is_prepared = True
            if replaces:
                warnings.warn(
                    f"Detected an existing checkpoint in {save.path}, overwriting since {self.overwrite=}.",
                    stacklevel=2,
                )
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Bind the strategy to the number of ranks and check every rank's prefix before anything is written."""
        save = self._save
        save.require(save.is_prepared, "prepare_local_plan", "prepare_global_plan")
        ranks = len(plans) if save.use_collectives else world_size()
        numbers = range(ranks) if save.use_collectives else (save.rank,)
        with save.operation.phase("plan", goes_on=True):
            save.prefixes(ranks, numbers)
            found = save.native.writes_per_second
            told = [_PlanData(ranks, number, writes_per_second=found) for number in numbers]
            if self.incremental:
                _hand_out_base(save.native, plans, told)
        save.plan_data = _PlanData(ranks, save.rank, writes_per_second=found)
        return [dataclasses.replace(plan, storage_data=data) for plan, data in zip(plans, told, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload this rank's shard files straight from tensor memory; all parts are up when it returns.

        When it fails, uploads are aborted and files already complete deleted.
        """
        save = self._save
        save.require(save.plan_data, "prepare_global_plan", "write_data")
        with save.operation.phase("write"):
            results = self._write_files(save, plan, planner)
        if not save.commits:
            save.operation.end()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    @property
    def _compares(self) -> bool:
        """Whether items are told by hashes; what stream extensions make of them cannot be."""
        return self.incremental and not self.transforms.extensions

    def _reuse(self, save: _Save, plan: SavePlan, resolver: Resolver) -> tuple[list[WriteResult], list[WriteItem]]:
        """What of this rank's plan lies in the base, and what is to be sent."""
        told = plan.storage_data if isinstance(plan.storage_data, _PlanData) else None
        # A plan that torch has cached speaks of another save, and of a base that may be gone.
        if told is None or told.save_id != save.save_id or not told.base or not self._compares:
            return [], plan.items
        try:
            return reuse(plan.items, told.base, resolver, self.serialization_format is SerializationFormat.SAFETENSORS)
        except BaseException:
            discard(save.native, save.bucket)
            raise

    def _write_files(self, save: _Save, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        client = self.fs.client
        told = plan.storage_data if isinstance(plan.storage_data, _PlanData) else self._last_plan_data
        plan_data = save.plan_data or told or _PlanData(world_size(), save.rank)
        if told and not save.is_rank_told:
            save.rank = told.rank  # in the group that saves; torch tells a writer its rank from 2.9 on
        save.plan_data = self._last_plan_data = dataclasses.replace(plan_data, rank=save.rank, save_id=None, base=None)
        resolver = Resolver(planner)
        reused, items = self._reuse(save, plan, resolver)
        files = split_into_files(items, self.thread_count, self.single_file_per_rank, self.serialization_format)
        save.native.divide_budget(plan_data.ranks, len(files))
        results = _Results()
        shards: list[ShardFile] = []
        hashes = self._compares
        total = sum(file.nbytes for file in files)
        save.operation.note(rank=save.rank, world_size=plan_data.ranks, items=len(plan.items), bytes=total)
        self.reused = Reused.of(reused)
        if self._compares:
            save.operation.note(reused_items=self.reused.items, reused_bytes=self.reused.bytes)
            logger.info("%s: %s", save.path, self.reused)
        (prefix,) = save.prefixes(plan_data.ranks, (save.rank,))
        with (
            transfer_progress(self.progress, "save", save.path, client, "bytes_sent", total, save.rank),
            SharedPace(client, True, save.bucket, save.path_key, plan_data.writes_per_second) as pace,
            # Whatever unwinds, also while files are discarded: after this nothing reads the tensors.
            save.native,
        ):
            try:
                for number, file in enumerate(files):
                    shard = ShardFile(save.native.shard(prefix, number, file.nbytes, hashes), self.transforms)
                    shards.append(shard)
                    results += shard.write(file, resolver)
                    shard.start_finishing()
                for shard in shards:
                    shard.wait()
            except BaseException:
                for shard in shards:
                    shard.let_go()
                discard(save.native, save.bucket)
                raise
        results.writes_per_second = pace.found
        results[:0] = reused
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: the index by one conditional PUT, then clean up what it replaced.

        Raises:
            AlreadyExists: another writer committed since planning.
            S3DcpError: the commit failed; when its outcome is unknown, the message says so and nothing is deleted.

        Where the index was certainly not written, the shard files of all ranks are deleted.
        """
        save = self._save
        if not save.is_prepared:
            raise RuntimeError("prepare_local_plan() must be called before finish(), by the rank that commits")
        if INDEX_VERSION is not None:
            metadata.version = INDEX_VERSION
        # A rank that was not refused has found nothing.
        found = [rank.writes_per_second for rank in results if isinstance(rank, _Results) and rank.writes_per_second]
        metadata.storage_meta = save.storage_meta(statistics.median_high(found) if found else None)
        began = time.perf_counter()
        with save.operation.phase("finish"):
            with GcPause(old_at_once=True):
                metadata.storage_data = {
                    result.index: result.storage_data for rank_results in results for result in rank_results
                }
                try:
                    index = _native.write_index(metadata, save.save_id)
                except BaseException:
                    discard(save.native, save.bucket, {info.relative_path for info in metadata.storage_data.values()})
                    raise
            warned = save.native.commit(index)
        save.operation.end()
        seconds = time.perf_counter() - began
        logger.info("committed %s: an index of %d items in %.2f s", save.path, len(metadata.storage_data), seconds)
        if index.refusal is not None:
            warned.append(
                f"the index of {save.path} holds what readers refuse unless they are made with "
                f"S3StorageReader(..., allowed_globals=[...]): {index.refusal}"
            )
        for warning in warned:
            try:
                warnings.warn(warning, stacklevel=2)
            except Warning:
                # A filter turns warnings into errors; this save is committed and must not look failed.
                logger.warning(warning)

    def storage_meta(self) -> StorageMeta:
        """The identity of this thread's next save, which torch hands the planner before the save begins."""
        path = getattr(self._thread, "path", None) or self.path
        return StorageMeta(checkpoint_id=os.fspath(path), save_id=self._next_save_id())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether `checkpoint_id` is an S3 URI."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)


def _hand_out_base(save: _native.Save, plans: list[SavePlan], told: list[_PlanData]) -> None:
    """Give every rank that wants to reuse what it may, with the id of its own save."""
    if not any(isinstance(plan.storage_data, _RankPlan) and plan.items for plan in plans):
        return
    base = save.rely_on_base()
    if not base:
        return
    for plan, data in zip(plans, told, strict=True):
        if isinstance(plan.storage_data, _RankPlan):
            data.save_id, data.base = plan.storage_data.save_id, base.entries(plan.items)


def _as_json(notes: Mapping[str, Any]) -> str:
    """
    Raises:
        ConfigError: JSON cannot hold `notes`, or they are longer than every reader of the index should read.
    """
    try:
        text = json.dumps(dict(notes), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"notes={notes!r}: must be a dict that JSON can hold: {error}") from error
    if len(text) > _native.MAX_NOTES_BYTES:
        raise ConfigError(f"notes: {len(text)} bytes of JSON; at most {_native.MAX_NOTES_BYTES} are taken")
    return text


def _step_folder(step_folders: str, strategy: S3PrefixStrategyBase, path_key: str) -> tuple[str, str, int] | None:
    """The path above, the name and the number of a path's last folder, where that is a step's.

    Raises:
        ConfigError: the template cannot work, or not with this strategy or path; the message names the argument.
    """
    try:
        found = _native.step_folder(step_folders, path_key)
    except TypeError:
        raise ConfigError(f"step_folders={step_folders!r}: must be a string such as 'step-{{}}'") from None
    if not hasattr(strategy, "epoch_num"):
        raise ConfigError(f"prefix_strategy={strategy!r}: has no epoch_num, which step_folders sets")
    if strategy.epoch_num is not None:
        raise ConfigError(f"prefix_strategy={strategy!r}: has an epoch_num, which step_folders would set")
    return found


def _bind(strategy: S3PrefixStrategyBase, ranks: int) -> S3PrefixStrategyBase:
    """The strategy for `ranks` ranks; a callable of another kind (say, the peer's strategy) stays as it is."""
    return strategy.bind(ranks) if isinstance(strategy, S3PrefixStrategyBase) else strategy
