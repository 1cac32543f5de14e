"""Tests that try many things at random: how many, and from which seed.

``S3DCP_KILLS``, ``S3DCP_INTERRUPTS``, ``S3DCP_FLIPS`` and ``S3DCP_SEQUENCES`` change how many; ``S3DCP_SEED`` repeats
what a seed did.
"""

from __future__ import annotations

import os
import random


def how_many(what: str, usual: int) -> int:
    """`usual`, or what ``S3DCP_<what>`` says."""
    return int(os.environ.get(f"S3DCP_{what}", usual))


def new_seed() -> int:
    """A fresh seed, or the one to repeat; pytest shows it beside a failure."""
    seed = int(os.environ.get("S3DCP_SEED") or random.SystemRandom().randrange(10**9))
    print(f"S3DCP_SEED={seed}")
    return seed
