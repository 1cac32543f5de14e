"""What several ranks of a load want alike is fetched by one of them each: who fetches what for whom.

The coordinator sees all plans. Items that two ranks or more want in the same part of the same stored chunk are cut at
the slices that have checksums, in the order of the files, and gathered into portions of a slice's size. Each has an
owner, the one of those who want it that has the least to fetch so far. `exchange.py` carries it out.
"""

from __future__ import annotations

import heapq
import uuid
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan

from .. import _native
from .._gc import GcPause
from .._ranks import world_size
from .transfer import ALIGNMENT

PORTION_BYTES = _native.SLICE_BYTES

# "auto" shares from so many bytes on: ranks connect to each other first, and try what is faster.
AUTO_BYTES = 1 << 30

# What is passed on to begin with, what is passed on and measured, what each rank fetches for itself and measures.
TRIAL_BYTES = (64 << 20, 128 << 20, 64 << 20)

# More ranks than these "auto" does not connect to each other, nor looks at more items of them.
AUTO_RANKS = 256
AUTO_ITEMS = 500_000


@dataclass(frozen=True)
class Place:
    """Which rank of which group this is."""

    rank: int
    size: int
    ranks: int  # the global ranks of the group, as a hash

    @staticmethod
    def here(process_group: Any) -> Place | None:
        """That of this process; None where it is in no such group, or alone."""
        import torch.distributed as dist

        size = world_size(process_group)
        if size < 2:
            return None
        group = dist.group.WORLD if process_group is None else process_group
        rank = dist.get_rank(group)
        return Place(rank, size, hash(tuple(dist.get_process_group_ranks(group)))) if rank >= 0 else None


def is_certain(places: Sequence[Place | None]) -> bool:
    """Whether those that plan are all ranks of one group, in its order."""
    first = places[0]
    return first is not None and all(
        place == Place(number, len(places), first.ranks) for number, place in enumerate(places)
    )


@dataclass
class Portion:
    """Bytes that some ranks want, and one of them fetches.

    Attributes:
        number: its place among all portions of the load, in which every rank goes through its own.
        owner: the rank that fetches.
        ranks: those who want it, the owner among them.
        nbytes: bytes of memory, one piece after another.
        pieces: an item of this rank's plan by its number, and the number of its part; in the order of the portion.
    """

    number: int
    owner: int
    ranks: tuple[int, ...]
    nbytes: int
    pieces: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Share:
    """One rank's part in what ranks share.

    Attributes:
        load_id: the same on all ranks, and of this load alone.
        rank: which it is.
        ranks: how many load.
        items: how many the plan has.
        portions: those that this rank wants.
        count: how many there are in the load.
        trial: the numbers of the portions at which the steps of a trial end: what is passed on to begin with, what is
            passed on and measured, what each rank fetches for itself. None: all are passed on.
    """

    load_id: str
    rank: int
    ranks: int
    items: int
    portions: list[Portion]
    count: int
    trial: tuple[int, int, int] | None = None

    @property
    def numbers(self) -> set[int]:
        """The items that are shared."""
        return {item for portion in self.portions for item, _ in portion.pieces}

    @property
    def received(self) -> int:
        """Bytes that other ranks fetch for this one."""
        return sum(portion.nbytes for portion in self.portions if portion.owner != self.rank)


def aligned(nbytes: int) -> int:
    """Where the next piece of a portion begins."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan_share(load: _native.Load, metadata: Metadata, plans: Sequence[LoadPlan], auto: bool) -> list[Share]:
    """Each rank's part; none where there is nothing to share, or for `auto` too little."""
    if auto and (len(plans) > AUTO_RANKS or sum(len(plan.items) for plan in plans) > AUTO_ITEMS):
        return []
    wanted = _wanted_by_several(plans)
    if not wanted:
        return []
    by_item = {id(item): ranks for item, ranks in wanted}
    found = load.find(metadata, [item for item, _ in wanted], {})
    portions: list[tuple[Portion, list[tuple[dict[int, int], int]]]] = []
    for stored in found.items:
        who = by_item[id(stored.item)]
        for number, nbytes in enumerate(_parts(stored)):
            ranks = tuple(who)
            portion = portions[-1][0] if portions else None
            if portion is None or portion.ranks != ranks or aligned(portion.nbytes) + nbytes > PORTION_BYTES:
                portion = Portion(len(portions), -1, ranks, 0)
                portions.append((portion, []))
            portion.nbytes = aligned(portion.nbytes) + nbytes
            portions[-1][1].append((who, number))
    if not portions or (auto and sum(portion.nbytes for portion, _ in portions) < AUTO_BYTES):
        return []
    load_id, count = uuid.uuid4().hex, len(portions)
    trial = _trial([portion for portion, _ in portions]) if auto else None
    shares = [Share(load_id, rank, len(plans), len(plan.items), [], count, trial) for rank, plan in enumerate(plans)]
    _give_owners([portion for portion, _ in portions], len(plans))
    for portion, pieces in portions:
        for rank in portion.ranks:
            own = [(who[rank], number) for who, number in pieces]
            shares[rank].portions.append(Portion(portion.number, portion.owner, portion.ranks, portion.nbytes, own))
    return shares


def _trial(portions: Sequence[Portion]) -> tuple[int, int, int]:
    """The numbers of the portions at which the steps of a trial end."""
    ends = list(accumulate(TRIAL_BYTES))
    begins = [0, *accumulate(portion.nbytes for portion in portions)]
    warm, shared, alone = (bisect_left(begins, end, hi=len(portions)) for end in ends)
    return warm, shared, alone


def _wanted_by_several(plans: Sequence[LoadPlan]) -> list[tuple[Any, dict[int, int]]]:
    """Items that two ranks or more want, each with those ranks in their order and its number in the plan of each."""
    found: dict[Any, tuple[int, int] | dict[int, int]] = {}
    with GcPause():
        for rank, plan in enumerate(plans):
            for number, item in enumerate(plan.items):
                index = item.storage_index
                key = (index.fqn, index.offset, item.storage_offsets, item.lengths)
                known = found.setdefault(key, (rank, number))
                if type(known) is dict:
                    known.setdefault(rank, number)
                elif known[0] != rank:
                    found[key] = {known[0]: known[1], rank: number}
    several = (ranks for ranks in found.values() if type(ranks) is dict)
    return [(plans[min(ranks)].items[ranks[min(ranks)]], ranks) for ranks in several]


def _parts(stored: _native.StoredItem) -> Iterable[int]:
    """Bytes of each part of an item; nothing of one that is not shared."""
    if stored.item.type == LoadItemType.BYTE_IO:
        return [stored.info.length] if stored.info.length else []
    # Of a dtype that is not known yet: others wrote it, and each rank reads the heads of its own.
    if stored.dtype is None or 0 in stored.item.lengths:
        return []
    found = stored.parts(PORTION_BYTES)
    return [part.nbytes for part in found.parts] if found is not None else []


def _give_owners(portions: Sequence[Portion], ranks: int) -> None:
    """Each portion goes to the one of those who want it that has the least so far."""
    fetched = [0] * ranks
    heaps: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for portion in portions:
        heap = heaps.setdefault(portion.ranks, [(0, rank) for rank in portion.ranks])
        # What a rank got of other groups' portions since is put right when it comes up.
        while heap[0][0] != fetched[heap[0][1]]:
            heapq.heapreplace(heap, (fetched[heap[0][1]], heap[0][1]))
        portion.owner = heap[0][1]
        fetched[portion.owner] += portion.nbytes
        heapq.heapreplace(heap, (fetched[portion.owner], portion.owner))
