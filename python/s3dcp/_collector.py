"""Python's cyclic garbage collector, kept from looking through millions of objects that all stay."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Fewer new objects than this are not worth moving, and with them all that is garbage by now and would be found young.
_MANY = 10_000

_lock = threading.Lock()
_paused = 0
_was_enabled = False


@contextmanager
def no_collections(*, old_at_once: bool = False) -> Iterator[None]:
    """Keep the collector from running, in whichever threads are within.

    A plan or an index of many items makes many objects that all stay; each full collection they bring about walks the
    whole heap of the process, which costs several times as much as making them.

    Args:
        old_at_once: count what was made, if it is much, among the collector's oldest afterwards. Freezing and thawing
            moves it there without a look, where the next collections of young objects would go through all of it.
    """
    global _paused, _was_enabled
    with _lock:
        if _paused == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _lock:
            made_many = gc.get_count()[0] >= _MANY
            if old_at_once and made_many and _was_enabled and not gc.get_freeze_count():  # what others froze stays so
                gc.freeze()
                gc.unfreeze()
            _paused = max(_paused - 1, 0)  # none in a child that was forked within
            if _paused == 0 and _was_enabled:
                gc.enable()


def _after_fork_in_child() -> None:
    """The parent's lock may be held, and its threads within will not come out here."""
    global _lock, _paused
    _lock = threading.Lock()
    if _paused and _was_enabled:
        gc.enable()
    _paused = 0


os.register_at_fork(after_in_child=_after_fork_in_child)
