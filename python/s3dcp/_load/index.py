"""Reading a checkpoint's index without running anything it says.

The native module walks every opcode of the pickle first: only known opcodes, only allow-listed globals, bounded
lengths and memo, and what comes out must be a checkpoint's metadata. What passes is unpickled here, again by an
allow-list; the entries of a large index when they are asked for (`entries.py`).
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from .. import _native
from .._gc import GcPause
from .._ranks import ranks_on_node
from ..errors import Corrupt
from .entries import Entries, Values

# The length from which entries are unpickled one by one, in bytes: an index of some ten thousand items.
LARGE_INDEX_BYTES = 1 << 20

SHARED_MEMORY = "/dev/shm"


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


def node_folder() -> str | None:
    """Where the ranks of this node have one copy of a large index; None where it is for one rank alone.

    It is in memory, and belongs to the user.
    """
    if ranks_on_node() < 2 or not os.path.isdir(SHARED_MEMORY):
        return None
    return f"{SHARED_MEMORY}/s3dcp-{os.geteuid()}"


def read_index(index: _native.StoredIndex, where: str, extra_globals: frozenset[tuple[str, str]]) -> Metadata:
    """What `index` says, read from `where` (for messages).

    Raises:
        Corrupt: damaged, not an index, or it names what the allow-list does not hold.
    """
    if extra_globals or len(index) < LARGE_INDEX_BYTES:
        index.check(where, sorted(extra_globals))
    elif index.check_and_outline(where):
        return _outlined(index, where)
    body = index.body()
    del index
    return unpickled(body, where, extra_globals)


def _outlined(index: _native.StoredIndex, where: str) -> Metadata:
    """The index, whose entries are unpickled when they are asked for."""
    metadata = unpickled(index.frame(), where, frozenset())
    values = Values(index, Unpickling(where, frozenset()).load)
    for mapping, name in enumerate(_native.MAPPINGS):
        if index.count(mapping) != 0 and type(getattr(metadata, name)) is dict:
            setattr(metadata, name, Entries.of(values, mapping))
    return metadata


def unpickled(body: bytes, where: str, extra_globals: frozenset[tuple[str, str]]) -> Metadata:
    """What the pickle of an index says, which has been checked."""
    metadata = Unpickling(where, extra_globals).load(body)
    if not isinstance(metadata, Metadata):
        raise Corrupt(f"{where}: the index is malformed: it is a {type(metadata).__name__}")
    if not isinstance(getattr(metadata, "state_dict_metadata", None), dict):
        raise Corrupt(f"{where}: the index is malformed: state_dict_metadata is not a dict")
    return metadata


class Unpickling:
    """Unpickles what an index says, by the allow-list.

    Args:
        where: where it was read, for messages.
        extra_globals: what may be named besides the list.
    """

    def __init__(self, where: str, extra_globals: frozenset[tuple[str, str]]) -> None:
        self._where = where
        self._allowed = _native.default_globals() | extra_globals

    def load(self, body: bytes, persistent: Callable[[Any], Any] | None = None) -> Any:
        """What a pickle says; `persistent` makes the persistent objects in it.

        Raises:
            Corrupt: it cannot be unpickled, or names what the list does not hold.
        """
        # BytesIO shares the memory of bytes; the unpickler stops where the pickle does.
        unpickler = _Unpickler(io.BytesIO(body), self._allowed, persistent)
        try:
            if len(body) < LARGE_INDEX_BYTES:
                return unpickler.load()
            with GcPause(old_at_once=True):
                return unpickler.load()
        except Exception as error:
            raise Corrupt(f"{self._where}: the index cannot be read: {type(error).__name__}: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: io.BytesIO, allowed: frozenset[tuple[str, str]], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(file)
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"global {module}.{name} is not allowed (allowed_globals= may add it)")
        return super().find_class(module, name)

    def persistent_load(self, number: Any) -> Any:
        if self._persistent is None:
            raise pickle.UnpicklingError("a persistent id")
        return self._persistent(number)


def index_facts(metadata: Metadata) -> dict[str, Any]:
    """What our writer noted in the index: ``format``, ``ranks`` and ``epoch``; empty for a foreign index."""
    facts = getattr(getattr(metadata, "storage_meta", None), "s3dcp", None)
    return facts if isinstance(facts, dict) else {}
