"""Names of dtypes: torch's (as the native module knows them) and those of the safetensors format."""

from __future__ import annotations

import torch

from . import _native

# Those that this torch has.
_DTYPES = [(getattr(torch, name), name, code) for name, code in _native.dtype_names().items() if hasattr(torch, name)]

NATIVE: dict[torch.dtype, str] = {dtype: name for dtype, name, _ in _DTYPES}
"""Tensors of other dtypes are serialised by torch itself."""

SAFETENSORS_NAMES: dict[torch.dtype, str] = {dtype: code for dtype, _, code in _DTYPES if code is not None}
