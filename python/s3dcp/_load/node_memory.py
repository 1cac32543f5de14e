"""Memory in which a rank lays out what it has fetched, for ranks on its node to copy.

It is a file in memory without a name: nothing of it is left when the rank ends, however it ends. Others open it by the
rank's process, and know it by random bytes at its beginning: a process of that number may be another one in their
container. Bytes are written and read by system calls, so that nobody maps the memory of all the others.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import weakref
from pathlib import Path

import torch

_KEY_BYTES = 16


class NodeMemory:
    """Slots of a size in memory that ranks on this node can read."""

    def __init__(self, descriptor: int, slot_bytes: int) -> None:
        self._descriptor = descriptor
        self._slot_bytes = slot_bytes
        weakref.finalize(self, os.close, descriptor)

    @staticmethod
    def make(slots: int, slot_bytes: int) -> tuple[NodeMemory, str]:
        """New memory, and what others find it by.

        Raises:
            OSError: this system has none, or not enough.
        """
        if not hasattr(os, "memfd_create"):
            raise OSError("no files in memory on this system")
        descriptor = os.memfd_create("s3dcp-share", os.MFD_CLOEXEC)
        memory = NodeMemory(descriptor, slot_bytes)
        key = secrets.token_bytes(_KEY_BYTES)
        os.posix_fallocate(descriptor, 0, _KEY_BYTES + slots * slot_bytes)
        os.pwrite(descriptor, key, 0)
        return memory, f"{_node()}:{os.getpid()}:{descriptor}:{key.hex()}"

    @staticmethod
    def find(address: str, slot_bytes: int) -> NodeMemory | None:
        """The memory of another rank; None where it is on another node, or not to be had from here."""
        node, _, place = address.partition(":")
        if not place or node != _node():
            return None
        process, descriptor, key = place.split(":")
        try:
            memory = NodeMemory(os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY), slot_bytes)
            return memory if os.pread(memory._descriptor, _KEY_BYTES, 0).hex() == key else None
        except OSError:
            return None

    def write(self, slot: int, values: torch.Tensor) -> None:
        """Lay out bytes of at most a slot."""
        self._move(os.pwritev, slot, values)

    def read(self, slot: int, into: torch.Tensor) -> None:
        """Copy bytes that its owner has laid out."""
        self._move(os.preadv, slot, into)

    def _move(self, call: object, slot: int, values: torch.Tensor) -> None:
        view = memoryview((ctypes.c_char * values.numel()).from_address(values.data_ptr())).cast("B")
        start, done = _KEY_BYTES + slot * self._slot_bytes, 0
        while done < len(view):
            moved = call(self._descriptor, [view[done:]], start + done)  # type: ignore[operator]
            if moved == 0:
                raise OSError("memory of the node ended before its size")
            done += moved


def _node() -> str:
    """What tells this node from others, until it starts anew; nothing where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{secrets.token_hex(8)}"
