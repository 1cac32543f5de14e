"""Tensors whose memory cannot go up as it is, copied into reused host buffers, a bounded number of rows at a time.

An upload holds a buffer until the part with its bytes is up, and a part goes up when it is full.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import _native
from .._tensors import host_buffer

BUFFER_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
ALIGNMENT = 64

_pool = _native.StagingPool(host_buffer, BUFFER_BYTES)


class Stager:
    """Copies tensors of one shard file, whose parts have `part_size` bytes, into buffers."""

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._current: tuple[torch.Tensor, _native.StagingBuffer] | None = None
        self._used = 0

    def staged(self, tensor: torch.Tensor) -> Iterator[tuple[_native.StagingBuffer, int, int]]:
        """Copy `tensor` in row-major order; yields buffer, start and bytes of each piece."""
        for rows in _row_blocks(tensor, CHUNK_BYTES):
            nbytes = rows.numel() * rows.element_size()
            start = -(-self._used // ALIGNMENT) * ALIGNMENT
            if self._current is None or start + nbytes > self._current[0].nbytes:
                self.close()
                taken, start = _pool.take(self._part_size), 0
                self._current = taken.memory, taken
            memory, buffer = self._current
            memory[start : start + nbytes].view(rows.dtype).view(rows.shape).copy_(rows)
            self._used = start + nbytes
            yield buffer, start, nbytes

    def close(self) -> None:
        """Let go of the buffer in use; what was written from it keeps it."""
        self._current, self._used = None, 0


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
