"""Which rank this is, of how many, and what they do together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def world_size(process_group: Any = None) -> int:
    """Ranks of a process group, the default one where it is None; 1 without one."""
    dist = _distributed()
    return int(dist.get_world_size(*_of(process_group))) if dist else 1


def this_rank(process_group: Any = None) -> int:
    """This process's rank in a group, the default one where it is None; 0 without one."""
    dist = _distributed()
    return int(dist.get_rank(*_of(process_group))) if dist else 0


def ranks_on_node() -> int:
    """Ranks of this job on this machine, where torchrun says how many; else 1."""
    try:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError:
        return 1


def together(step: Callable[[], Result], process_group: Any = None) -> Result:
    """Do `step` on every rank, and go on when all have; the failure of one is raised on all.

    Raises:
        Exception: what failed here, else on the first rank on which something did.
    """
    failure: Exception | None = None
    try:
        result = step()
    except Exception as error:
        failure = error
    failures = [failure]
    if dist := _distributed():
        failures = [None] * world_size(process_group)
        dist.all_gather_object(failures, failure, group=process_group)
    for each in failures:
        if each is not None:
            raise failure or each
    return result


def is_distributed() -> bool:
    """Whether there is a process group."""
    return _distributed() is not None


def on_first_rank(step: Callable[[], Result], process_group: Any = None) -> Result:
    """Do `step` on the first rank of a group; its result, or its failure, is that of all."""
    dist = _distributed()
    if dist is None:
        return step()
    told: list[Any] = [None, None]
    if this_rank(process_group) == 0:
        try:
            told[0] = step()
        except Exception as error:
            told[1] = error
    first = 0 if process_group is None else dist.get_global_rank(process_group, 0)
    dist.broadcast_object_list(told, src=first, group=process_group)
    if told[1] is not None:
        raise told[1]
    result: Result = told[0]
    return result


def _of(process_group: Any) -> tuple[Any, ...]:
    """The argument that names a group; none for the default one, as programs that stand in for torch expect."""
    return () if process_group is None else (process_group,)


def _distributed() -> Any:
    """``torch.distributed`` where it has a group; torch that was never imported has none."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
