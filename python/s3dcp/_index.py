"""Reading a checkpoint's index without running anything it says.

The native module walks every opcode of the pickle first: only known opcodes, only allow-listed globals, bounded
lengths and memo. What passes is unpickled here, again by an allow-list, and its parts are checked.
"""

from __future__ import annotations

import gc
import io
import pickle
from collections.abc import Iterable
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta

from . import _native
from .errors import Corrupt


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
    end, sealed = _native.open_index(body, where, sorted(extra_globals))
    collecting = gc.isenabled()
    gc.disable()
    try:
        metadata: Any = _Unpickler(io.BytesIO(memoryview(body)[:end]), extra_globals).load()
    except Exception as error:
        raise Corrupt(f"{where}: the index cannot be read: {type(error).__name__}: {error}") from error
    finally:
        if collecting:
            gc.enable()
    return _checked(metadata, where, sealed)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, extra_globals: frozenset[tuple[str, str]]) -> None:
        super().__init__(file)
        self._allowed = _native.default_globals() | extra_globals

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"global {module}.{name} is not allowed")
        return super().find_class(module, name)


def _checked(metadata: Any, where: str, sealed: bool) -> Metadata:
    """`metadata` itself, seen to be an index."""

    def require(ok: bool, what: str) -> None:
        if not ok:
            raise Corrupt(f"{where}: the index is malformed: {what}")

    require(isinstance(metadata, Metadata), f"it holds {type(metadata).__name__}, not Metadata")
    require(isinstance(metadata.state_dict_metadata, dict), "state_dict_metadata is not a dict")
    require(isinstance(metadata.storage_data, dict), "storage_data is not a dict")
    has_checksums = False
    for index, info in metadata.storage_data.items():
        fields = getattr(info, "__dict__", {})
        if not (
            isinstance(index, MetadataIndex)
            and isinstance(fields.get("relative_path"), str)
            and _is_size(fields.get("offset"))
            and _is_size(fields.get("length"))
        ):
            require(False, f"entry {getattr(index, 'fqn', index)!r} of storage_data")
        has_checksums = has_checksums or "crc32" in fields
    require(sealed or not has_checksums, "its trailer is missing, so it was cut short or changed")
    meta = getattr(metadata, "storage_meta", None)
    require(meta is None or isinstance(meta, StorageMeta), "storage_meta")
    assert isinstance(metadata, Metadata)
    return metadata


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def index_facts(metadata: Metadata) -> dict[str, Any]:
    """What our writer noted in the index: ``format``, ``ranks`` and ``epoch``; empty for a foreign index."""
    facts = getattr(getattr(metadata, "storage_meta", None), "s3dcp", None)
    return facts if isinstance(facts, dict) else {}
