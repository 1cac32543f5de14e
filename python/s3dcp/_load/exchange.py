"""Ranks pass on to each other what each has fetched for others, as `share.py` planned it.

The exchanges have a gloo group of their own, whose deadline is ours and which nobody else uses. Every rank goes through
its portions in their order, whatever has failed on it: as owner it sends a verdict and the bytes, as another it
receives them. A failure is a verdict, so that nobody waits for one who gave up. Of the portions under way the one with
the lowest number never waits for another, so there is no standstill. A rank that is gone is noticed by its connections,
else by the deadline; nothing is sent to it or expected of it any more.

Ranks of one node copy the bytes from memory of the owner, which waits for a receipt from each before it lays out others
there: only verdicts and receipts go between them.
"""

from __future__ import annotations

import ctypes
import logging
import math
import pickle
import time
import traceback
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist

from .._compat import own_connection
from ..errors import ConnectionFailed, Interrupted, S3DcpError
from .node_memory import NodeMemory
from .share import PORTION_BYTES, Portion, Share

logger = logging.getLogger(__name__)

# How long ranks wait for each other to come to the exchange, in seconds.
CONNECT_SECONDS = 60.0

# How long one exchange may take beyond the deadline of a request, in seconds.
GRACE_SECONDS = 60.0

# Portions that an owner fetches ahead of those that it passes on, and those that are passed on at once.
FETCHED_AHEAD = 8
UNDER_WAY = 8

# The verdict on a portion: the length of a pickled error, 0 for a good one, then the error. The last byte is the slot
# that the portion lies in for ranks on the node of its owner.
VERDICT_BYTES = 4096


class Work(Protocol):
    """A send or a receipt under way."""

    def wait(self, timeout: timedelta) -> object:
        """Return when it is done."""


@dataclass
class Node:
    """The memory through which this rank and others on its node pass bytes on.

    Attributes:
        own: this rank's; None where it has none.
        readers: the ranks that read it.
        others: that of other ranks.
    """

    own: NodeMemory | None = None
    readers: frozenset[int] = frozenset()
    others: dict[int, NodeMemory] = field(default_factory=dict)

    @staticmethod
    def meet(store: Any, rank: int, ranks: int) -> Node:
        """Find out with all others who is on this node; all ranks call it."""
        own, address = None, ""
        try:
            own, address = NodeMemory.make(UNDER_WAY, PORTION_BYTES)
        except OSError as error:
            logger.debug("ranks on this node pass bytes on by sockets: %s", error)
        others = {}
        for other, told in enumerate(_exchanged(store, "memory", rank, ranks, address)):
            if other != rank and (memory := NodeMemory.find(told, PORTION_BYTES)) is not None:
                others[other] = memory
        found = _exchanged(store, "found", rank, ranks, ",".join(map(str, others)))
        readers = frozenset(other for other, told in enumerate(found) if str(rank) in told.split(","))
        return Node(own, readers, others)


class Group:
    """Connections of the ranks that share a load."""

    def __init__(self, backend: Any, deadline: float, node: Node) -> None:
        self._backend = backend
        self.deadline = deadline
        self.node = node

    @staticmethod
    def connect(share: Share, request_deadline: float) -> Group | None:
        """Connect to all ranks; None where one of them cannot, which then holds for all."""
        c10d, patience = dist.distributed_c10d, timedelta(seconds=CONNECT_SECONDS)
        ready = [f"ready/{rank}" for rank in range(share.ranks)]
        backend, trouble = None, "not all ranks came"
        try:
            store = c10d.PrefixStore(f"s3dcp/share/{share.load_id}", own_connection(c10d._get_default_store()))
            try:
                own = c10d.PrefixStore("gloo", store)
                backend = c10d.ProcessGroupGloo(own, share.rank, share.ranks, timeout=patience)
            except Exception as error:
                trouble = str(error)
            store.set(ready[share.rank], "no" if backend is None else "yes")
            store.wait(ready, patience)
            if all(answer == b"yes" for answer in _get_all(store, ready)):
                return Group(backend, request_deadline + GRACE_SECONDS, Node.meet(store, share.rank, share.ranks))
        except Exception as error:
            trouble = str(error)
        logger.warning("ranks cannot connect to share what they load, so each fetches all of its own: %s", trouble)
        return None

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> Work:
        """Begin to send."""
        return self._backend.send([tensor], rank, tag)  # type: ignore[no-any-return]

    def receive(self, tensor: torch.Tensor, rank: int, tag: int) -> Work:
        """Begin to receive."""
        return self._backend.recv([tensor], rank, tag)  # type: ignore[no-any-return]

    def wait(self, work: Work, seconds: float) -> None:
        """Wait until it is done, but not longer than that."""
        work.wait(timedelta(seconds=max(seconds, 0.1)))


class Portions(Protocol):
    """What a rank does with portions by itself; but for `release`, none of these is called after one has failed."""

    def memory(self, portion: Portion) -> torch.Tensor:
        """The bytes to fill, which may be those of a tensor of the state."""

    def fetch(self, portion: Portion, memory: torch.Tensor) -> Callable[[], object]:
        """Begin to fetch, and give what waits for it."""

    def arrived(self, portion: Portion, memory: torch.Tensor) -> None:
        """All bytes are there and good."""

    def release(self, memory: torch.Tensor) -> None:
        """The memory is used no more; called whatever has failed."""


@dataclass
class _UnderWay:
    portion: Portion
    memory: torch.Tensor
    verdict: torch.Tensor
    is_placed: bool
    # As owner: where in its memory the portion lies for ranks on its node, None where none wants it.
    slot: int | None = None
    works: list[tuple[int, Work]] = field(default_factory=list)

    @property
    def verdict_message(self) -> tuple[torch.Tensor, int]:
        """The verdict and its tag."""
        return (self.verdict, 2 * self.portion.number)

    @property
    def bytes_message(self) -> tuple[torch.Tensor, int]:
        """The bytes and their tag."""
        return (self.memory, self._second_tag)

    def receipt_message(self) -> tuple[torch.Tensor, int]:
        """A receipt and its tag: it goes the other way."""
        return (torch.zeros(1, dtype=torch.uint8, device="cpu"), self._second_tag)

    @property
    def _second_tag(self) -> int:
        return 2 * self.portion.number + 1


class Exchange:
    """One rank's exchanges.

    Args:
        share: its part.
        group: its connections.
        portions: what it does with portions.
        failure: what has failed on this rank already.

    Attributes:
        failure: the first that failed here.
        told: the first that failed elsewhere, of which this rank misses bytes.
    """

    def __init__(self, share: Share, group: Group, portions: Portions, failure: Exception | None) -> None:
        self._share = share
        self._group = group
        self._portions = portions
        self._me = share.rank
        self.failure = failure
        self.told: Exception | None = None
        self._gone: dict[int, str] = {}
        self._end = math.inf
        self._node = group.node
        self._free_slots = list(range(UNDER_WAY))
        self._receipts: list[tuple[int, Work]] = []
        self._fetching: deque[tuple[Portion, torch.Tensor | None, Callable[[], object] | None]] = deque()
        self._under_way: deque[_UnderWay] = deque()

    def run(self) -> None:
        """Go through all portions.

        Raises:
            Exception: what failed on this rank, else what failed on the owner of bytes that it misses.
        """
        try:
            self._go_through(self._share.portions)
            self._part()
        except BaseException as error:
            # A traceback would keep alive what still receives into the state.
            self._under_way.clear()
            traceback.clear_frames(error.__traceback__)
            raise
        if failed := self.failure or self.told:
            raise failed

    def _go_through(self, portions: Sequence[Portion]) -> None:
        if self._share.trial is None:
            self._together(portions)
            return
        warm, shared, alone = (bisect_left(portions, end, key=_number) for end in self._share.trial)
        self._together(portions[:warm])
        told = (
            self._measured(self._together, portions[warm:shared]),
            self._measured(self._alone, portions[shared:alone]),
        )
        go_on = self._together if self._agree(told) else self._alone
        go_on(portions[alone:])

    def _part(self) -> None:
        """Wait for each other: a connection that one end closes may lose what is on its way to the other."""
        self._tell_all(torch.zeros(1, dtype=torch.uint8, device="cpu"), 2 * self._share.count + 1)

    def _measured(self, step: Callable[[Sequence[Portion]], None], portions: Sequence[Portion]) -> float:
        """Do it; the seconds that it took for each byte, 0 for none."""
        began = time.monotonic()
        step(portions)
        nbytes = sum(portion.nbytes for portion in portions)
        return (time.monotonic() - began) / nbytes if nbytes else 0.0

    def _agree(self, told: tuple[float, float]) -> bool:
        """Whether passing on is worth it: what each rank measured is told to all, who come to the same."""
        others = self._tell_all(torch.tensor(told, dtype=torch.float64, device="cpu"), 2 * self._share.count)
        all_told = [told, *((float(theirs[0]), float(theirs[1])) for theirs in others)]
        worth = is_worth(all_told)
        logger.info("ranks %s", "go on to share what they load" if worth else "fetch faster than they pass on")
        return worth

    def _tell_all(self, own: torch.Tensor, tag: int) -> list[torch.Tensor]:
        """What the other ranks tell, who are told `own`: as much each, zeros where a rank is gone."""
        others = {rank: torch.zeros_like(own) for rank in range(self._share.ranks) if rank != self._me}
        works: list[tuple[int, Work]] = []
        for rank, theirs in others.items():
            if rank not in self._gone:
                self._begin(works, rank, self._group.send, [(own, tag)])
                self._begin(works, rank, self._group.receive, [(theirs, tag)])
        self._wait(works)
        return list(others.values())

    def _together(self, portions: Sequence[Portion]) -> None:
        """Each portion is fetched by its owner, and passed on."""
        own = iter([portion for portion in portions if portion.owner == self._me])
        self._fetch_ahead(own)
        for portion in portions:
            while len(self._under_way) >= UNDER_WAY:
                self._settle(self._under_way.popleft())
            if portion.owner == self._me:
                self._pass_on()
                self._fetch_ahead(own)
            else:
                self._receive(portion)
        while self._under_way:
            self._settle(self._under_way.popleft())
        self._wait(self._receipts)
        self._receipts.clear()

    def _alone(self, portions: Sequence[Portion]) -> None:
        """This rank fetches all of them."""
        wanted = iter(portions)
        self._fetch_ahead(wanted)
        while self._fetching:
            _, memory = self._fetched()
            if memory is not None:
                self._portions.release(memory)
            self._fetch_ahead(wanted)

    def _attempt(self, step: Callable[[], Any]) -> Any:
        """What `step` gives; None once something has failed on this rank, which is noted."""
        if self.failure is None:
            try:
                return step()
            except Exception as error:
                self.failure = error
        return None

    # -- as owner

    def _fetch_ahead(self, own: Iterator[Portion]) -> None:
        while len(self._fetching) < FETCHED_AHEAD and (portion := next(own, None)) is not None:
            memory = self._attempt(partial(self._portions.memory, portion))
            wait = None if memory is None else self._attempt(partial(self._portions.fetch, portion, memory))
            self._fetching.append((portion, memory, wait))

    def _fetched(self) -> tuple[Portion, torch.Tensor | None]:
        """The portion whose fetch began first, when it is there."""
        portion, memory, wait = self._fetching.popleft()
        if wait is not None:
            self._attempt(wait)
        if memory is not None:
            self._attempt(partial(self._portions.arrived, portion, memory))
        return portion, memory

    def _pass_on(self) -> None:
        portion, memory = self._fetched()
        slot, near = self._lay_out(portion, memory)
        verdict = _verdict(self.failure, self._me, slot or 0)
        under_way = _UnderWay(portion, _room(portion, memory), verdict, memory is not None, slot)
        for rank in portion.ranks:
            if rank == self._me or rank in self._gone:
                continue
            if rank in near:
                self._begin(under_way.works, rank, self._group.send, [under_way.verdict_message])
                self._begin(under_way.works, rank, self._group.receive, [under_way.receipt_message()])
            else:
                messages = [under_way.verdict_message, under_way.bytes_message]
                self._begin(under_way.works, rank, self._group.send, messages)
        self._under_way.append(under_way)

    def _lay_out(self, portion: Portion, memory: torch.Tensor | None) -> tuple[int | None, frozenset[int]]:
        """Lay the portion out for those on this node who want it: where, and who."""
        near = self._node.readers.intersection(portion.ranks) if _fits(portion) else frozenset()
        if self._node.own is None or not near:
            return None, frozenset()
        slot = self._free_slots.pop()
        if memory is not None:
            self._attempt(partial(self._node.own.write, slot, memory))
        return slot, near

    # -- as another

    def _receive(self, portion: Portion) -> None:
        memory = self._attempt(partial(self._portions.memory, portion))
        verdict = torch.empty(VERDICT_BYTES, dtype=torch.uint8, device="cpu")
        under_way = _UnderWay(portion, _room(portion, memory), verdict, memory is not None)
        if portion.owner not in self._gone:
            messages = [under_way.verdict_message]
            if self._memory_of(portion) is None:
                messages.append(under_way.bytes_message)
            self._begin(under_way.works, portion.owner, self._group.receive, messages)
        self._under_way.append(under_way)

    def _memory_of(self, portion: Portion) -> NodeMemory | None:
        """That of its owner, where its bytes come that way."""
        return self._node.others.get(portion.owner) if _fits(portion) else None

    # -- both

    def _begin(
        self,
        works: list[tuple[int, Work]],
        rank: int,
        begin: Callable[[torch.Tensor, int, int], Work],
        messages: Sequence[tuple[torch.Tensor, int]],
    ) -> None:
        try:
            for tensor, tag in messages:
                works.append((rank, begin(tensor, rank, tag)))
        except Exception as error:
            self._lose(rank, error)

    def _wait(self, works: Sequence[tuple[int, Work]]) -> None:
        until = time.monotonic() + self._group.deadline
        for rank, work in works:
            if rank not in self._gone:
                try:
                    self._group.wait(work, min(until, self._end) - time.monotonic())
                except Exception as error:
                    self._lose(rank, error)

    def _settle(self, under_way: _UnderWay) -> None:
        """Wait until a portion has gone where it belongs."""
        self._wait(under_way.works)
        if under_way.portion.owner != self._me:
            self._received(under_way)
        elif under_way.slot is not None:
            self._free_slots.append(under_way.slot)
        if under_way.is_placed:
            self._portions.release(under_way.memory)

    def _received(self, under_way: _UnderWay) -> None:
        portion = under_way.portion
        if portion.owner in self._gone:
            text = f"rank {portion.owner}, which fetches for this rank, is gone: {self._gone[portion.owner]}"
            self.told = self.told or ConnectionFailed(text, retryable=True)
            return
        error, near = _error(under_way.verdict), self._memory_of(portion)
        if error is not None:
            self.told = self.told or error
        elif near is not None:
            self._attempt(partial(near.read, int(under_way.verdict[-1]), under_way.memory))
        if near is not None:
            self._begin(self._receipts, portion.owner, self._group.send, [under_way.receipt_message()])
        if error is None:
            self._attempt(partial(self._portions.arrived, portion, under_way.memory))

    def _lose(self, rank: int, error: Exception) -> None:
        """Nothing comes of this load: what is under way has a little time left."""
        self._gone.setdefault(rank, str(error))
        self._end = min(self._end, time.monotonic() + GRACE_SECONDS)


def is_worth(told: Sequence[tuple[float, float]]) -> bool:
    """Whether the slowest rank gets a byte as fast from others as from S3: the seconds of both, 0 for no byte."""
    shared, alone = max(each[0] for each in told), max(each[1] for each in told)
    return alone == 0 or shared <= alone


def _number(portion: Portion) -> int:
    return portion.number


def _fits(portion: Portion) -> bool:
    """Whether it can be laid out in memory of a node."""
    return portion.nbytes <= PORTION_BYTES


def _exchanged(store: Any, name: str, rank: int, ranks: int, value: str) -> list[str]:
    """What each rank says, this one `value`."""
    keys = [f"{name}/{each}" for each in range(ranks)]
    store.set(keys[rank], value or "-")
    store.wait(keys, timedelta(seconds=CONNECT_SECONDS))
    return [answer.decode() for answer in _get_all(store, keys)]


def _get_all(store: Any, keys: list[str]) -> list[bytes]:
    return store.multi_get(keys) if store.has_extended_api() else [store.get(key) for key in keys]


def _room(portion: Portion, memory: torch.Tensor | None) -> torch.Tensor:
    """The memory of a portion; where something has failed and there is none, some for its bytes to pass through."""
    return torch.empty(portion.nbytes, dtype=torch.uint8, device="cpu") if memory is None else memory


def _verdict(failure: Exception | None, rank: int, slot: int) -> torch.Tensor:
    body = b""
    if failure is not None:
        text = f"rank {rank}, which fetches for others, failed: {failure}"
        try:
            if not isinstance(failure, S3DcpError):
                raise TypeError
            body = pickle.dumps(failure.with_message(text))
        except Exception:
            body = b""
        if not 0 < len(body) <= VERDICT_BYTES - 5:
            body = pickle.dumps(Interrupted(text[:1000]))
    whole = (len(body).to_bytes(4, "little") + body).ljust(VERDICT_BYTES - 1, b"\0") + bytes([slot])
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def _error(verdict: torch.Tensor) -> Exception | None:
    body = ctypes.string_at(verdict.data_ptr(), verdict.numel())
    length = int.from_bytes(body[:4], "little")
    return pickle.loads(body[4 : 4 + length]) if length else None
