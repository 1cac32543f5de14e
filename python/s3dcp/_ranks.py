"""How many ranks there are."""

from __future__ import annotations

import sys


def world_size() -> int:
    """Ranks of the process group; 1 without one. torch that was never imported has none."""
    dist = sys.modules.get("torch.distributed")
    return int(dist.get_world_size()) if dist is not None and dist.is_available() and dist.is_initialized() else 1
