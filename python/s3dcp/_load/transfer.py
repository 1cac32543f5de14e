"""Batches of reads on their way, several at a time.

Reads whose bytes go straight to their place are sent in large batches. The others pass through slots: a few reused
buffers, pinned where there is a GPU, each with a batch of its own. While the bytes of one slot are moved on, those of
all others arrive.

torch does not see the native module write into a tensor, so it is told: after a load a tensor's version has moved as
after ``copy_``. It moves before the first byte does, so that a load that fails half-way cannot leave it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch.autograd.graph import increment_version

from .. import _native
from .._ranks import world_size
from .._tensors import host_buffer

SLOT_BYTES = _native.SLICE_BYTES
SLOTS = 10
# Native memory per read is a few hundred bytes.
BATCH_READS = 16_384
BATCHES = 2
ALIGNMENT = 64

Step = Callable[[], object]


class Transfer:
    """All downloads of one load.

    Args:
        client: the native client.
        bucket, path_key: where the index is.
        verify: compare with the checksums in the index.

    Attributes:
        load: to be used in a ``with`` block around all transfers; after it nothing is written any more.
    """

    def __init__(self, client: _native.Client, bucket: str, path_key: str, verify: bool) -> None:
        self.load = client.load(bucket, path_key, verify, world_size())
        self._wanted: list[_native._Wanted] = []
        self._targets: list[torch.Tensor] = []
        self._direct_running: deque[_native.Download] = deque()
        self._last_steps: list[Step] = []
        self._slot: torch.Tensor | None = None
        self._used = 0
        self._parts: list[_native._Wanted] = []
        self._steps: list[Step] = []
        self._running: deque[tuple[_native.Download, torch.Tensor, list[Step]]] = deque()
        self._free: list[torch.Tensor] = []
        self._slots = 0

    def finish(self) -> None:
        """Wait for everything and do all that waits for it."""
        self._send_direct()
        self._send_staged()
        while self._running:
            self._land()
        while self._direct_running:
            self._direct_running.popleft().wait()
        for step in self._last_steps:
            step()

    # -- straight to its place

    def direct(self, stored: _native.StoredItem, target: torch.Tensor, strides: Sequence[int] | None = None) -> None:
        """Read an item straight into the memory of `target`, by its strides where it is not contiguous.

        One without elements is noted too: torch counts a copy into it.
        """
        self._wanted.append((stored, target.data_ptr(), strides))
        self._targets.append(target)
        if len(self._targets) >= BATCH_READS:
            self._send_direct()

    def _send_direct(self) -> None:
        wanted, targets = self._wanted, self._targets
        if not wanted:
            return
        self._wanted, self._targets = [], []
        increment_version(targets)
        if len(self._direct_running) >= BATCHES:
            self._direct_running.popleft().wait()
        self._direct_running.append(self._download(wanted, targets))

    def _download(self, wanted: list[_native._Wanted], memory: object) -> _native.Download:
        return self.load.start(wanted, memory)

    def at_last(self, step: Step) -> None:
        """Do this when everything has arrived."""
        self._last_steps.append(step)

    # -- through a slot

    def stage(self, part: _native.ItemPart) -> torch.Tensor:
        """Memory that will hold `part` for a step that moves it on: some of a slot, or for more its own."""
        nbytes = part.nbytes
        used = -(-self._used // ALIGNMENT) * ALIGNMENT
        if self._slot is None or used + nbytes > self._slot.numel():
            self._send_staged()
            used = 0
            self._slot = self._take_slot(nbytes)
        self._used = used + nbytes
        memory = self._slot[used : used + nbytes]
        self._parts.append((part, memory.data_ptr()))
        return memory

    def then(self, step: Step) -> None:
        """Do this when what is in the slot has arrived, in the order of the calls."""
        self._steps.append(step)

    def _take_slot(self, nbytes: int) -> torch.Tensor:
        if nbytes > SLOT_BYTES:
            while self._running:
                self._land()
            self._free.clear()
            self._slots = 0
            return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        if not self._free and self._slots < SLOTS:
            self._slots += 1
            return host_buffer(SLOT_BYTES)
        while not self._free:
            self._land()
        return self._free.pop()

    def _send_staged(self) -> None:
        slot, parts, steps = self._slot, self._parts, self._steps
        self._slot, self._parts, self._steps, self._used = None, [], [], 0
        if slot is not None:
            self._running.append((self._download(parts, slot), slot, steps))

    def _land(self) -> None:
        """Wait for the slot that was sent first, and move its bytes on."""
        download, slot, steps = self._running.popleft()
        download.wait()
        for step in steps:
            step()
        if slot.numel() == SLOT_BYTES:
            self._free.append(slot)
