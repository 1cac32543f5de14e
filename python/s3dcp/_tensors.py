"""Kinds of tensors: which are plain, and of those, which can be read and written where they are."""

from __future__ import annotations

import torch

__all__ = ["PLAIN_TENSORS", "is_direct", "is_plain"]

PLAIN_TENSORS = frozenset({torch.Tensor, torch.nn.Parameter})
"""The types of plain tensors, exactly these: a subclass may be more than its elements."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether dtype, shape and elements are all there is to `tensor`: dense, not quantised, of no class of its own."""
    return (
        type(tensor) in PLAIN_TENSORS
        and tensor.layout is torch.strided
        and not tensor.is_quantized
        and not tensor.is_meta
    )


def is_direct(tensor: torch.Tensor) -> bool:
    """Whether the elements of a plain tensor lie in host memory as they are: at ``data_ptr()``, by its strides."""
    return tensor.is_cpu and not tensor.is_conj() and not tensor.is_neg() and _has_memory(tensor)


def _has_memory(tensor: torch.Tensor) -> bool:
    """Whether the elements are where the tensor says: those of ``torch.func`` and functionalisation wrap others."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:
        return False
