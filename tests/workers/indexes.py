"""Indexes taken apart and put together by hand."""

from __future__ import annotations

import io
import pickle
from typing import Any


def pickle_length(body: bytes) -> int:
    """Bytes of the pickle at the start of an index; the rest is its trailer."""
    stream = io.BytesIO(body)
    pickle.load(stream)
    return stream.tell()


def without_checksums(body: bytes) -> Any:
    """The metadata of an index without what only our own have, as other writers make them."""
    metadata = pickle.loads(body)
    for info in metadata.storage_data.values():
        for name in ("crc32", "data_offset"):
            vars(info).pop(name, None)
    vars(metadata.storage_meta).pop("s3dcp", None)
    return metadata


class Calls:
    """Pickles as a call of `function` with `arguments`, which a careless reader makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments
