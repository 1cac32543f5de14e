"""``import s3dcp.transformers`` makes ``Trainer`` work with ``output_dir="s3://…"``.

Trainer writes local files, and makes a folder ``s3:`` of an S3 URI. From the import on a ``Trainer``, or a subclass,
whose ``output_dir`` is on S3 works in a staging directory. Each checkpoint goes up when Trainer has written it, its
``trainer_state.json`` last, and its local files go. Empty folders stand for the checkpoints on S3, so that it is
Trainer who says which of them are kept and which is the best; files are fetched when Trainer is about to read them.
Whatever else lies in the directory goes up when training ends, and after `save_model`, `save_state` and `save_metrics`.
Settings are those of `s3dcp.configure`.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
import transformers.trainer_utils
from transformers.trainer import Trainer

from . import _staging
from ._remote import is_on_s3
from ._staging import RemoteFolder, extend, together, told_by_first

__all__ = ["get_last_checkpoint"]

MARKER = "trainer_state.json"
_ARGUMENTS = "training_args.bin"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Trainer deletes it when the checkpoint is written, which is after the files went up.
_IN_PROGRESS = "checkpoint-is-incomplete.txt"


class _Run:
    """The output folder of one Trainer.

    Args:
        uri: where it is.
        args: the Trainer's own copy of its arguments; they name the staging directory from now on.
    """

    def __init__(self, uri: str, args: Any) -> None:
        self.folder = RemoteFolder(uri, MARKER)
        self.local = _staging.new_directory()
        self._stand_ins: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}
        self._args = args
        args.output_dir = os.fspath(self.local)

    # -- checkpoints

    def begin(self, resume_from_checkpoint: Any) -> Any:
        """Stand-ins for what is on S3, and the local folder of the checkpoint to go on from.

        Raises:
            NotFound: the one that is asked for is not there, or not complete.
            ValueError: the last one is asked for, and there is none.
        """
        there = told_by_first(lambda: complete_checkpoints(self.folder))
        wanted, folder = resume_from_checkpoint, None
        if wanted is True:
            if not there:
                raise ValueError(f"resume_from_checkpoint=True: no complete checkpoint in {self.folder.uri}")
            wanted = f"{self.folder.uri}/{there[-1]}"
        if is_on_s3(wanted, "resume_from_checkpoint"):
            folder = RemoteFolder(os.fspath(wanted), MARKER)
            told_by_first(folder.require_complete)

        def stand_in() -> None:
            if _staging.is_first_of_node():
                for number, name in enumerate(there):
                    (self.local / name).mkdir(exist_ok=True)
                    os.utime(self.local / name, (number, number))

        together(stand_in)
        self._stand_ins.update(there)
        if folder is None:
            return wanted
        name = folder.uri.rpartition("/")[2]
        is_own = folder.uri == f"{self.folder.uri}/{name}"
        local = self.local / name if is_own else self.local / "resumed" / name
        self.fetch(folder, local)
        return os.fspath(local)

    def fetch(self, folder: RemoteFolder, local: Path) -> None:
        """Fetch a checkpoint; all ranks call it."""

        def download() -> None:
            if _staging.is_first_of_node():
                times = local.stat() if local.is_dir() else None
                folder.download(local)
                _rewrite(local / MARKER, self.folder.uri, os.fspath(self.local))
                if times is not None:
                    os.utime(local, (times.st_atime, times.st_mtime))

        together(download)

    @contextmanager
    def fetched(self, path: str) -> Iterator[None]:
        """Has the files of a checkpoint here for a while, where they are not."""
        local = Path(path)
        if self.local not in local.parents or told_by_first(lambda: any(local.iterdir())):
            yield
            return
        self.fetch(self.folder.below(local.relative_to(self.local).as_posix()), local)
        yield
        together(lambda: None)
        if _staging.is_first_of_node():
            _staging.empty(local)

    def push(self, name: str) -> None:
        """Put the checkpoint that Trainer has written, and delete those that it has deleted; all ranks call it."""
        local = self.local / name

        def finish() -> None:
            if _staging.is_first():
                _rewrite(local / MARKER, os.fspath(self.local), self.folder.uri)
                self._rewrite_arguments(local / _ARGUMENTS)

        together(finish)
        _staging.push(self.folder.below(name), local, [_IN_PROGRESS])
        self._stand_ins.add(name)
        self.let_go()
        self.delete_what_trainer_did()

    def let_go(self) -> None:
        """Leave stand-ins of the checkpoints, without files."""
        if _staging.is_first_of_node():
            for name in self._stand_ins:
                local = self.local / name
                if local.is_dir():
                    times = local.stat()
                    _staging.empty(local)
                    os.utime(local, (times.st_atime, times.st_mtime))
            shutil.rmtree(self.local / "resumed", ignore_errors=True)

    def delete_what_trainer_did(self) -> None:
        """Delete checkpoints on S3 whose stand-ins are gone; all ranks call it."""

        def delete() -> None:
            if _staging.is_first():
                for name in sorted(self._stand_ins):
                    if not (self.local / name).is_dir():
                        self.folder.below(name).delete()
                        self._stand_ins.discard(name)

        together(delete)

    # -- all else

    def push_others(self) -> None:
        """Put what is new of all that is no checkpoint; who writes no files sends none."""
        if not _staging.is_first_of_node():
            return
        new = {}
        for name in _staging.files_in(self.local):
            if any(_CHECKPOINT.fullmatch(part) for part in name.split("/")) or name.startswith("resumed/"):
                continue
            status = (self.local / name).stat()
            if self._sent.get(name) != (status.st_mtime_ns, status.st_size):
                new[name] = status
        for name in new:
            if name == MARKER:
                _rewrite(self.local / name, os.fspath(self.local), self.folder.uri)
            elif name == _ARGUMENTS:
                self._rewrite_arguments(self.local / name)
        last = [name for name in new if name.endswith(".index.json")]
        self.folder.upload(self.local, [name for name in new if name not in last])
        self.folder.upload(self.local, last)
        for name in new:
            status = (self.local / name).stat()
            self._sent[name] = status.st_mtime_ns, status.st_size

    def _rewrite_arguments(self, file: Path) -> None:
        if file.is_file():
            args = copy.copy(self._args)
            args.output_dir = self.folder.uri
            torch.save(args, file)


def complete_checkpoints(folder: RemoteFolder) -> list[str]:
    """The names of complete checkpoints in an output folder, the newest last."""
    names = [name for name in folder.folders() if _CHECKPOINT.fullmatch(name) and folder.below(name).is_complete()]
    return sorted(names, key=lambda name: int(name.rpartition("-")[2]))


def _rewrite(file: Path, old: str, new: str) -> None:
    """Have a ``trainer_state.json`` name its best checkpoint where it is."""
    if not file.is_file():
        return
    state = json.loads(file.read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if isinstance(best, str) and best.startswith(f"{old}/"):
        state["best_model_checkpoint"] = new + best.removeprefix(old)
        file.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# -- what Trainer does instead


def _run_of(trainer: Any) -> _Run | None:
    run: _Run | None = trainer.__dict__.get("_s3dcp_run")
    return run


def _init(trainers: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    given = inspect.signature(trainers).bind(self, *args, **kwargs)
    arguments = given.arguments.get("args")
    if not is_on_s3(getattr(arguments, "output_dir", None), "output_dir"):
        trainers(self, *args, **kwargs)
        return
    assert arguments is not None
    _ = arguments.device  # from here on accelerate knows the ranks
    given.arguments["args"] = own = copy.copy(arguments)
    self._s3dcp_run = run = _Run(os.fspath(own.output_dir), own)
    if _staging.is_first_of_node():
        weakref.finalize(self, _staging.remove_directory, run.local)
    trainers(*given.args, **given.kwargs)


def _train(trainers: Any, self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
    run = _run_of(self)
    if run is None:
        if not is_on_s3(resume_from_checkpoint, "resume_from_checkpoint"):
            return trainers(self, resume_from_checkpoint, *args, **kwargs)
        folder = RemoteFolder(os.fspath(resume_from_checkpoint), MARKER)
        told_by_first(folder.require_complete)
        with _staging.directory() as local:
            together(lambda: folder.download(local) if _staging.is_first_of_node() else None)
            return trainers(self, os.fspath(local), *args, **kwargs)
    trained = trainers(self, run.begin(resume_from_checkpoint), *args, **kwargs)
    run.let_go()
    run.delete_what_trainer_did()
    together(run.push_others)
    return trained


def _save_checkpoint(trainers: Any, self: Any, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
    trainers(self, model, trial, *args, **kwargs)
    if run := _run_of(self):
        written = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        run.push(written.relative_to(run.local).as_posix())


def _load_best_model(trainers: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    if run := _run_of(self):
        with run.fetched(self.state.best_model_checkpoint):
            return trainers(self, *args, **kwargs)
    return trainers(self, *args, **kwargs)


def _save_model(trainers: Any, self: Any, output_dir: Any = None, *args: Any, **kwargs: Any) -> Any:
    run = _run_of(self)
    is_internal = kwargs.get("_internal_call", args[0] if args else False)
    if is_on_s3(output_dir, "output_dir"):
        with tempfile.TemporaryDirectory(prefix="s3dcp-") as local:
            saved = trainers(self, local, *args, **kwargs)
            _staging.push_model(RemoteFolder(os.fspath(output_dir)), Path(local))
        return saved
    saved = trainers(self, output_dir, *args, **kwargs)
    if run is not None and not is_internal:
        run.push_others()
    return saved


def _then_push(trainers: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    done = trainers(self, *args, **kwargs)
    if run := _run_of(self):
        run.push_others()
    return done


def get_last_checkpoint(folder: Any) -> str | None:
    """The newest complete checkpoint in an output folder, local or on S3; None where there is none.

    From the import on it is ``transformers.trainer_utils.get_last_checkpoint`` too.

    Args:
        folder: an S3 URI, or a local path for the function of transformers.

    Raises:
        ConfigError: `folder` begins as an S3 URI and is none.
    """
    if not is_on_s3(folder, "folder"):
        local: str | None = _local_last_checkpoint(folder)
        return local
    remote = RemoteFolder(os.fspath(folder), MARKER)
    names = complete_checkpoints(remote)
    return f"{remote.uri}/{names[-1]}" if names else None


for _name, _ours in {
    "__init__": _init,
    "train": _train,
    "_save_checkpoint": _save_checkpoint,
    "_load_best_model": _load_best_model,
    "save_model": _save_model,
    "save_state": _then_push,
    "save_metrics": _then_push,
}.items():
    if not hasattr(Trainer, _name):
        raise ImportError(f"transformers {transformers.__version__}: its Trainer has no {_name}, which s3dcp extends")
    extend(Trainer, _name, _ours)
_local_last_checkpoint = transformers.trainer_utils.get_last_checkpoint
transformers.trainer_utils.get_last_checkpoint = get_last_checkpoint
