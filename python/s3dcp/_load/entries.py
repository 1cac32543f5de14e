"""The mappings of a large index, whose entries are unpickled when they are asked for.

A rank that loads its part of a state asks for the entries of its part; to unpickle all of a million costs seconds and
hundreds of MiB. Whoever wants more than a few of them (iterates, compares, copies, changes) gets all, and from then on
the mapping is a dict like any other.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

from .. import _native

# Entries that are unpickled one by one, of so many: that costs a few times as much for each as to unpickle all.
ONE_OF = 16
_TENSORS, _ITEMS = map(_native.MAPPINGS.index, ("state_dict_metadata", "storage_data"))
_ABSENT = object()


class Values:
    """What an index says, part by part.

    Args:
        index: an index with an outline.
        load: makes what a pickle says; its second argument makes the persistent objects in it.
    """

    def __init__(self, index: _native.StoredIndex, load: Callable[..., Any]) -> None:
        self.index = index
        self.lock = threading.RLock()
        self._load = load
        self._shared: dict[int, Any] = {}
        self._made: dict[int, dict[Any, Any]] = {}
        # Who wants all tensors wants all items, where each tensor is stored as one.
        items = index.count(_ITEMS) or 0
        self._pair = [_TENSORS, _ITEMS] if 0 < items <= (index.count(_TENSORS) or 0) else []

    def entry(self, mapping: int, number: int) -> tuple[Any, Any, int]:
        """Key and value, and what they cost: the length of their pickle."""
        body = self.index.entry(mapping, number)
        return *self._load(body, self._shared_value), len(body)

    def mapping(self, mapping: int) -> dict[Any, Any]:
        """All entries; to be asked for once."""
        if mapping not in self._made:
            numbers = [mapping]
            if mapping in self._pair:
                numbers, self._pair = self._pair, []
            self._made.update(zip(numbers, self._load(self.index.mappings(*numbers)), strict=True))
        entries = self._made.pop(mapping)
        assert type(entries) is dict
        return entries

    def _shared_value(self, number: int) -> Any:
        """A value that several entries refer to."""
        try:
            return self._shared[number]
        except KeyError:
            value = self._shared[number] = self._load(self.index.value(number))
            return value


class Entries(dict[Any, Any]):
    """A dict, the entries of which are made when they are asked for.

    An entry that was asked for is kept: it is the same object when it is asked for again. Pickles and copies of this
    are plain dicts.
    """

    __slots__ = ("_source",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._source: _Source | None = None

    @classmethod
    def of(cls, values: Values, mapping: int) -> Entries:
        """The entries of a mapping, which is a place in ``_native.MAPPINGS``."""
        entries = cls()
        entries._source = _Source(values, mapping)
        return entries

    def __missing__(self, key: Any) -> Any:
        source = self._source
        if source is not None:
            with source.lock:
                if self._source is not None and (numbers := source.find(key)) is not None:
                    for number in numbers:
                        known, value = source.entry(number)
                        if known == key:
                            return super().setdefault(known, value)
                    raise KeyError(key)
                self._make_all()
        # all are here by now, made by this thread or another
        value = super().get(key, _ABSENT)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def expect(self, count: int) -> None:
        """Make all entries now if that is quicker than one by one for those that will be asked for, `count` of them."""
        source = self._source
        if source is not None and not source.is_few(count):
            self._make_all()

    def _make_all(self) -> None:
        source = self._source
        if source is None:
            return
        with source.lock:
            if self._source is None:
                return
            # in the index's order; those that somebody has already stay what they are
            everything = {**source.everything(), **dict(super().items())}
            super().clear()
            super().update(everything)
            # at last: until then others who miss something wait for the lock
            self._source = None

    def __len__(self) -> int:
        source = self._source
        length = source.length if source is not None else None
        if length is None:
            self._make_all()
            return super().__len__()
        return length

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        try:
            self.__missing__(key)
        except KeyError:
            return False
        return True

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        return copy.deepcopy(dict(self), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (), None, None, iter(self.items())


def _of_all(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def of_all(self: Entries, *args: Any, **kwargs: Any) -> Any:
        self._make_all()
        return method(self, *args, **kwargs)

    return of_all


for _name in (
    *("__iter__", "__reversed__", "__eq__", "__ne__", "__or__", "__ror__", "__ior__", "__repr__", "__sizeof__"),
    *(
        "__setitem__",
        "__delitem__",
        "keys",
        "values",
        "items",
        "pop",
        "popitem",
        "setdefault",
        "update",
        "clear",
        "copy",
    ),
):
    setattr(Entries, _name, _of_all(_name))


def expect(mapping: Any, count: int) -> None:
    """Say how many entries of a mapping of an index will be asked for."""
    if isinstance(mapping, Entries):
        mapping.expect(count)


class _Source:
    """Where the entries come from, as long as not all are here.

    Args:
        As for `Entries.of`.
    """

    def __init__(self, values: Values, mapping: int) -> None:
        self._values = values
        self._mapping = mapping
        self.lock = values.lock
        # None where only a dict can tell, as keys may be there twice
        self.length = values.index.count(mapping)
        self._entries_left = (self.length or 0) // ONE_OF
        self._bytes_left = len(values.index)

    def is_few(self, count: int) -> bool:
        """Whether so many more entries had better be made one by one."""
        return self._entries_left >= count and self._bytes_left > 0

    def find(self, key: Any) -> list[int] | None:
        """The numbers of the entries that may have this key; None where all entries had better be made."""
        return self._values.index.find(self._mapping, key) if self.is_few(1) else None

    def entry(self, number: int) -> tuple[Any, Any]:
        """Key and value."""
        key, value, cost = self._values.entry(self._mapping, number)
        self._entries_left -= 1
        self._bytes_left -= cost
        return key, value

    def everything(self) -> dict[Any, Any]:
        """All of them."""
        return self._values.mapping(self._mapping)
