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

The classes hold their few numbers and nothing else. Native code computes a prefix from them when it is asked for, so
a million prefixes take no more memory than one. The classes pickle, copy, compare and print. Attributes may be set
between saves (``strategy.epoch_num = 7``); the next prefix shows it. This module does not import torch.

Write your own by deriving from `S3PrefixStrategyBase` (any text) or from `NumericPrefixStrategy` (other
digits).
"""

from __future__ import annotations

import abc
import copy
import operator
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from . import _native
from ._ranks import world_size
from .description import describe

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
# What native code computes prefixes from: the kind of strategy, its parts, and the epoch.
_Formula = tuple[str, Any, int | None]


class S3PrefixStrategyBase(abc.ABC):
    """What every strategy is: a callable from rank to key prefix.

    A subclass implements `generate_prefix`; ``__init__`` need not be called.

    >>> class EvenOdd(S3PrefixStrategyBase):
    ...     def generate_prefix(self, rank):
    ...         return f"{'odd' if rank % 2 else 'even'}/__{rank}_"
    >>> EvenOdd()(3)
    'odd/__3_'
    """

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
        >>> HexPrefixStrategy(prefix_count=4).prefixes(range(2))
        ['0000000000/__0_', '1000000000/__1_']
        """
        formula = self._formula() if type(self).generate_prefix is _computed_prefix else None
        if formula is None:
            return [self.generate_prefix(rank) for rank in ranks]
        return _native.prefixes(formula, ranks)

    def _formula(self, rank: int | None = None) -> _Formula | None:
        """What native code computes the prefix of `rank` from, or that of every rank; None where it cannot."""
        return None

    def bind(self: _Strategy, ranks: int) -> _Strategy:
        """This strategy for a job of `ranks` ranks, as the storage writer uses it for a save.

        Returns the strategy itself where the number of ranks changes nothing, which is so for every strategy
        but a numeric one without ``prefix_count``.
        """
        del ranks
        return self

    describe = describe


def _computed_prefix(self: S3PrefixStrategyBase, rank: int) -> str:
    """The prefix of `rank`'s shard files. Native code computes it.

    Raises:
        TypeError: `rank` is not an integer.
        ValueError: an attribute has been changed into something unusable, or the prefix is longer than a whole
            key may be on S3 (1,024 bytes).
    """
    formula = self._formula(rank)
    if formula is None:
        raise TypeError(f"rank must be an integer, got {rank}")
    return _native.prefix(formula, rank)


class DefaultPrefixStrategy(S3PrefixStrategyBase):
    """``__<rank>_``: all ranks side by side, named as torch itself names shard files.

    >>> DefaultPrefixStrategy()(7)
    '__7_'
    """

    generate_prefix = _computed_prefix

    def _formula(self, rank: int | None = None) -> _Formula:
        return "default", None, None

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
    base: int
    epoch_num: int | None = None
    min_prefix_len: int = _native.DEFAULT_MIN_PREFIX_LENGTH
    prefix_count: int = 1
    _prefix_count_given: bool = False
    _prefix_map: list[str] | None = None

    def __init__(
        self,
        base: int,
        epoch_num: int | None = None,
        min_prefix_length: int = _native.DEFAULT_MIN_PREFIX_LENGTH,
        prefix_count: int | None = None,
    ) -> None:
        self.base = base
        self.epoch_num = epoch_num
        self.min_prefix_len = _length("min_prefix_length", min_prefix_length)
        self.prefix_count = prefix_count  # type: ignore[assignment]
        if (formula := self._formula()) is not None:
            # The shortest prefix must fit into a key. A longer one is checked when it is made.
            _native.prefix(formula, 0)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked. Those that patterns depend on drop the patterns there are."""
        if name == "epoch_num":
            value = _native.check_epoch(value)
        elif name == "base":
            own_digits = type(self)._format_number is not NumericPrefixStrategy._format_number
            value = _native.check_integer(name, value, 2, _MAX_COUNT if own_digits else _native.MAX_BASE)
            if self._fixed_base not in (None, value):
                raise ValueError(f"base of {type(self).__name__} is {self._fixed_base}, got {value}")
        elif name == "min_prefix_len":
            value = _length(name, value)
        elif name == "prefix_count":
            given = value is not None
            value = _native.check_integer(name, value if given else world_size(), 1, _MAX_COUNT)
            self._prefix_count_given = given
        super().__setattr__(name, value)
        if name in ("base", "min_prefix_len", "prefix_count"):
            self._prefix_map = None

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
        return self._prefix_map

    @prefix_map.setter
    def prefix_map(self, prefix_map: list[str]) -> None:
        patterns = list(_native.check_user_prefixes("prefix_map", prefix_map, None))
        self.prefix_count = len(patterns)
        self._prefix_map = patterns

    generate_prefix = _computed_prefix

    def _formula(self, rank: int | None = None) -> _Formula | None:
        cls, ours = type(self), NumericPrefixStrategy
        own_map = self._prefix_map is not None or cls._generate_prefix_map is not ours._generate_prefix_map
        own_length = cls._calculate_prefix_length is not ours._calculate_prefix_length
        if not (own_map or own_length or cls._format_number is not ours._format_number):
            return "numeric", (self.base, self.prefix_count, self.min_prefix_len), self.epoch_num
        if rank is None:
            return None
        number = operator.index(rank)
        if own_map:
            pattern = self.prefix_map[number % len(self.prefix_map)]
        else:
            pattern = self._format_number(number % self.prefix_count, self._pattern_length())[::-1]
        return "given", f"{pattern}", self.epoch_num

    def bind(self: _Numeric, ranks: int) -> _Numeric:
        """A copy with `ranks` patterns, or the strategy itself if its ``prefix_count`` was given.

        A strategy made before ``init_process_group`` cannot know the world size; the storage writer calls
        this when it plans a save, with the number of ranks that take part. The copy can be bound again.

        >>> HexPrefixStrategy().bind(16)(10)
        'a000000000/__10_'

        Args:
            ranks: number of ranks in the job, at least 1.
        """
        ranks = _native.check_integer("ranks", ranks, 1, _MAX_COUNT)
        if self._prefix_count_given:
            return self
        bound = copy.copy(self)
        bound.prefix_count, bound._prefix_count_given = ranks, False
        return bound

    def __eq__(self, other: object) -> bool:
        """Same type and attributes; whether `prefix_map` has been made yet makes no difference."""
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, NumericPrefixStrategy)
        mine, its = ({**vars(each), "_prefix_map": None} for each in (self, other))
        made = self._prefix_map is not None or other._prefix_map is not None
        return mine == its and not (made and self.prefix_map != other.prefix_map)

    def __hash__(self) -> int:
        # Without the epoch, which training loops set between saves.
        return hash((type(self), getattr(self, "base", None), self.min_prefix_len, self.prefix_count))

    def __repr__(self) -> str:
        padded = self.min_prefix_len != _native.DEFAULT_MIN_PREFIX_LENGTH
        given = {
            "base": self.base if self._fixed_base is None and hasattr(self, "base") else None,
            "epoch_num": self.epoch_num,
            "min_prefix_length": self.min_prefix_len if padded else None,
            "prefix_count": self.prefix_count if self._prefix_count_given else None,
        }
        return _repr(self, **given)

    def _format_number(self, number: int, length: int) -> str:
        """`number` in this strategy's digits, most significant first, padded to `length`."""
        return _native.numeric_pattern(self.base, number, length)[::-1]

    def _calculate_prefix_length(self) -> int:
        """The digits that `prefix_count` different patterns need."""
        return _native.digits_needed(self.base, self.prefix_count)

    def _generate_prefix_map(self) -> list[str]:
        length = self._pattern_length()
        return [self._format_number(index, length)[::-1] for index in range(self.prefix_count)]

    def _pattern_length(self) -> int:
        return max(self._calculate_prefix_length(), self.min_prefix_len)


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
        min_prefix_length: int = _native.DEFAULT_MIN_PREFIX_LENGTH,
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
        min_prefix_length: int = _native.DEFAULT_MIN_PREFIX_LENGTH,
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

    user_prefixes: list[str] | tuple[str, ...] = ()
    epoch_num: int | None = None

    def __init__(self, user_prefixes: list[str] | tuple[str, ...], epoch_num: int | None = None) -> None:
        self.epoch_num = epoch_num
        self.user_prefixes = user_prefixes

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute, checked; a list is copied, so that the caller's may change without the strategy."""
        if name == "epoch_num":
            value = _native.check_epoch(value)
        elif name == "user_prefixes":
            value = _native.check_user_prefixes(name, value, self.epoch_num)
        super().__setattr__(name, value)

    generate_prefix = _computed_prefix

    def _formula(self, rank: int | None = None) -> _Formula:
        return "round_robin", self.user_prefixes, self.epoch_num

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        # Without the epoch, which training loops set between saves.
        return hash((type(self), tuple(self.user_prefixes)))

    def __repr__(self) -> str:
        return _repr(self, user_prefixes=self.user_prefixes, epoch_num=self.epoch_num)


def _length(name: str, value: object) -> int:
    return _native.check_integer(name, value, 1, _native.MAX_KEY_BYTES)


def _repr(strategy: S3PrefixStrategyBase, **given: object) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    return f"{type(strategy).__name__}({arguments})"
