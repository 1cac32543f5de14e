"""The items that a rank shares with others: where a portion goes, how it is fetched, what is done when it is there.

A portion that is part of one plain tensor lies in the tensor's own memory, where it is fetched or received. All others
pass through slots, out of which torch copies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.graph import increment_version

from .. import _native
from .._tensors import host_buffer
from ..errors import ConfigError
from .objects import Objects
from .share import PORTION_BYTES, Portion, aligned
from .staged import boxes
from .transfer import Transfer


class Tensors(Protocol):
    """What a load does with tensors."""

    def target(self, stored: _native.StoredItem) -> tuple[torch.Tensor, bool]:
        """The tensor that an item is loaded into, and whether bytes go there as they are, one element after another."""

    def commit(self, stored: _native.StoredItem, target: torch.Tensor) -> None:
        """All of an item is in its tensor."""


@dataclass
class _Tensor:
    """A shared tensor on this rank."""

    stored: _native.StoredItem
    target: torch.Tensor
    parts: list[_native.ItemPart]
    # Its elements in the order of the file.
    block: torch.Tensor
    # Its bytes, where they lie as in the file.
    memory: torch.Tensor | None
    missing: int


class SharedItems:
    """The portions of a rank: see `exchange.Portions`.

    Args:
        items: where the shared items of its plan are stored, by their numbers in it.
        tensors, objects: what a load does with them.
        planner: torch's.
        transfer: the downloads of the load.
    """

    def __init__(
        self,
        items: Mapping[int, _native.StoredItem],
        tensors: Tensors,
        objects: Objects,
        planner: Any,
        transfer: Transfer,
    ) -> None:
        self._items = items
        self._tensors = tensors
        self._objects = objects
        self._planner = planner
        self._transfer = transfer
        self._open: dict[int, _Tensor] = {}
        self._free: list[torch.Tensor] = []
        self._slots: dict[int, torch.Tensor] = {}

    def memory(self, portion: Portion) -> torch.Tensor:
        """The bytes to fill."""
        sizes = [self._size(*piece) for piece in portion.pieces]
        used = 0
        for size in sizes:
            used = aligned(used) + size
        if used != portion.nbytes:
            raise ConfigError(
                f"portion {portion.number} of what ranks share has {used:,} bytes here, and {portion.nbytes:,} where "
                "it was planned: the planner changed the plan"
            )
        if len(portion.pieces) == 1:
            tensor = self._tensor(portion.pieces[0][0])
            if tensor is not None and tensor.memory is not None:
                first, end = tensor.parts[portion.pieces[0][1]].elements
                size = tensor.target.element_size()
                increment_version([tensor.target])
                return tensor.memory[first * size : end * size]
        if portion.nbytes > PORTION_BYTES:
            return torch.empty(portion.nbytes, dtype=torch.uint8, device="cpu")
        slot = self._free.pop() if self._free else host_buffer(PORTION_BYTES)
        self._slots[slot.data_ptr()] = slot
        return slot[: portion.nbytes]

    def fetch(self, portion: Portion, memory: torch.Tensor) -> Callable[[], object]:
        """Begin to fetch, and give what waits for it."""
        wanted: list[_native._Wanted] = []
        for (number, part), (start, _) in zip(portion.pieces, self._cuts(portion), strict=True):
            tensor = self._tensor(number)
            piece = self._transfer.load.whole(self._items[number]) if tensor is None else tensor.parts[part]
            wanted.append((piece, memory.data_ptr() + start))
        return self._transfer.load.start(wanted, memory).wait

    def arrived(self, portion: Portion, memory: torch.Tensor) -> None:
        """All bytes are there and good."""
        for (number, part), (start, end) in zip(portion.pieces, self._cuts(portion), strict=True):
            values = memory[start:end]
            tensor = self._tensor(number)
            if tensor is None:
                self._objects.hand_over(self._items[number], values, self._planner)
                continue
            if not _is_within(values, tensor.memory):
                _copy(values, tensor, part)
            tensor.missing -= 1
            if not tensor.missing:
                self._tensors.commit(tensor.stored, tensor.target)
                del self._open[number]

    def release(self, memory: torch.Tensor) -> None:
        """The memory is used no more."""
        if (slot := self._slots.pop(memory.data_ptr(), None)) is not None:
            self._free.append(slot)

    def _tensor(self, number: int) -> _Tensor | None:
        """The tensor with this number in the plan; None of an object."""
        if (tensor := self._open.get(number)) is not None:
            return tensor
        stored = self._items[number]
        if stored.dtype is None:
            return None
        target, is_direct = self._tensors.target(stored)
        found = stored.parts(PORTION_BYTES)
        assert found is not None
        block = target.permute(found.order)
        is_direct = is_direct and list(found.order) == sorted(found.order)
        memory = target.reshape(-1).view(torch.uint8) if is_direct else None
        self._open[number] = _Tensor(stored, target, found.parts, block, memory, len(found.parts))
        return self._open[number]

    def _size(self, number: int, part: int) -> int:
        stored = self._items[number]
        tensor = self._tensor(number)
        return int(stored.info.length) if tensor is None else tensor.parts[part].nbytes

    def _cuts(self, portion: Portion) -> list[tuple[int, int]]:
        """Where each piece lies in the memory."""
        cuts, used = [], 0
        for piece in portion.pieces:
            start = aligned(used)
            used = start + self._size(*piece)
            cuts.append((start, used))
        return cuts


def _is_within(values: torch.Tensor, memory: torch.Tensor | None) -> bool:
    """Whether the values lie in that memory already."""
    return memory is not None and memory.data_ptr() <= values.data_ptr() < memory.data_ptr() + memory.numel()


def _copy(values: torch.Tensor, tensor: _Tensor, part: int) -> None:
    assert tensor.stored.dtype is not None
    elements = values.view(tensor.stored.dtype)
    used = 0
    for box in boxes(tensor.block, *tensor.parts[part].elements):
        box.detach().copy_(elements[used : used + box.numel()].view(box.shape))
        used += box.numel()
