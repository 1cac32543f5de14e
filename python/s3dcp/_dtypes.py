"""Names of dtypes: torch's (as the native module knows them) and those of the safetensors format."""

from __future__ import annotations

import torch

from . import _native

_NAMES = {
    getattr(torch, name): (name, code) for name, code in sorted(_native.dtype_names().items()) if hasattr(torch, name)
}

# Tensors of other dtypes are serialised by torch itself.
NATIVE: dict[torch.dtype, str] = {dtype: name for dtype, (name, _) in _NAMES.items()}

SAFETENSORS_NAMES: dict[torch.dtype, str] = {dtype: code for dtype, (_, code) in _NAMES.items() if code is not None}
