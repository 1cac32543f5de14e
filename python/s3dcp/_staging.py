"""Reused host buffers for tensors whose memory cannot go up as it is.

A pool holds a few buffers, pinned where there is a GPU. A `Stager` copies the tensors of one shard file into them,
a bounded number of rows at a time and one close behind the other. An upload holds a buffer until the part with its
bytes is up, and a part goes up when it is full: the pool holds more than a part. Overlapping saves can still take
all buffers for parts of which none is full; a stager that finds no buffer free for a while uses one of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import torch

from . import _native

BUFFER_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
MIN_BUFFERS = 8
PATIENCE_SECONDS = 1.0
ALIGNMENT = 64


def host_buffer(nbytes: int) -> torch.Tensor:
    """Host memory, pinned where there is a GPU; whatever the default device is."""
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=torch.cuda.is_available())


class StagingPool:
    """`count` buffers of `BUFFER_BYTES`; `native` knows which are free."""

    def __init__(self, count: int) -> None:
        self.buffers = [host_buffer(BUFFER_BYTES) for _ in range(count)]
        self.native = _native.StagingPool([(buffer.data_ptr(), BUFFER_BYTES) for buffer in self.buffers], self.buffers)

    def take(self) -> tuple[torch.Tensor, _native.StagingBuffer]:
        """The memory of a free buffer, and what keeps it from being given to anyone else."""
        held = self.native.acquire(PATIENCE_SECONDS)
        return StagingPool(1).take() if held is None else (self.buffers[held.slot], held)


_pool: StagingPool | None = None
_lock = threading.Lock()


def staging_pool(part_size: int) -> StagingPool:
    """The process's pool, with room for two parts of `part_size` bytes and at least 32 MiB."""
    global _pool
    part_buffers = -(-part_size // (BUFFER_BYTES - CHUNK_BYTES)) + 1
    count = max(MIN_BUFFERS, 2 * part_buffers)
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
            if self._current is None or start + nbytes > BUFFER_BYTES:
                self.close()
                self._current, start = staging_pool(self._part_size).take(), 0
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
