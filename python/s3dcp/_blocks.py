"""The geometry of a wanted block: which runs of the stored elements it is, and how it is cut into bounded pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import torch

Dim = tuple[int, int, int]  # how many, step in the file, step in memory


def joined(lengths: Sequence[int], stored: Sequence[int], target: Sequence[int]) -> tuple[int, list[Dim]]:
    """The block as runs: their length and the dimensions along which they repeat, the outermost first.

    Dimensions that follow one another without a gap, in the file as in memory, become one.

    Args:
        lengths: the block's shape.
        stored, target: its strides in the file and in memory, in elements.
    """
    dims: list[Dim] = []
    for count, stored_step, target_step in zip(lengths, stored, target, strict=True):
        if count == 1:
            continue
        if dims and dims[-1][1] == count * stored_step and dims[-1][2] == count * target_step:
            count *= dims.pop()[0]
        dims.append((count, stored_step, target_step))
    if dims and dims[-1][1] == dims[-1][2] == 1:
        return dims.pop()[0], dims
    return 1, dims


class Packed:
    """A block whose elements lie in memory one after another, in row-major order.

    Args:
        start: the number of its first element in the file.
        lengths: its shape.
        stored: its strides in the file, in elements, each at least as long as all that lies within.
    """

    def __init__(self, start: int, lengths: Sequence[int], stored: Sequence[int]) -> None:
        packed = row_major(lengths)
        self.start = start
        self.count = math.prod(lengths)
        self.run, self.dims = joined(lengths, stored, packed)

    def place(self, number: int) -> int:
        """Where element `number` of the block lies in the file."""
        place = self.start
        for _, stored_step, target_step in self.dims:
            steps, number = divmod(number, target_step)
            place += steps * stored_step
        return place + number

    def before(self, place: int) -> int:
        """How many elements of the block lie before `place` of the file."""
        rest = place - self.start
        if rest <= 0:
            return 0
        number = 0
        for count, stored_step, target_step in self.dims:
            steps = min(rest // stored_step, count)
            number += steps * target_step
            if steps == count:
                return number
            rest -= steps * stored_step
        return number + min(rest, self.run)

    def pieces(self, most: int, cuts: Iterable[int]) -> Iterator[tuple[int, int]]:
        """The block in pieces (first, end) of at most `most` elements.

        They end at places of `cuts`, ascending places of the file, wherever that is possible.
        """
        first = last = 0
        for end in chain(map(self.before, cuts), [self.count]):
            while end - first > most:
                cut = last if last > first else first + most
                yield first, cut
                first = cut
            last = end
        yield first, self.count


def apart(
    block: torch.Tensor, start: int, strides: tuple[int, ...], gap: int
) -> Iterator[tuple[torch.Tensor, int, tuple[int, ...]]]:
    """The block in sub-blocks, each with the number of its first element in the file and its strides there.

    It is taken apart where `gap` elements or more of the file lie between them.
    """
    if block.dim() > 1:
        inner = 1 + sum((size - 1) * step for size, step in zip(block.shape[1:], strides[1:], strict=True))
        if block.shape[0] == 1 or strides[0] - inner >= gap:
            for number, part in enumerate(block.unbind()):
                yield from apart(part, start + number * strides[0], strides[1:], gap)
            return
    yield block, start, strides


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of `shape`."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def boxes(block: torch.Tensor, first: int, end: int) -> Iterator[torch.Tensor]:
    """Views of the elements `first` to `end` of `block`, counted in row-major order; one after another they are all."""
    if first == 0 and end == block.numel():
        yield block
        return
    if block.dim() == 1:
        yield block.narrow(0, first, end - first)
        return
    row = block[0].numel()
    (first_row, first), (end_row, end) = divmod(first, row), divmod(end, row)
    if first_row == end_row:
        yield from boxes(block[first_row], first, end)
        return
    if first:
        yield from boxes(block[first_row], first, row)
        first_row += 1
    if first_row < end_row:
        yield block.narrow(0, first_row, end_row - first_row)
    if end:
        yield from boxes(block[end_row], 0, end)
