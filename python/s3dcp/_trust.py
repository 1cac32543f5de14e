"""Which pickled objects are loaded without trust in the checkpoint: a rule for the writer, which warns, and the reader.

It is that of ``torch.load(weights_only=True)``, classes that the process named to torch included, and ``io.BytesIO``,
which is bytes and a position.
"""

from __future__ import annotations

import io
import threading
from typing import Any

import torch

WAY_OUT = (
    "S3StorageReader(..., weights_only=False), if you trust the checkpoint, or torch.serialization.safe_globals of the "
    "classes in it"
)

# torch's list of safe classes belongs to the process.
_lock = threading.Lock()


def safe_load(stream: io.BytesIO) -> Any:
    """What is pickled in `stream`, on the CPU, by torch's own rule.

    Raises:
        Exception: torch's, of whatever class, where the rule refuses it.
    """
    return torch.load(stream, map_location="cpu", weights_only=True)


def refusal(stream: io.BytesIO) -> Exception | None:
    """Why the object pickled in `stream` may not be loaded; None where it may. Leaves the stream at its start."""
    error = _refused(stream)
    if error is None:
        return None
    with _lock:
        if io.BytesIO in torch.serialization.get_safe_globals():
            return error
        with torch.serialization.safe_globals([io.BytesIO]):
            return _refused(stream)


def _refused(stream: io.BytesIO) -> Exception | None:
    stream.seek(0)
    try:
        safe_load(stream)
    except Exception as error:
        return error
    finally:
        stream.seek(0)
    return None
