"""The head of a safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import torch

from ._dtypes import SAFETENSORS_NAMES
from .errors import shown

# torch's names in the metadata of a file: where its tensors lie in whole ones. Private there, and not in every release.
SHARDING_KEY = "DCP_SHARDING_INFO"
SAVED_OFFSETS_KEY = "saved_offsets"


def sharding_metadata(offsets: dict[str, list[int]]) -> dict[str, str]:
    """The metadata in which torch's writer notes where each tensor of a file begins in the whole one."""
    sharding = {name: {SAVED_OFFSETS_KEY: begin} for name, begin in offsets.items()}
    return {SHARDING_KEY: json.dumps(sharding), "DCP_VERSION": "1.0", "format": "pt"}


def file_header(tensors: Iterable[tuple[str, torch.dtype, Iterable[int]]], metadata: dict[str, str]) -> bytes:
    """The length-prefixed JSON header of a file with these tensors (name, dtype, shape), one behind the other.

    Raises:
        ValueError: safetensors has no name for a dtype.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    for name, dtype, sizes in tensors:
        if dtype not in SAFETENSORS_NAMES:
            raise ValueError(f"{shown(name)}: safetensors has no name for {dtype}")
        shape = list(sizes)
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAMES[dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
