"""What torch loads as it is imported, so that ``checkpoint_id="s3://…"`` is ours in every process.

torch calls `autoload` through the entry point ``torch.backends``, in scripts without an import of s3dcp and in spawned
processes too. Nothing is imported and nothing changes before ``torch.distributed.checkpoint`` is: then the one function
in which torch chooses a reader or writer for a path gets a second branch. No fault of s3dcp can break ``import torch``:
this module needs neither the native library nor torch, and lets no exception out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

VARIABLE = "S3DCP_AUTOLOAD"
FSSPEC_VARIABLE = "S3DCP_FSSPEC"
_OFF = ("0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")
_PACKAGE = "torch.distributed.checkpoint"
_CHOOSER = f"{_PACKAGE}._storage_utils"
_IMPORTERS = (f"{_PACKAGE}.state_dict_saver", f"{_PACKAGE}.state_dict_loader")
_FUNCTION = "_storage_setup"
_ARGUMENTS = ("storage", "checkpoint_id", "reader")


def autoload() -> None:
    """Do what `register` does, unless the variable ``S3DCP_AUTOLOAD`` is 0; raises nothing."""
    try:
        if os.environ.get(VARIABLE, "").strip().lower() not in _OFF:
            register()
    except Exception as error:
        _leave_alone(f"{type(error).__name__}: {error}")


def register() -> None:
    """Have ``torch.distributed.checkpoint`` use s3dcp for every ``checkpoint_id`` that begins with ``s3://``.

    torch calls this by itself where s3dcp is installed, unless the variable ``S3DCP_AUTOLOAD`` is 0. A second call
    changes nothing. Whoever passes a ``storage_writer`` or ``storage_reader`` gets that one.
    """
    chooser = sys.modules.get(_CHOOSER)
    if chooser is not None:
        _extend(chooser)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Sees torch's module being imported; for all others it is not there."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _CHOOSER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_extend(module: ModuleType) -> None:
                execute(module)
                try:
                    _extend(module)
                except Exception as error:
                    _leave_alone(f"{type(error).__name__}: {error}")

            spec.loader.exec_module = execute_and_extend  # type: ignore[method-assign]
        return spec


def _extend(chooser: ModuleType) -> None:
    """Give torch's function its second branch, where it is the function that is known."""
    torchs: Any = getattr(chooser, _FUNCTION, None)
    if hasattr(torchs, "s3dcp"):
        return
    code = getattr(torchs, "__code__", None)
    if code is None or code.co_varnames[: code.co_argcount] != _ARGUMENTS:
        _leave_alone(f"{_CHOOSER}.{_FUNCTION} is not as it was")
        return

    @functools.wraps(torchs)
    def storage_setup(storage: Any, checkpoint_id: Any, reader: bool = False) -> Any:
        if storage or not _is_on_s3(checkpoint_id):
            return torchs(storage, checkpoint_id, reader)
        from s3dcp.checkpoint_id import storage_for

        return storage_for(checkpoint_id, reader)

    storage_setup.s3dcp = True  # type: ignore[attr-defined]
    for module in (chooser, *filter(None, map(sys.modules.get, _IMPORTERS))):
        if getattr(module, _FUNCTION, None) is torchs:
            setattr(module, _FUNCTION, storage_setup)
    if os.environ.get(FSSPEC_VARIABLE, "").strip().lower() in _ON:
        import fsspec  # which torch has just imported

        fsspec.register_implementation("s3", "s3dcp.fsspec.S3FsspecFileSystem", clobber=True)


def _is_on_s3(checkpoint_id: Any) -> bool:
    """Whether it is an S3 URI, also one that pathlib took a slash from: that is refused, not a folder ``s3:``."""
    try:
        path = os.fspath(checkpoint_id)
    except TypeError:
        return False
    start = "s3://" if path is checkpoint_id else "s3:/"
    return isinstance(path, str) and path.startswith(start)


def _leave_alone(why: str) -> None:
    # A filter that turns warnings into errors must not break `import torch` either.
    with contextlib.suppress(Warning):
        warnings.warn(
            f's3dcp leaves torch alone, and checkpoint_id="s3://…" to torch: {why}. Pass a storage_writer and '
            f"storage_reader of s3dcp; {VARIABLE}=0 ends this warning",
            stacklevel=2,
        )
