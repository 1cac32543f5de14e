"""Indexes taken apart and put together by hand."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
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


def sealed(metadata: Any) -> bytes:
    """An index of `metadata` with a trailer, as our own have it."""
    body = pickle.dumps(metadata, 4)
    return body + b"S3DCPIDX" + struct.pack("<QI", len(body), zlib.crc32(body))


class Calls:
    """Pickles as a call of `function` with `arguments`, which a careless reader makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function = function
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments
