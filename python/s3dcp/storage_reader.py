"""`S3StorageReader`: loads a ``torch.distributed.checkpoint`` state from S3.

torch drives a load in this order: ``read_metadata`` (without a rank, then, after any error, with one),
``set_up_storage_reader``, ``prepare_local_plan`` on every rank, ``prepare_global_plan`` on the coordinator,
``read_data`` on every rank.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from . import _native
from ._compat import HAS_RANK_INDEXES, ExtensionRegistry, ReaderTransforms
from ._load.index import allowed_global_names, index_facts, node_folder, read_index
from ._load.rank_load import RankLoad
from ._load.share import Place, Share, is_certain, plan_share
from ._progress import ProgressCallback, checked_progress, transfer_progress
from ._ranks import this_rank, world_size
from ._shared_pace import SharedPace
from ._telemetry import Operation
from .client_config import S3ClientConfig
from .errors import ConfigError, Conflict, NotFound, S3DcpError
from .file_system import S3FileSystem, split_path

__all__ = ["S3StorageReader"]

logger = logging.getLogger(__name__)


@dataclass
class _PlanData:
    """What each rank tells the coordinator through ``LoadPlan.storage_data``, and what it is told."""

    etag: str | None
    saved_ranks: int | None
    place: Place | None = None
    share: Share | None = None


class _UnreadableIndex(Metadata):
    """Stands in for an index that could not be read: whatever touches it gets the error, of its own kind.

    torch turns every exception of ``read_metadata`` into an AssertionError; this one it hands on instead.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.storage_meta = None

    def __repr__(self) -> str:
        return f"<index that could not be read: {self._error}>"

    def raise_error(self) -> None:
        raise self._error

    @property
    def state_dict_metadata(self) -> Any:  # type: ignore[override]
        raise self._error

    @property
    def planner_data(self) -> Any:
        raise self._error

    @property
    def storage_data(self) -> Any:
        raise self._error


class S3StorageReader(FileSystemReader):
    """Reads distributed checkpoints from S3; drop-in for the class of this name in ``s3torchconnector.dcp``.

    Args:
        region: AWS region of the bucket; an empty string or None takes it from the environment or profile.
        path: where the checkpoint is, ``s3://bucket/some/path``; one epoch's is at ``<path>/epoch_<n>``.
        s3client_config: settings of the S3 client.
        reader_constructor: accepted for compatibility and ignored with a warning: there is one reader.
        endpoint_url: S3 endpoint; None for that of `s3client_config`, which says where it is looked for then.
        verify: compare every slice read with its CRC-32 in the index.
        weights_only: refuse pickled objects that ``torch.load(weights_only=True)`` refuses. False runs whatever
            code the checkpoint holds: only for checkpoints you trust.
        allowed_globals: further classes, or names like ``"package.module.Name"``, that the index may hold.
        progress: True for a progress bar on standard error, or a callable ``(bytes_done, bytes_total)``.
        share: have one rank fetch what several want, and pass it on to them; ``"auto"``: where that saves much. With
            False each rank of a node also fetches the index.
        process_group: the group of ranks that load, as ``dcp.load`` has it; None is the default one.
        _extension_registry: torch's registry of stream extensions.

    Raises:
        ValueError: an argument cannot work; the message names it.

    During a load, errors are `s3dcp.S3DcpError` of a kind; in a distributed load they arrive inside
    ``CheckpointException.failures[rank][0]``.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: Any = None,
        *,
        endpoint_url: str | None = None,
        verify: bool = True,
        weights_only: bool = True,
        allowed_globals: Iterable[str | type] = (),
        progress: bool | ProgressCallback = False,
        share: bool | Literal["auto"] = "auto",
        process_group: ProcessGroup | None = None,
        _extension_registry: ExtensionRegistry | None = None,
    ) -> None:
        if reader_constructor is not None:
            warnings.warn("reader_constructor is ignored: s3dcp has one reader, which fetches ranges", stacklevel=2)
        split_path(path)
        super().__init__(path)
        self.transforms = ReaderTransforms(_extension_registry)
        self.fs: S3FileSystem = S3FileSystem(  # type: ignore[assignment]
            region, s3client_config=s3client_config, endpoint_url=endpoint_url
        )
        self.path = self.fs.init_path(path)
        self.verify = verify
        self.weights_only = weights_only
        self.progress = checked_progress(progress)
        # the published package's settings have none
        self._deadline: float = getattr(s3client_config, "deadline", S3ClientConfig.deadline)
        self.share = _checked_share(share)
        self.process_group = _checked_group(process_group)
        self._allowed_globals = allowed_global_names(allowed_globals)
        self.sync_files = False
        self._index_error: Exception | None = None
        self._etag: str | None = None
        self._node_index: _native.StoredIndex | None = None
        self._metadata: Metadata | None = None
        self._operation: Operation | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_metadata": None,
            "_index_error": None,
            "_node_index": None,
            "_operation": None,
            "storage_data": {},
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Forget the last load; the next one is at `checkpoint_id` when given."""
        if checkpoint_id:
            split_path(checkpoint_id)
            self.path = self.fs.init_path(checkpoint_id)
        self.storage_data = {}
        self._metadata = None
        self._index_error = None
        self._node_index = None
        self.load_id = str(uuid.uuid4())

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; with ``rank=r``, the one that rank saved without collectives.

        torch asks for a rank's index after any error of the first call. It is looked for only when the first
        definitely does not exist; any other error is what the load then raises.

        Raises:
            NotFound: there is no checkpoint at the path; with a rank, checkpoints near it are named.
            Corrupt: the index is damaged or holds what is not allowed.
        """
        rank = kwargs.get("rank")
        asked_first, self._index_error = self._index_error, None
        if asked_first is None:
            self._operation = None
        if rank is not None and asked_first is not None and not _is_missing_key(asked_first):
            return self._unreadable(asked_first)
        try:
            with self._this_load().attempt("read_metadata"):
                if rank is None:
                    return self._read_whole_index()
                return self._read_rank_index(rank, asked_first is not None)
        except Exception as error:
            if rank is None:
                if not HAS_RANK_INDEXES:
                    self._this_load().end(error)
                self._index_error = error
                raise
            if asked_first is None:
                raise
            return self._unreadable(error)

    def _unreadable(self, error: Exception) -> Metadata:
        """What stands for an index that could not be read; the load has failed with that."""
        self._this_load().end(error)
        return _UnreadableIndex(error)

    def _this_load(self) -> Operation:
        """What is noted of the load under way, which begins with the first call."""
        if self._operation is None or self._operation.is_over:
            self._operation = Operation("load", os.fspath(self.path), split_path(self.path)[0])
            self._operation.use(self.fs.client)
        return self._operation

    def _read_whole_index(self) -> Metadata:
        """The index of all ranks; where there is none, an older torch asks for no other, so this says what there is."""
        try:
            return self._read_index(None)
        except NotFound as error:
            if HAS_RANK_INDEXES or not _is_missing_key(error):
                raise
            raise self._nothing_there(error, this_rank(), "no .metadata") from error

    def _read_rank_index(self, rank: int, is_alone: bool) -> Metadata:
        """The index of `rank`; where there is none: is there one of all ranks, a checkpoint of fewer ranks, or nothing?

        `is_alone` when it is known that there is none of all ranks.
        """
        try:
            return self._read_index(rank)
        except NotFound as error:
            if not _is_missing_key(error):
                raise
            bucket, path_key = split_path(self.path)
            if not is_alone and self._is_there(bucket, _index_key(path_key, None)):
                raise error.with_message(
                    f"{self.path} was saved by all ranks together: it has .metadata, and no __{rank}.metadata"
                ) from error
            if self._is_there(bucket, _index_key(path_key, 0)):
                raise ConfigError(
                    f"{self.path} was saved without collectives by fewer ranks, each its own part: there is no "
                    f"__{rank}.metadata for rank {rank}",
                    bucket=bucket,
                    key=error.key,
                ) from error
            raise self._nothing_there(error, rank, f"neither .metadata nor __{rank}.metadata") from error

    def _nothing_there(self, error: NotFound, rank: int, missing: str) -> NotFound:
        """That there is no index, and where there are some near the path."""
        bucket, path_key = split_path(self.path)
        text = f"no checkpoint at {self.path}: there is {missing}"
        # One rank's search is enough for all.
        if rank == 0 and (nearby := self.fs.client.nearby_checkpoints(bucket, path_key)):
            text += f"; {nearby}"
        return NotFound(text, bucket=bucket, key=_index_key(path_key, None), status=error.status, code=error.code)

    def _is_there(self, bucket: str, key: str) -> bool:
        try:
            self.fs.client.head_object(bucket, key)
        except NotFound:
            return False
        return True

    def _read_index(self, rank: int | None) -> Metadata:
        bucket, path_key = split_path(self.path)
        key = _index_key(path_key, rank)
        # each rank has an index of its own without collectives
        folder = node_folder() if rank is None and self.share else None
        try:
            index = self.fs.client.get_index(bucket, key, folder)
        except NotFound as error:
            raise error.with_message(f"no checkpoint at {self.path}: {error}") from error
        self._etag = index.etag
        # For ranks that come later: when one reads data, all have read the index.
        self._node_index = index if folder else None
        metadata = read_index(index, f"s3://{bucket}/{key}", self._allowed_globals)
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id  # type: ignore[union-attr]
        return metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Take the index to load from, which `read_metadata` gave."""
        if metadata is None:
            raise RuntimeError("read_metadata() must be called before set_up_storage_reader(), which takes its result")
        if isinstance(metadata, _UnreadableIndex):
            metadata.raise_error()
        operation = self._this_load()
        with operation.phase("plan", goes_on=True):
            self._metadata = metadata
            self.storage_data = metadata.storage_data
            self.rank = kwargs.get("rank")
            self.use_collectives = kwargs.get("use_collectives", True)
            operation.note(
                rank=this_rank() if self.rank is None else self.rank,
                world_size=world_size(),
                epoch=index_facts(metadata).get("epoch"),
            )

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Note which index this rank read."""
        metadata = self._index_for("prepare_local_plan")
        if self.use_collectives:
            plan.storage_data = _PlanData(self._etag, None, Place.here(self.process_group) if self.share else None)
        else:
            plan.storage_data = _PlanData(None, index_facts(metadata).get("ranks"))
        return plan

    def _index_for(self, step: str) -> Metadata:
        """The index to load from, for the call named `step`."""
        if self._metadata is None:
            raise RuntimeError(f"set_up_storage_reader() must be called before {step}()")
        return self._metadata

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See that all ranks read the same index, or as many rank indexes as were saved.

        Raises:
            Conflict: the checkpoint was replaced while the ranks read its index.
            ConfigError: it was saved without collectives by another number of ranks.
        """
        self._index_for("prepare_global_plan")
        with self._this_load().phase("plan", goes_on=True):
            self._see_that_they_fit(plans)
            self._share_among(plans)
        return plans

    def _share_among(self, plans: list[LoadPlan]) -> None:
        """Tell the ranks what each fetches for others, where it is certain that these are they."""
        told = [plan.storage_data for plan in plans]
        places = [data.place if isinstance(data, _PlanData) else None for data in told]
        if len(plans) < 2 or not is_certain(places):
            return
        bucket, path_key = split_path(self.path)
        load = self.fs.client.load(bucket, path_key, self.verify, len(plans))
        try:
            shares = plan_share(load, self._index_for("prepare_global_plan"), plans, self.share == "auto")
        except Exception as error:
            logger.debug("nothing is shared, and each rank says what is wrong with its items: %s", error)
            return
        for data, share in zip(told, shares, strict=False):
            data.share = share

    def _see_that_they_fit(self, plans: list[LoadPlan]) -> None:
        told = [plan.storage_data for plan in plans if isinstance(plan.storage_data, _PlanData)]
        if len({data.etag for data in told}) > 1:
            raise Conflict(f"{self.path} was replaced while the ranks read its index; load again", retryable=True)
        for data in told:
            if data.saved_ranks is not None and data.saved_ranks != len(plans):
                raise ConfigError(
                    f"{self.path} was saved without collectives by {data.saved_ranks} ranks, each its own part; "
                    f"it cannot be loaded by {len(plans)}"
                )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fetch what `plan` needs straight into the tensors' memory.

        Raises:
            Conflict: a shard file is gone because the checkpoint was replaced during the load.
            NotFound: a shard file that the index names does not exist.
            Corrupt: stored bytes are not what was saved.
        """
        metadata = self._index_for("read_data")
        operation = self._this_load()
        operation.note(items=len(plan.items))
        self._node_index = None
        with operation.phase("read"):
            self._read_items(metadata, plan, planner)
        operation.end()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read_items(self, metadata: Metadata, plan: LoadPlan, planner: LoadPlanner) -> None:
        bucket, path_key = split_path(self.path)
        # one rank's own index, and an index that does not say how many ranks saved it
        is_part = not self.use_collectives or index_facts(metadata).get("ranks") in (None, 1)
        load = RankLoad(
            self.fs.client,
            bucket,
            path_key,
            metadata,
            self.transforms,
            self.verify,
            self.weights_only,
            is_part,
        )
        rank = self.rank if self.rank is not None else 0
        share = plan.storage_data.share if isinstance(plan.storage_data, _PlanData) else None
        expected = load.expected_bytes(plan, share) if self.progress else 0
        try:
            with (
                transfer_progress(
                    self.progress, "load", os.fspath(self.path), self.fs.client, "bytes_received", expected, rank
                ),
                SharedPace(self.fs.client, False, bucket, path_key),
            ):
                load.run(plan, planner, share, self._deadline)
        except NotFound as error:
            raise self._explain_missing(error, bucket, path_key) from error

    def _explain_missing(self, error: NotFound, bucket: str, path_key: str) -> S3DcpError:
        """A shard file is gone: was the checkpoint replaced, or is it broken?"""
        index_rank = None if self.use_collectives else self.rank
        try:
            etag = self.fs.client.head_object(bucket, _index_key(path_key, index_rank)).etag
        except NotFound:
            etag = None
        except S3DcpError as failed:
            # That the file is gone is sure, and what the load failed of.
            return error.with_message(f"{error}; whether {self.path} was replaced could not be seen: {failed}")
        if etag != self._etag:
            return Conflict(
                f"{self.path} was replaced during load: its shard file {error.key} is gone; load again",
                bucket=bucket,
                key=error.key,
                retryable=True,
            )
        return NotFound(
            f"{self.path} is incomplete: its index names the shard file {error.key}, which does not exist",
            bucket=bucket,
            key=error.key,
            status=error.status,
            code=error.code,
            request_id=error.request_id,
        )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Whether `checkpoint_id` is an S3 URI."""
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)


def _checked_share(share: Any) -> bool | Literal["auto"]:
    if share is True or share is False or (isinstance(share, str) and share == "auto"):
        return share  # type: ignore[return-value]
    raise ValueError(f'share={share!r}: must be True, False or "auto"')


def _checked_group(process_group: Any) -> ProcessGroup | None:
    if process_group is None or isinstance(process_group, ProcessGroup):
        return process_group
    raise ValueError(
        f"process_group={process_group!r}: must be a process group of torch.distributed that this rank is in"
    )


def _index_key(path_key: str, rank: int | None) -> str:
    return _native.Layout(path_key).index_key(rank)


def _is_missing_key(error: Exception) -> bool:
    """A definite answer that there is no such object, in a bucket that does exist."""
    return isinstance(error, NotFound) and error.code != "NoSuchBucket"
