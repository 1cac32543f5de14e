"""Names of dtypes: torch's (as the native module knows them) and those of the safetensors format."""

from __future__ import annotations

import torch

from . import _native

_SAFETENSORS = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}

SAFETENSORS_NAMES: dict[torch.dtype, str] = {
    getattr(torch, name): code for name, code in _SAFETENSORS.items() if hasattr(torch, name)
}
SAFETENSORS_DTYPES: dict[str, torch.dtype] = {code: dtype for dtype, code in SAFETENSORS_NAMES.items()}

# Tensors of other dtypes are serialised by torch itself.
NATIVE: dict[torch.dtype, str] = {
    getattr(torch, name): name for name in sorted(_native.dtype_names()) if hasattr(torch, name)
}
