"""`CheckpointManager`: the checkpoints of one training, saved, kept and restored by step."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from . import _native
from ._compat import takes_no_dist
from ._progress import ProgressCallback
from ._ranks import is_distributed, on_first_rank, this_rank
from ._replicas import split_from
from ._save.reuse import Reused
from ._usage import Latency, UsageMeter
from .catalogue import Checkpoint, keep, list_checkpoints
from .client_config import S3ClientConfig
from .errors import ConfigError, NotFound
from .file_system import split_path
from .planner import FastLoadPlanner, FastSavePlanner
from .s3_prefix_strategy import HexPrefixStrategy, S3PrefixStrategyBase
from .storage_reader import S3StorageReader
from .storage_writer import S3StorageWriter

__all__ = ["CheckpointManager", "Keep", "Latency", "Reused", "SaveReport"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Keep:
    """Which checkpoints stay; see `s3dcp.catalogue.keep` for what each rule means."""

    last: int | None = None
    every: int | None = None
    best: Mapping[str, Literal["min", "max"] | tuple[Literal["min", "max"], int]] | None = None
    younger: timedelta | None = None


@dataclasses.dataclass(frozen=True)
class SaveReport:
    """What a save took on this rank.

    Attributes:
        step: the step.
        uri: where the index of the step is.
        bytes: body bytes that this rank sent, repeated ones included.
        requests: requests that it sent.
        retries: of these, those that repeated a failed one.
        slow_downs: answers that asked for fewer requests.
        latency: how long the answers to them took to begin.
        seconds: from the call to the end of the commit and of the retention.
        stall_seconds: of these, how long the caller waited.
        reused: with ``incremental=True``, what this rank did not send because an earlier step has it: ``files``,
            ``items`` and ``bytes``.
    """

    step: int
    uri: str
    bytes: int
    requests: int
    retries: int
    slow_downs: int
    latency: Latency
    seconds: float
    stall_seconds: float
    reused: Reused = dataclasses.field(default_factory=Reused)

    def __str__(self) -> str:
        speed = self.bytes / max(self.seconds, 1e-9) / (1 << 30)
        return (
            f"step {self.step}: {self.bytes / (1 << 30):.2f} GiB in {self.seconds:.1f} s ({speed:.2f} GiB/s), "
            f"stalled for {self.stall_seconds:.2f} s, {self.requests} requests ({self.latency}), "
            f"{self.retries} retries, {self.slow_downs} SlowDowns"
            + (f", {self.reused.bytes / (1 << 30):.2f} GiB reused" if self.reused.items else "")
        )


class CheckpointManager:
    """Saves, restores and keeps the checkpoints of one training on one path::

        with CheckpointManager("s3://bucket/run", keep=Keep(last=3), async_=True) as manager:
            found = manager.restore(state)
            for step in range(found.step + 1 if found else 0, steps):
                train(state)
                if step % 100 == 0:
                    manager.save(step, state, metrics={"loss": loss})

    Every step is an epoch of the path: its index is at ``<uri>/epoch_<step>/.metadata``, its shard files are on the key
    prefixes of `strategy`, which are the same at every step, and ``<uri>/.metadata`` is the step that was committed
    last.
    All ranks make a manager and call its methods together, as they do ``dcp.save``.

    One manager at a time writes to a path: rank 0 takes it at the first save and gives it up in `close`. Another
    manager is refused as long as this one is alive. Where one was killed, the next waits for three beats before it
    takes over.

    Args:
        uri: the path, ``s3://bucket/run``.
        strategy: rank to key prefix; `HexPrefixStrategy` when None. It has an ``epoch_num``, which the manager sets.
        keep: which checkpoints stay after every save; None keeps all.
        async_: save while training goes on: `save` returns as soon as the state is staged, and `wait` tells how it
            went. The copy that is staged, as large as the state, is kept for the next save. A group of processes needs
            a backend for CPUs then.
        region: AWS region of the bucket; None takes it from the environment or profile.
        endpoint_url: S3 endpoint; None for ``AWS_ENDPOINT_URL_S3``, ``AWS_ENDPOINT_URL``, the profile, else AWS.
        s3client_config: settings of the S3 client.
        process_group: the ranks that save; None for all.
        beat_seconds: time between two signs of life of the writer.
        split_replicated: whether ranks that have all of a large tensor each write some of it: see `FastSavePlanner`.
        writer: further arguments of `S3StorageWriter`, such as ``thread_count`` or ``incremental``.

    Raises:
        ConfigError: an argument cannot work; the message names it.
    """

    def __init__(
        self,
        uri: str,
        *,
        strategy: S3PrefixStrategyBase | None = None,
        keep: Keep | None = None,
        async_: bool = False,
        region: str | None = None,
        endpoint_url: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        process_group: dist.ProcessGroup | None = None,
        beat_seconds: float = _native.LEASE_BEAT_SECONDS,
        split_replicated: bool | int = False,
        **writer: Any,
    ) -> None:
        self.uri = uri
        self.keep = keep
        self.async_ = async_
        self._group = process_group
        self._beat_seconds = beat_seconds
        split_from(split_replicated)
        self._split_replicated = split_replicated
        self._client_settings: dict[str, Any] = {
            "region": region,
            "endpoint_url": endpoint_url,
            "s3client_config": s3client_config,
        }
        strategy = HexPrefixStrategy() if strategy is None else strategy
        if not hasattr(strategy, "epoch_num"):
            raise ConfigError(f"strategy={strategy!r}: has no epoch_num, which is set to the step")
        if keep == Keep():
            raise ConfigError("keep: has no rule; None keeps all")
        for name in ("overwrite", "step_folders", "notes", "path", "prefix_strategy"):
            if name in writer:
                raise ConfigError(f"{name}: the manager sets it")
        writer.setdefault("cache_staged_state_dict", async_)
        self._writer = S3StorageWriter(
            path=uri, prefix_strategy=strategy, overwrite=True, **self._client_settings, **writer
        )
        self._lease: _native.WriterLease | None = None
        self._pending: Future[SaveReport] | None = None
        self._threads = ThreadPoolExecutor(1, "s3dcp-manager") if async_ else None
        self._closed = False

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Future[SaveReport]:
        """Save `state` as this step, commit it, and delete what `keep` does not keep.

        Args:
            step: its number, at least 0. One that was saved before is replaced.
            state: as for ``dcp.save``.
            metrics: numbers that ``Keep(best=…)`` judges by, such as ``{"loss": 2.1}``.
            notes: what else to find again without loading, as a dict that JSON can hold.

        Returns:
            What the save took. With ``async_`` it is there once the save has ended.

        Raises:
            AlreadyExists: another manager writes to the path.
            Conflict: another manager has taken the path over.
            S3DcpError: this save failed; with ``async_``, the one before.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ConfigError(f"step={step!r}: must be an integer of at least 0")
        if self._closed:
            raise ConfigError("the manager is closed")
        began = time.monotonic()
        if self.async_:
            self._writer._awaited_since = time.time_ns()
        self.wait()
        self._hold()
        self._writer.prefix_strategy.epoch_num = step  # type: ignore[attr-defined]
        self._writer.notes = {**(notes or {}), "step": step, **({"metrics": dict(metrics)} if metrics else {})}
        meter = UsageMeter(self._writer.fs.client)
        alone = _alone(async_save if self.async_ else save)
        planner = FastSavePlanner(split_replicated=self._split_replicated)
        how = {"planner": planner, "process_group": self._group, **alone}
        if not self.async_:
            save(dict(state), storage_writer=self._writer, **how)
            done: Future[SaveReport] = Future()
            done.set_result(self._finish(step, began, meter, None))
            return done
        saved = async_save(dict(state), storage_writer=self._writer, **how)
        stalled = time.monotonic() - began
        threads = cast(ThreadPoolExecutor, self._threads)

        def finish() -> SaveReport:
            cast("Future[None]", getattr(saved, "upload_completion", saved)).result()
            return self._finish(step, began, meter, stalled)

        self._pending = threads.submit(finish)
        return self._pending

    def wait(self) -> SaveReport | None:
        """Wait for the save under way: what it took, or None where there is none.

        Raises:
            S3DcpError: it failed.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending else None

    def latest(self) -> Checkpoint | None:
        """The complete checkpoint that was committed last; None where there is none."""
        found = self._on_first_rank(lambda: [each for each in self._list() if each.newest])
        return found[0] if found else None

    def restore(
        self, state: dict[str, Any], step: int | None = None, *, progress: bool | ProgressCallback = False
    ) -> Checkpoint | None:
        """Load a checkpoint into `state`, as ``dcp.load`` does.

        Args:
            state: what to load, in place.
            step: which; None for the complete one that was committed last.
            progress: as for `S3StorageReader`.

        Returns:
            The checkpoint, with its ``step`` and ``notes``; None where there is none yet and `step` is None.

        Raises:
            NotFound: there is no complete checkpoint of this step.
        """
        self.wait()
        if step is None:
            found = self.latest()
            if found is None:
                return None
        else:
            several = self._on_first_rank(
                lambda: [each for each in self._list() if each.step == step and each.complete]
            )
            if not several:
                raise NotFound(f"step={step}: there is no complete checkpoint of it below {self.uri}")
            found = several[0]
        reader = S3StorageReader(path=found.uri, progress=progress, **self._client_settings)
        load(state, storage_reader=reader, planner=FastLoadPlanner(), process_group=self._group, **_alone(load))
        return found

    def __iter__(self) -> Iterator[Checkpoint]:
        """The checkpoints, by step."""
        return iter(self._on_first_rank(self._list))

    def close(self) -> None:
        """Wait for the save under way, and let others write to the path. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._writer._host_copy.free()
            if self._threads:
                self._threads.shutdown()
            if self._lease:
                self._lease.release()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _list(self) -> list[Checkpoint]:
        prefix = f"{self.uri.rstrip('/')}/epoch_"
        return [each for each in list_checkpoints(self.uri, **self._client_settings) if each.uri.startswith(prefix)]

    def _hold(self) -> None:
        """See that this manager is the one that writes to the path."""

        def hold() -> None:
            if self._lease is None:
                who = f"{socket.gethostname()} process {os.getpid()}"
                bucket, path_key = split_path(self.uri)
                client = self._writer.fs.client
                self._lease = _native.WriterLease(client, bucket, path_key, who, self._beat_seconds)
            self._lease.check()

        self._on_first_rank(hold)

    def _on_first_rank(self, step: Callable[[], Result]) -> Result:
        return on_first_rank(step, self._group)

    def _finish(self, step: int, began: float, meter: UsageMeter, stalled: float | None) -> SaveReport:
        """What comes after the commit: the retention, on rank 0, and the report."""
        if self.keep is not None and this_rank(self._group) == 0:
            retention = keep(self.uri, delete=True, **vars(self.keep), **self._client_settings)
            for failure in retention.failed:
                logger.warning(failure)
        used = meter.read()
        seconds = time.monotonic() - began
        report = SaveReport(
            step=step,
            uri=f"{self.uri.rstrip('/')}/epoch_{step}",
            bytes=used.bytes_sent,
            requests=used.requests,
            retries=used.retries,
            slow_downs=used.slow_downs,
            latency=used.latency,
            seconds=seconds,
            stall_seconds=seconds if stalled is None else stalled,
            reused=self._writer.reused,
        )
        logger.info("%s", report)
        return report


def _alone(function: Callable[..., Any]) -> dict[str, Any]:
    """What tells a function of torch that there are no other ranks, which it would warn of."""
    return {"no_dist": True} if takes_no_dist(function) and not is_distributed() else {}
