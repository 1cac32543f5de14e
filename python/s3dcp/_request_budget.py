"""A rank's share of what S3 answers per second.

S3 counts requests per range of the key space, at least 3,500 writes and 5,500 reads a second each, whatever their
size (Amazon S3 user guide, "Performance design patterns"). Keys of one directory are taken to be one range, and ranks
to be alike. Parts and ranges grow until a rank's requests fit its share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch.distributed as dist

WRITES_PER_SECOND = 3500.0
READS_PER_SECOND = 5500.0


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def writers_per_directory(prefixes: Iterable[str]) -> int:
    """Most ranks whose `prefixes` begin with the same directory."""
    return max(Counter(prefix.rpartition("/")[0] for prefix in prefixes).values(), default=1)


def reads_per_second(relative_paths: Iterable[str], ranks: int) -> float:
    """One rank's share of reads, when `ranks` ranks read these shard files."""
    directories = {path.rpartition("/")[0] for path in relative_paths}
    return READS_PER_SECOND * max(len(directories), 1) / ranks
