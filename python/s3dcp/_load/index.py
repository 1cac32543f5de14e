"""Reading a checkpoint's index without running anything it says.

The native module walks every opcode of the pickle first: only known opcodes, only allow-listed globals, bounded
lengths and memo, and what comes out must be a checkpoint's metadata. What passes is unpickled here, again by an
allow-list.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from .. import _native
from .._gc import GcPause
from ..errors import Corrupt


def allowed_global_names(extra: Iterable[str | type]) -> frozenset[tuple[str, str]]:
    """`extra` classes, or their names as ``"package.module.Name"``, as (module, name) pairs.

    Raises:
        ValueError: an entry is neither.
    """
    names = set()
    for entry in extra:
        if isinstance(entry, type):
            names.add((entry.__module__, entry.__qualname__))
        elif isinstance(entry, str) and "." in entry:
            module, _, name = entry.rpartition(".")
            names.add((module, name))
        else:
            raise ValueError(f"allowed_globals={entry!r}: must be classes or names like 'package.module.Name'")
    return frozenset(names)


def read_index(body: bytes, where: str, extra_globals: frozenset[tuple[str, str]]) -> Metadata:
    """The index in `body`, read from `where` (for messages).

    Raises:
        Corrupt: damaged, not an index, or it names what the allow-list does not hold.
    """
    _native.check_index(body, where, sorted(extra_globals))
    return unpickled(body, where, extra_globals)


def unpickled(body: bytes, where: str, extra_globals: frozenset[tuple[str, str]]) -> Metadata:
    """The same without the walk before."""
    try:
        with GcPause(old_at_once=True):
            # BytesIO shares the memory of bytes; the unpickler stops where the pickle does.
            metadata = _Unpickler(io.BytesIO(body), extra_globals).load()
    except Exception as error:
        raise Corrupt(f"{where}: the index cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(metadata, Metadata):
        raise Corrupt(f"{where}: the index is malformed: it is a {type(metadata).__name__}")
    if not isinstance(getattr(metadata, "state_dict_metadata", None), dict):
        raise Corrupt(f"{where}: the index is malformed: state_dict_metadata is not a dict")
    return metadata


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, extra_globals: frozenset[tuple[str, str]]) -> None:
        super().__init__(file)
        self._allowed = _native.default_globals() | extra_globals

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"global {module}.{name} is not allowed (allowed_globals= may add it)")
        return super().find_class(module, name)


def index_facts(metadata: Metadata) -> dict[str, Any]:
    """What our writer noted in the index: ``format``, ``ranks`` and ``epoch``; empty for a foreign index."""
    facts = getattr(getattr(metadata, "storage_meta", None), "s3dcp", None)
    return facts if isinstance(facts, dict) else {}
