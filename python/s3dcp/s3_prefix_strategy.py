"""Prefix strategies: which key prefix the shard files of each rank get.

S3 gives every key range (a *partition*) a request budget of its own and splits ranges by the first
characters of their keys. A strategy puts the part that differs from rank to rank, the *pattern*, in front of
the file name, so that the ranks of a large job do not share one budget. For rank 10 of 16:

======================================================== ==============================
``DefaultPrefixStrategy()``                              ``__10_``
``BinaryPrefixStrategy()``                               ``0101000000/__10_``
``HexPrefixStrategy(epoch_num=5)``                       ``a000000000/epoch_5/__10_``
``RoundRobinPrefixStrategy(["p1", "p2", "p3"])``         ``p2/__10_``
======================================================== ==============================

The classes hold their few numbers and nothing else: a prefix is computed when it is asked for, so a million
prefixes cost what one costs. They pickle, copy, compare and print. Attributes may be set between saves
(``strategy.epoch_num = 7``); the next prefix shows it. This module does not import torch.

Write your own by deriving from `S3PrefixStrategyBase` (any text) or from `NumericPrefixStrategy` (other
digits).
"""

from __future__ import annotations

import abc
import contextlib
import copy
import math
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from . import _native
from . import _prefix_checks as checks
from .description import Description

__all__ = [
    "BinaryPrefixStrategy",
    "DefaultPrefixStrategy",
    "HexPrefixStrategy",
    "NumericPrefixStrategy",
    "RoundRobinPrefixStrategy",
    "S3PrefixStrategyBase",
]

_Strategy = TypeVar("_Strategy", bound="S3PrefixStrategyBase")
_Numeric = TypeVar("_Numeric", bound="NumericPrefixStrategy")

_MAX_COUNT = 2**64 - 1
_DEFAULT_MIN_PREFIX_LENGTH = 10
# Prefixes made in one native call, so that an interrupt gets through and memory grows as it is filled.
_BATCH = 1 << 20


class S3PrefixStrategyBase(abc.ABC):
    """What every strategy is: a callable from rank to key prefix.

    A subclass implements `generate_prefix`; ``__init__`` need not be called.

    >>> class EvenOdd(S3PrefixStrategyBase):
    ...     def generate_prefix(self, rank):
    ...         return f"{'odd' if rank % 2 else 'even'}/__{rank}_"
    >>> EvenOdd()(3)
    'odd/__3_'
    """

    # Makes prefixes without a look at the attributes, in the classes that can; None after any of them was set, absent
    # in a new object. In a slot, so that it is no part of what is compared, copied and pickled.
    __slots__ = ("_fast",)
    _fast: Callable[[object], str | None] | None

    def __getstate__(self) -> dict[str, Any]:
        """The attributes."""
        return dict(vars(self))

    def __call__(self, rank: int) -> str:
        """The same as ``generate_prefix(rank)``."""
        return self.generate_prefix(rank)

    @abc.abstractmethod
    def generate_prefix(self, rank: int) -> str:
        """The prefix of `rank`'s shard files, relative to the checkpoint's path.

        The file's number and name follow it directly, so it should end in a way that keeps ranks apart, as
        ``__<rank>_`` does.
        """

    def prefixes(self, ranks: Iterable[int]) -> list[str]:
        """The prefixes of many ranks, in order. The built-in strategies make those of a ``range`` at once.

        >>> DefaultPrefixStrategy().prefixes(range(3))
        ['__0_', '__1_', '__2_']
        """
        return [self.generate_prefix(rank) for rank in ranks]

    def bind(self: _Strategy, ranks: int) -> _Strategy:
        """This strategy for a job of `ranks` ranks, as the storage writer uses it for a save.

        Returns the strategy itself where the number of ranks changes nothing, which is so for every strategy
        but a numeric one without ``prefix_count``.
        """
        del ranks
        return self

    def describe(
        self,
        world_size: int,
        bytes_per_rank: int = 1 << 30,
        *,
        files_per_rank: int = 1,
        part_size: int | None = None,
        partitions: int = 1,
        load: bool = False,
        network_gbps: float = 10.0,
    ) -> Description:
        """Simulate one save or load with this strategy's prefixes, as ``s3dcp simulate`` does.

        S3 is a model of its partitions: see ``docs/partitions.md`` for what it assumes.

        >>> described = DefaultPrefixStrategy().describe(8)
        >>> described.directories, described.ranks_per_directory, described.refused
        (1, 8, 0)

        Args:
            world_size: ranks, 1 to 1,048,576.
            bytes_per_rank: what each saves or loads, at least 1.
            files_per_rank: shard files of each rank (``thread_count`` of the writer), at least 1.
            part_size: bytes of a part or range; None for what s3dcp chooses.
            partitions: partitions that S3 has for these keys from the start; 1 is a cold bucket.
            load: load instead of saving.
            network_gbps: network of one rank, gigabits per second.

        Raises:
            ValueError: an argument is outside its limits. The message names it.
        """
        world_size = checks.integer("world_size", world_size, 1, 1 << 20)
        if not 0 < network_gbps < math.inf:
            raise ValueError(f"network_gbps must be a positive number, got {network_gbps!r}")
        prefixes = self.bind(world_size).prefixes(range(world_size))
        directories = Counter(prefix.rpartition("/")[0] for prefix in prefixes)
        seconds, ideal, requests, refused, at_end, request_bytes = _native.simulate_prefixes(
            prefixes,
            checks.integer("bytes_per_rank", bytes_per_rank, 1, 1 << 50),
            files_per_rank=checks.integer("files_per_rank", files_per_rank, 1, 1 << 16),
            part_size=None if part_size is None else checks.integer("part_size", part_size, 1 << 20, 5 << 30),
            partitions=checks.integer("partitions", partitions, 1, 1 << 20),
            load=load,
            network_gbps=network_gbps,
        )
        return Description(
            world_size=world_size,
            directories=len(directories),
            ranks_per_directory=max(directories.values()),
            request_bytes=request_bytes,
            requests=requests,
            refused=refused,
            seconds=seconds,
            ideal_seconds=ideal,
            partitions=at_end,
        )


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """``__<rank>_``: all ranks side by side, named as torch itself names shard files.

    >>> DefaultPrefixStrategy()(7)
    '__7_'
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_prefixes = cls.generate_prefix is not DefaultPrefixStrategy.generate_prefix
        if own_prefixes and cls.__call__ is DefaultPrefixStrategy.__call__:
            cls.__call__ = S3PrefixStrategyBase.__call__  # type: ignore[method-assign]

    def __call__(self, rank: int) -> str:
        """The same as ``generate_prefix(rank)``."""
        # One call less, for integers that Python compares fastest.
        if rank.__class__ is int and 0 <= rank < 0x3FFF_FFFF:
            return f"__{rank}_"
        return self.generate_prefix(rank)

    def generate_prefix(self, rank: int) -> str:
        """``__<rank>_``.

        Raises:
            TypeError: `rank` is not an integer.
        """
        return checks.within_key("rank", rank, f"__{checks.rank_text(rank)}_")

    def prefixes(self, ranks: Iterable[int]) -> list[str]:
        """The prefixes of many ranks, in order; a ``range`` of them is made at once."""
        if _overridden(self, DefaultPrefixStrategy, "generate_prefix") or not _in_64_bits(ranks):
            return super().prefixes(ranks)
        return _in_batches(ranks, _native.default_prefixes)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return _repr(self)


class NumericPrefixStrategy(S3PrefixStrategyBase):
    """``<pattern>/__<rank>_``, or ``<pattern>/epoch_<num>/__<rank>_`` with an epoch.

    The pattern is ``rank % prefix_count`` written in `base`, padded with zeros to the larger of
    `min_prefix_length` and the digits that `prefix_count` needs, then reversed, so that the digit that varies
    comes first. Digits beyond 9 are lower-case letters. Every integer is a rank; ranks beyond the count and
    negative ones wrap around.

    >>> strategy = NumericPrefixStrategy(36, min_prefix_length=4, prefix_count=1000)
    >>> strategy(71), strategy(1071)
    ('z100/__71_', 'z100/__1071_')

    A subclass may override ``_format_number(number, length)`` to use digits of its own, in any base from 2.

    Args:
        base: base of the pattern, 2 to 36.
        epoch_num: put ``epoch_<num>/`` into every prefix; None leaves it out.
        min_prefix_length: least number of digits in a pattern, 1 to 1,024.
        prefix_count: number of patterns, 1 to 2**64 - 1. None means as many as there are ranks: the world
            size if torch.distributed is up, else 1 for now. The storage writer binds such a strategy to the
            real number of ranks at every save.

    Raises:
        ValueError: an argument is outside its limits or not an integer, or the prefix alone is longer than a
            whole key may be on S3 (1,024 bytes). The message names the argument, its value and the limit.
    """

    _fixed_base: ClassVar[int | None] = None

    # These stand in for a subclass whose __init__ does not call ours.
    _epoch_num: int | None = None
    _min_prefix_len: int = _DEFAULT_MIN_PREFIX_LENGTH
    _prefix_count: int = 1
    _prefix_count_given: bool = False
    _prefix_map: list[str] | None = None

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = _DEFAULT_MIN_PREFIX_LENGTH,
        prefix_count: int | None = None,
    ) -> None:
        self.base = base
        self.epoch_num = epoch_num
        self._min_prefix_len = checks.integer("min_prefix_length", min_prefix_length, 1, _native.MAX_KEY_BYTES)
        self.prefix_count = prefix_count
        if not self._has_own_patterns():
            # For the shortest rank. A longer one is checked when its prefix is made.
            length, epoch = self._pattern_length(), checks.epoch_part(self._epoch_num)
            blamed: tuple[str, object] = ("min_prefix_length", self._min_prefix_len)
            if len(epoch) > length:
                blamed = ("epoch_num", epoch_num)
            checks.within_key(*blamed, f"{'0' * length}/{epoch}__0_")

    @property
    def base(self) -> int:
        """Base of the pattern. Fixed in `BinaryPrefixStrategy` and `HexPrefixStrategy`."""
        return self._base

    @base.setter
    def base(self, base: int) -> None:
        own_digits = _overridden(self, NumericPrefixStrategy, "_format_number")
        base = checks.integer("base", base, 2, _MAX_COUNT if own_digits else _native.MAX_BASE)
        if self._fixed_base is not None and base != self._fixed_base:
            raise ValueError(f"base of {type(self).__name__} is {self._fixed_base}, got {base}")
        self._base = base
        self._prefix_map = self._fast = None

    @property
    def epoch_num(self) -> int | None:
        """The epoch in every prefix, or None."""
        return self._epoch_num

    @epoch_num.setter
    def epoch_num(self, epoch_num: int | None) -> None:
        self._epoch_num = checks.epoch(epoch_num)
        self._fast = None

    @property
    def min_prefix_len(self) -> int:
        """Least number of digits in a pattern (the argument ``min_prefix_length``)."""
        return self._min_prefix_len

    @min_prefix_len.setter
    def min_prefix_len(self, min_prefix_len: int) -> None:
        self._min_prefix_len = checks.integer("min_prefix_len", min_prefix_len, 1, _native.MAX_KEY_BYTES)
        self._prefix_map = self._fast = None

    @property
    def prefix_count(self) -> int:
        """Number of patterns: what was given, else the number of ranks; None goes back to the latter."""
        return self._prefix_count

    @prefix_count.setter
    def prefix_count(self, prefix_count: int | None) -> None:
        self._prefix_count_given = prefix_count is not None
        if prefix_count is None:
            prefix_count = _world_size()
        self._prefix_count = checks.integer("prefix_count", prefix_count, 1, _MAX_COUNT)
        self._prefix_map = self._fast = None

    @property
    def prefix_map(self) -> list[str]:
        """All patterns, by ``rank % prefix_count``: `prefix_count` strings, made when first asked for.

        >>> BinaryPrefixStrategy(min_prefix_length=3, prefix_count=4).prefix_map
        ['000', '100', '010', '110']

        It may be changed or replaced, and the prefixes follow it. Setting an attribute that patterns depend
        on makes a new one.
        """
        if self._prefix_map is None:
            self._prefix_map = self._generate_prefix_map()
            self._fast = None
        return self._prefix_map

    @prefix_map.setter
    def prefix_map(self, prefix_map: list[str]) -> None:
        patterns = list(checks.user_prefix_list("prefix_map", prefix_map))
        self.prefix_count = len(patterns)
        self._prefix_map = patterns

    def generate_prefix(self, rank: int) -> str:
        """``<pattern>/__<rank>_``, or ``<pattern>/epoch_<num>/__<rank>_`` with an epoch.

        Raises:
            TypeError: `rank` is not an integer.
            ValueError: the prefix is longer than a whole key may be on S3 (1,024 bytes).
        """
        try:
            if (fast := self._fast) is not None and (prefix := fast(rank)) is not None:
                return prefix
        except AttributeError:
            self._fast = None
        text = checks.rank_text(rank)
        if self._fast is None and not self._has_own_patterns() and _plain_epoch(self._epoch_num):
            length = self._pattern_length()
            self._fast = _native.NumericPrefixes(self._base, self._prefix_count, length, self._epoch_num)
        if self._has_own_map():
            patterns = self.prefix_map
            pattern = patterns[rank % len(patterns)]
        else:
            index = operator.index(rank) % self._prefix_count
            pattern = self._format_number(index, self._pattern_length())[::-1]
        return checks.within_key("rank", rank, f"{pattern}/{checks.epoch_part(self._epoch_num)}__{text}_")

    def prefixes(self, ranks: Iterable[int]) -> list[str]:
        """The prefixes of many ranks, in order; a ``range`` of them is made at once.

        >>> HexPrefixStrategy(prefix_count=4).prefixes(range(2))
        ['0000000000/__0_', '1000000000/__1_']
        """
        custom = self._has_own_patterns() or _overridden(self, NumericPrefixStrategy, "generate_prefix")
        if custom or not (_in_64_bits(ranks) and _plain_epoch(self._epoch_num)):
            return super().prefixes(ranks)
        fixed = (self._base, self._prefix_count, self._pattern_length(), self._epoch_num)
        return _in_batches(ranks, lambda part: _native.numeric_prefixes(*fixed, part))

    def bind(self: _Numeric, ranks: int) -> _Numeric:
        """A copy with `ranks` patterns, or the strategy itself if its ``prefix_count`` was given.

        A strategy made before ``init_process_group`` cannot know the world size; the storage writer calls
        this when it plans a save, with the number of ranks that take part. The copy can be bound again.

        >>> HexPrefixStrategy().bind(16)(10)
        'a000000000/__10_'

        Args:
            ranks: number of ranks in the job, at least 1.
        """
        ranks = checks.integer("ranks", ranks, 1, _MAX_COUNT)
        if self._prefix_count_given:
            return self
        bound = copy.copy(self)
        bound._prefix_count = ranks
        bound._prefix_map = None
        return bound

    def __eq__(self, other: object) -> bool:
        """Same type and attributes; whether `prefix_map` has been made yet makes no difference."""
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, NumericPrefixStrategy)
        if self._facts() != other._facts():
            return False
        if self._prefix_map is None and other._prefix_map is None:
            return True
        return self._map_or_new() == other._map_or_new()

    def __hash__(self) -> int:
        # Without the epoch, which training loops set between saves.
        return hash((type(self), getattr(self, "_base", None), self._min_prefix_len, self._prefix_count))

    def __repr__(self) -> str:
        padded = self._min_prefix_len != _DEFAULT_MIN_PREFIX_LENGTH
        given = {
            "base": self._base if self._fixed_base is None and hasattr(self, "_base") else None,
            "epoch_num": self._epoch_num,
            "min_prefix_length": self._min_prefix_len if padded else None,
            "prefix_count": self._prefix_count if self._prefix_count_given else None,
        }
        return _repr(self, **given)

    def _format_number(self, number: int, length: int) -> str:
        """`number` in this strategy's digits, most significant first, padded to `length`."""
        return _native.numeric_pattern(self._base, number, length)[::-1]

    def _calculate_prefix_length(self) -> int:
        """The digits that `prefix_count` different patterns need."""
        return _native.digits_needed(self._base, self._prefix_count)

    def _generate_prefix_map(self) -> list[str]:
        count, length = self._prefix_count, self._pattern_length()
        if self._has_own_patterns():
            return [self._format_number(index, length)[::-1] for index in range(count)]
        patterns: list[str] = []
        for start in range(0, count, _BATCH):
            stop = min(start + _BATCH, count)
            patterns += _native.numeric_patterns(self._base, start, stop, length)
        return patterns

    def _pattern_length(self) -> int:
        return max(self._calculate_prefix_length(), self._min_prefix_len)

    def _has_own_map(self) -> bool:
        """Whether patterns come from a list: one that somebody may have changed, or that a subclass makes."""
        return self._prefix_map is not None or _overridden(self, NumericPrefixStrategy, "_generate_prefix_map")

    def _has_own_patterns(self) -> bool:
        own_digits = _overridden(self, NumericPrefixStrategy, "_format_number")
        own_length = _overridden(self, NumericPrefixStrategy, "_calculate_prefix_length")
        return self._has_own_map() or own_digits or own_length

    def _map_or_new(self) -> list[str]:
        return self._generate_prefix_map() if self._prefix_map is None else self._prefix_map

    def _facts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_prefix_map"}


class BinaryPrefixStrategy(NumericPrefixStrategy):
    """`NumericPrefixStrategy` in base 2: patterns of 0 and 1.

    >>> BinaryPrefixStrategy(prefix_count=4)(3)
    '1100000000/__3_'

    Args and errors are those of `NumericPrefixStrategy`, without ``base``.
    """

    _fixed_base = 2

    def __init__(
        self,
        epoch_num: int | None = None,
        min_prefix_length: int = _DEFAULT_MIN_PREFIX_LENGTH,
        prefix_count: int | None = None,
    ) -> None:
        super().__init__(2, epoch_num, min_prefix_length, prefix_count)


class HexPrefixStrategy(NumericPrefixStrategy):
    """`NumericPrefixStrategy` in base 16: patterns of 0 to 9 and a to f.

    >>> HexPrefixStrategy(epoch_num=5, prefix_count=16)(255)
    'f000000000/epoch_5/__255_'

    Args and errors are those of `NumericPrefixStrategy`, without ``base``.
    """

    _fixed_base = 16

    def __init__(
        self,
        epoch_num: int | None = None,
        min_prefix_length: int = _DEFAULT_MIN_PREFIX_LENGTH,
        prefix_count: int | None = None,
    ) -> None:
        super().__init__(16, epoch_num, min_prefix_length, prefix_count)


class RoundRobinPrefixStrategy(S3PrefixStrategyBase):
    """The user's own prefixes, dealt out to the ranks in turn.

    ``<user prefix>/__<rank>_``, or ``<user prefix>/epoch_<num>/__<rank>_`` with an epoch.

    >>> RoundRobinPrefixStrategy(["p1", "p2", "p3"], epoch_num=5)(4)
    'p2/epoch_5/__4_'

    Args:
        user_prefixes: list or tuple of prefixes; rank ``r`` gets number ``r % len(user_prefixes)``. A
            trailing ``/`` stays as it is and makes a doubled one.
        epoch_num: put ``epoch_<num>/`` into every prefix; None leaves it out.

    Raises:
        ValueError: `user_prefixes` is not a list or tuple of strings or has none, or one of them is empty,
            starts with ``/``, has a segment ``.`` or ``..``, ``://`` or a control character, or is longer than a whole
            key may be on S3 (1,024 bytes); or `epoch_num` is not an integer. The message names the argument,
            its value and the limit.
    """

    _user_prefixes: list[str] | tuple[str, ...] = ()
    _epoch_num: int | None = None

    def __init__(self, user_prefixes: list[str] | tuple[str, ...], epoch_num: int | None = None) -> None:
        self.user_prefixes = user_prefixes
        self.epoch_num = epoch_num
        epoch = checks.epoch_part(self._epoch_num)
        for position, prefix in enumerate(self._user_prefixes):
            blamed: tuple[str, object] = (f"user_prefixes[{position}]", prefix)
            if len(epoch) > len(prefix):
                blamed = ("epoch_num", epoch_num)
            checks.within_key(*blamed, f"{prefix}/{epoch}__0_")

    @property
    def user_prefixes(self) -> list[str] | tuple[str, ...]:
        """The prefixes in the order in which they are dealt out."""
        return self._user_prefixes

    @user_prefixes.setter
    def user_prefixes(self, user_prefixes: list[str] | tuple[str, ...]) -> None:
        self._user_prefixes = checks.user_prefix_list("user_prefixes", user_prefixes)
        self._fast = None

    @property
    def epoch_num(self) -> int | None:
        """The epoch in every prefix, or None."""
        return self._epoch_num

    @epoch_num.setter
    def epoch_num(self, epoch_num: int | None) -> None:
        self._epoch_num = checks.epoch(epoch_num)
        self._fast = None

    def generate_prefix(self, rank: int) -> str:
        """``<user prefix>/__<rank>_``, or ``<user prefix>/epoch_<num>/__<rank>_`` with an epoch.

        Raises:
            TypeError: `rank` is not an integer.
            ValueError: `user_prefixes` has been changed into something unusable, or the prefix is longer than
                a whole key may be on S3 (1,024 bytes).
        """
        try:
            if (fast := self._fast) is not None and (made := fast(rank)) is not None:
                return made
        except AttributeError:
            self._fast = None
        text = checks.rank_text(rank)
        if not self._user_prefixes:
            raise ValueError("user_prefixes must have at least 1 prefix, got 0")
        position = rank % len(self._user_prefixes)
        prefix = checks.user_prefix("user_prefixes", position, self._user_prefixes[position])
        made = checks.within_key("rank", rank, f"{prefix}/{checks.epoch_part(self._epoch_num)}__{text}_")
        if _plain_epoch(self._epoch_num) and all(type(each) is str for each in self._user_prefixes):
            # A list may have been changed since: the next prefix will show it.
            with contextlib.suppress(ValueError):
                self._fast = _native.RoundRobinPrefixes(self._user_prefixes, self._epoch_num)
        return made

    def prefixes(self, ranks: Iterable[int]) -> list[str]:
        """The prefixes of many ranks, in order; a ``range`` of them is made at once."""
        custom = _overridden(self, RoundRobinPrefixStrategy, "generate_prefix")
        if custom or not (_in_64_bits(ranks) and _plain_epoch(self._epoch_num)):
            return super().prefixes(ranks)
        fixed = (list(checks.user_prefix_list("user_prefixes", self._user_prefixes)), self._epoch_num)
        return _in_batches(ranks, lambda part: _native.round_robin_prefixes(*fixed, part))

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        # Without the epoch, which training loops set between saves.
        return hash((type(self), tuple(self._user_prefixes)))

    def __repr__(self) -> str:
        return _repr(self, user_prefixes=self._user_prefixes, epoch_num=self._epoch_num)


def _world_size() -> int:
    """The world size if torch.distributed is up, else 1; torch that was never imported is not up."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 1
    return int(dist.get_world_size())


def _overridden(strategy: S3PrefixStrategyBase, owner: type, method: str) -> bool:
    return getattr(type(strategy), method) is not getattr(owner, method)


def _in_64_bits(ranks: Iterable[int]) -> bool:
    """Whether `ranks` is a range that native code can walk."""
    if not isinstance(ranks, range) or not ranks:
        return False
    return all(-(2**63) <= number < 2**63 for number in (ranks[0], ranks[-1], ranks.step))


def _plain_epoch(epoch_num: int | None) -> bool:
    """Whether native code writes `epoch_num` as Python does: a plain int of 64 bits, or none."""
    return epoch_num is None or (type(epoch_num) is int and -(2**63) <= epoch_num < 2**63)


def _in_batches(ranks: Iterable[int], make: Callable[[tuple[int, int, int]], list[str]]) -> list[str]:
    assert isinstance(ranks, range)
    prefixes: list[str] = []
    for start in range(0, len(ranks), _BATCH):
        part = ranks[start : start + _BATCH]
        prefixes += make((part.start, part.step, len(part)))
    return prefixes


def _repr(strategy: S3PrefixStrategyBase, **given: object) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    return f"{type(strategy).__name__}({arguments})"
