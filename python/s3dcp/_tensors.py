"""Kinds of tensors: plain ones, those of them to read and write where they are, and host memory for all others."""

from __future__ import annotations

import torch

__all__ = ["PLAIN_TENSORS", "host_buffer", "is_direct", "is_plain"]

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
    """Whether the elements of a plain tensor lie in host memory as they are: at ``data_ptr()``, by its strides.

    Those of ``torch.func`` and functionalisation wrap others, which have the memory.
    """
    try:
        return (
            tensor.is_cpu
            and not tensor.is_conj()
            and not tensor.is_neg()
            and (tensor.data_ptr() != 0 or tensor.numel() == 0)
        )
    except RuntimeError:
        return False


def host_buffer(nbytes: int) -> torch.Tensor:
    """Host memory, pinned where there is a GPU; whatever the default device is."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=torch.cuda.is_available())
