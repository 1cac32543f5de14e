"""Python's cyclic garbage collector, kept from looking through millions of objects that all stay."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from . import _native
from ._native import GcPause

__all__ = ["GcPause", "without_gc"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_gc(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, during whose calls the collector does not run."""

    @functools.wraps(function)
    def paused(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with GcPause():
            return function(*args, **kwargs)

    return paused


os.register_at_fork(after_in_child=_native.end_gc_pauses)
