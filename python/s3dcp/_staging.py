"""Reused host buffers for tensors whose memory cannot go up as it is.

A pool holds a few buffers, pinned where there is a GPU. `staged_chunks` copies a tensor into them a bounded number
of rows at a time; the native writer frees a buffer when the part that holds it is up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import torch

from . import _native

BUFFER_BYTES = 4 * 1024 * 1024
MIN_BUFFERS = 8


class StagingPool:
    """Buffers of `BUFFER_BYTES`; `native` knows which are free.

    Args:
        count: number of buffers; must hold more than one part, else a part could wait for itself.
    """

    def __init__(self, count: int) -> None:
        self.buffers = [
            torch.empty(BUFFER_BYTES, dtype=torch.uint8, pin_memory=torch.cuda.is_available()) for _ in range(count)
        ]
        self.native = _native.StagingPool([(buffer.data_ptr(), BUFFER_BYTES) for buffer in self.buffers], self.buffers)


_pool: StagingPool | None = None
_lock = threading.Lock()


def staging_pool(part_size: int) -> StagingPool:
    """The process's pool, with room for two parts of `part_size` bytes and at least 32 MiB."""
    global _pool
    count = max(MIN_BUFFERS, 2 * -(-part_size // BUFFER_BYTES) + 2)
    with _lock:
        if _pool is None or len(_pool.buffers) < count:
            _pool = StagingPool(count)
        return _pool


def _after_fork_in_child() -> None:
    """The parent's uploads hold its buffers: the child makes its own."""
    global _lock, _pool
    _lock = threading.Lock()
    _pool = None


os.register_at_fork(after_in_child=_after_fork_in_child)


def staged_chunks(tensor: torch.Tensor, pool: StagingPool) -> Iterator[tuple[int, int]]:
    """Copy `tensor` in row-major order into buffers of `pool`; yields (buffer number, bytes used) of each."""
    for rows in _row_blocks(tensor, BUFFER_BYTES):
        slot = pool.native.acquire()
        try:
            nbytes = rows.numel() * rows.element_size()
            pool.buffers[slot][:nbytes].view(rows.dtype).view(rows.shape).copy_(rows)
        except BaseException:
            pool.native.release(slot)
            raise
        yield slot, nbytes


def _row_blocks(tensor: torch.Tensor, max_bytes: int) -> Iterator[torch.Tensor]:
    """Views that cover `tensor` in row-major order, each of at most `max_bytes`."""
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0:
        return
    if nbytes <= max_bytes:
        yield tensor
        return
    row_bytes = nbytes // tensor.shape[0]
    if row_bytes > max_bytes:
        for row in tensor:
            yield from _row_blocks(row, max_bytes)
        return
    rows = max_bytes // row_bytes
    for first in range(0, tensor.shape[0], rows):
        yield tensor.narrow(0, first, min(rows, tensor.shape[0] - first))
