"""Batches of reads on their way, several at a time.

Reads whose bytes go straight to their place are sent in large batches. The others pass through slots: a few reused
buffers, pinned where there is a GPU, each with a batch of its own. While the bytes of one slot are moved on, those of
all others arrive.

torch does not see the native module write into a tensor, so it is told: after a load a tensor's version has moved as
after ``copy_``. It moves before the first byte does, so that a load that fails half-way cannot leave it out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch.autograd.graph import increment_version

from . import _native
from ._ranks import world_size
from ._tensors import host_buffer

SLOT_BYTES = _native.SLICE_BYTES
SLOTS = 10
# Native memory per read is a few hundred bytes.
BATCH_READS = 16_384
BATCHES = 2
ALIGNMENT = 64

Step = Callable[[], object]
# Bytes per run, bytes of memory, what is skipped of the block in the file and in memory, its dimensions.
BlockRequest = tuple[int, int, tuple[int, int], list[tuple[int, int, int]]]


class Batch:
    """Reads in columns: a row says which bytes of an item go to an address.

    `starts` and `ends` count from the item's first byte. `heads` has length and CRC-32 of what an item must begin
    with. A row in `blocks` is several runs; see ``BlockLayout`` in the native module.
    """

    __slots__ = ("addresses", "blocks", "checksums", "ends", "heads", "keys", "lengths", "names", "offsets", "starts")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.keys: list[str] = []
        self.offsets: list[int] = []
        self.lengths: list[int] = []
        self.checksums: list[bytes | None] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.addresses: list[int] = []
        self.heads: list[tuple[int, int] | None] = []
        self.blocks: dict[int, BlockRequest] = {}

    def __len__(self) -> int:
        return len(self.names)

    def add(
        self,
        name: str,
        key: str,
        offset: int,
        length: int,
        checksums: bytes | None,
        start: int,
        end: int,
        address: int,
        block: BlockRequest | None = None,
        head: tuple[int, int] | None = None,
    ) -> None:
        """One more row."""
        if block is not None:
            self.blocks[len(self.names)] = block
        self.names.append(name)
        self.keys.append(key)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.checksums.append(checksums)
        self.starts.append(start)
        self.ends.append(end)
        self.addresses.append(address)
        self.heads.append(head)


class Transfer:
    """All downloads of one load.

    Args:
        client: the native client.
        bucket: where everything is.
        verify: compare with the checksums in the batches.

    Attributes:
        downloads: to be used in a ``with`` block around all else; after it nothing is written any more.
        direct: the batch for reads that go straight to their place; `send_direct` sends it.
        staged: the batch for reads into memory from `stage`.
    """

    def __init__(self, client: _native.Client, bucket: str, verify: bool) -> None:
        self.downloads = client.downloads(bucket, verify, world_size())
        self.direct = Batch()
        self._kept: list[torch.Tensor] = []
        self._direct_running: deque[_native.Download] = deque()
        self._last_steps: list[Step] = []
        self.staged = Batch()
        self._slot: torch.Tensor | None = None
        self._used = 0
        self._steps: list[Step] = []
        self._running: deque[tuple[_native.Download, torch.Tensor, list[Step]]] = deque()
        self._free: list[torch.Tensor] = []
        self._slots = 0

    def finish(self) -> None:
        """Wait for everything and do all that waits for it."""
        self.send_direct()
        self._send_staged()
        while self._running:
            self._land()
        while self._direct_running:
            self._direct_running.popleft().wait()
        for step in self._last_steps:
            step()

    # -- straight to its place

    def keep(self, target: torch.Tensor) -> None:
        """Note a tensor that is written without torch, by the last row of `direct`; sends the batch when it is full.

        One without elements is noted too, which has no row: torch counts a copy into it.
        """
        self._kept.append(target)
        if len(self._kept) >= BATCH_READS:
            self.send_direct()

    def send_direct(self) -> None:
        """Start what is in `direct`, which is then a new batch."""
        batch, kept = self.direct, self._kept
        self.direct, self._kept = Batch(), []
        increment_version(kept)
        if not batch:
            return
        if len(self._direct_running) >= BATCHES:
            self._direct_running.popleft().wait()
        self._direct_running.append(self._download(batch, kept))

    def _download(self, batch: Batch, memory: object) -> _native.Download:
        return self.downloads.start(batch, memory)

    def at_last(self, step: Step) -> None:
        """Do this when everything has arrived."""
        self._last_steps.append(step)

    # -- through a slot

    def stage(self, nbytes: int) -> torch.Tensor:
        """Memory for bytes that a step moves on: `nbytes` of a slot; more than a slot has, memory of its own."""
        used = -(-self._used // ALIGNMENT) * ALIGNMENT
        if self._slot is None or used + nbytes > self._slot.numel():
            self._send_staged()
            used = 0
            self._slot = self._take_slot(nbytes)
        self._used = used + nbytes
        return self._slot[used : used + nbytes]

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
        slot, batch, steps = self._slot, self.staged, self._steps
        self._slot, self.staged, self._steps, self._used = None, Batch(), [], 0
        if slot is not None:
            self._running.append((self._download(batch, slot), slot, steps))

    def _land(self) -> None:
        """Wait for the slot that was sent first, and move its bytes on."""
        download, slot, steps = self._running.popleft()
        download.wait()
        for step in steps:
            step()
        if slot.numel() == SLOT_BYTES:
            self._free.append(slot)
