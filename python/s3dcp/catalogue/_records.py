"""Records of native code, which come as JSON, as dataclasses."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from datetime import datetime
from typing import Any, TypeVar

_Record = TypeVar("_Record")


def record(kind: type[_Record], text: str) -> _Record:
    """A dataclass of a JSON object, and so on down its fields; what the object has not is None."""
    made: _Record = _made(kind, json.loads(text))
    return made


# What Python has another name for, as theirs are its keywords or say less.
_NAMES = {"source": "from", "target": "to"}


def _made(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is types.UnionType:
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if value is None:
        return None
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _made(each, value.get(_NAMES.get(name, name))) for name, each in kinds.items()})
    if kind is datetime:
        # Python 3.10 knows no Z.
        return datetime.fromisoformat(value.replace("Z", "+00:00"))
    if typing.get_origin(kind) is list:
        (each,) = typing.get_args(kind)
        return [_made(each, item) for item in value]
    return value
