"""A rank's share of what S3 answers per second.

S3 counts requests per range of the key space, at least 3,500 writes and 5,500 reads a second each, whatever their
size (Amazon S3 user guide, "Performance design patterns"). New prefixes bring no range of their own: all of a job's
keys lie in one until S3 has seen it under load for a while. So one range is what is counted on, and ranks are taken
to be alike; parts and ranges grow until a rank's requests fit its share. Where S3 has split, they are larger than
they need be, which costs a part's time at the end of a save; where it has not, smaller ones would cost minutes
(``s3dcp simulate``).
"""

from __future__ import annotations

import torch.distributed as dist

WRITES_PER_SECOND = 3500.0
READS_PER_SECOND = 5500.0


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
