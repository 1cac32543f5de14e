"""Which rank this is, and of how many."""

from __future__ import annotations

import sys
from typing import Any


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    dist = _group()
    return int(dist.get_world_size()) if dist else 1


def this_rank() -> int:
    """This process's rank in its group; 0 without one."""
    dist = _group()
    return int(dist.get_rank()) if dist else 0


def _group() -> Any:
    """``torch.distributed`` where it has a group; torch that was never imported has none."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
