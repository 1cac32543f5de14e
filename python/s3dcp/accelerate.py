"""``import s3dcp.accelerate`` makes ``Accelerator`` save to and load from ``s3://``.

accelerate writes local files, and makes a folder ``s3:`` of an S3 URI. From the import on `Accelerator.save_state`,
``load_state``, ``save_model`` and ``save`` take one: what accelerate writes into a staging directory goes up, and what
it reads is fetched into one. A state is complete with the random numbers of rank 0, which go up last. With
``automatic_checkpoint_naming`` and a ``project_dir`` on S3, accelerate's own rules say which states are kept. Settings
are those of `s3dcp.configure`.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from . import _staging
from ._remote import is_on_s3
from ._staging import RemoteFolder, extend, together, told_by_first

__all__: list[str] = []

MARKER = "random_states_0.pkl"
_CHECKPOINT = re.compile(r"checkpoint_(\d+)")


def _save_state(accelerates: Any, self: Any, output_dir: Any = None, *args: Any, **kwargs: Any) -> Any:
    project = self.project_configuration
    if project.automatic_checkpoint_naming:
        if not is_on_s3(self.project_dir, "project_dir"):
            return accelerates(self, output_dir, *args, **kwargs)
        return _save_named(accelerates, self, *args, **kwargs)
    if not is_on_s3(output_dir, "output_dir"):
        return accelerates(self, output_dir, *args, **kwargs)
    with _staging.directory() as local:
        accelerates(self, os.fspath(local), *args, **kwargs)
        _staging.push(RemoteFolder(os.fspath(output_dir), MARKER), local)
    return output_dir


def _save_named(accelerates: Any, self: Any, *args: Any, **kwargs: Any) -> str:
    """A save whose name and predecessors accelerate sees to: empty folders stand for those on S3."""
    project, uri = self.project_configuration, os.fspath(self.project_dir)
    folder = RemoteFolder(uri, MARKER).below("checkpoints")
    there = told_by_first(lambda: _complete(folder))
    name = f"checkpoint_{self.save_iteration}"
    if name in there:
        raise ValueError(
            f"{folder.uri}/{name} already exists: set project_configuration.iteration to the iteration to go on with"
        )
    with _staging.directory() as local:
        stand_ins = local / "checkpoints"

        def stand_in() -> None:
            if _staging.is_first_of_node():
                stand_ins.mkdir()
                for each in there:
                    (stand_ins / each).mkdir()

        together(stand_in)
        project.project_dir = os.fspath(local)
        try:
            accelerates(self, None, *args, **kwargs)
        finally:
            project.project_dir = uri
        _staging.push(folder.below(name), stand_ins / name)

        def delete_what_accelerate_did() -> None:
            if _staging.is_first():
                for each in there:
                    if not (stand_ins / each).is_dir():
                        folder.below(each).delete()

        together(delete_what_accelerate_did)
    return f"{folder.uri}/{name}"


def _load_state(accelerates: Any, self: Any, input_dir: Any = None, *args: Any, **kwargs: Any) -> Any:
    if input_dir is None and self.project_configuration.automatic_checkpoint_naming:
        if not is_on_s3(self.project_dir, "project_dir"):
            return accelerates(self, input_dir, *args, **kwargs)
        checkpoints = RemoteFolder(os.fspath(self.project_dir), MARKER).below("checkpoints")
        there = told_by_first(lambda: _complete(checkpoints))
        if not there:
            raise FileNotFoundError(f"no complete checkpoint in {checkpoints.uri}")
        folder = checkpoints.below(there[-1])
    elif is_on_s3(input_dir, "input_dir"):
        folder = RemoteFolder(os.fspath(input_dir), MARKER)
    else:
        return accelerates(self, input_dir, *args, **kwargs)
    told_by_first(folder.require_complete)
    with _staging.directory() as local:
        together(lambda: folder.download(local) if _staging.is_first_of_node() else None)
        loaded = accelerates(self, os.fspath(local), *args, **kwargs)
        together(lambda: None)  # nobody still reads what is deleted now
    return loaded


def _complete(folder: RemoteFolder) -> list[str]:
    """The names of complete states, the newest last."""
    names = [name for name in folder.folders() if _CHECKPOINT.fullmatch(name) and folder.below(name).is_complete()]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _save_model(accelerates: Any, self: Any, model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_on_s3(save_directory, "save_directory"):
        return accelerates(self, model, save_directory, *args, **kwargs)
    with tempfile.TemporaryDirectory(prefix="s3dcp-") as local:
        accelerates(self, model, local, *args, **kwargs)
        _staging.push_model(RemoteFolder(os.fspath(save_directory)), Path(local))
    return None


def _save(accelerates: Any, self: Any, obj: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_on_s3(f, "f"):
        return accelerates(self, obj, f, *args, **kwargs)
    folder, _, name = os.fspath(f).rpartition("/")
    with tempfile.TemporaryDirectory(prefix="s3dcp-") as local:
        accelerates(self, obj, os.path.join(local, name), *args, **kwargs)
        _staging.push_model(RemoteFolder(folder), Path(local))
    return None


for _name, _ours in {
    "save_state": _save_state,
    "load_state": _load_state,
    "save_model": _save_model,
    "save": _save,
}.items():
    extend(Accelerator, _name, _ours)
