"""Other S3 servers that the tests run on, each started in a folder of its own on loopback and stopped by its ids.

``pytest --s3=rgw`` and the like run every test that talks to the embedded server on another one instead.
`departures` says where that one differs from S3.
"""

from __future__ import annotations

from types import ModuleType

from . import garage, localstack, moto, rgw, s3rver

SERVERS: dict[str, ModuleType] = {
    "rgw": rgw,
    "garage": garage,
    "moto": moto,
    "localstack": localstack,
    "s3rver": s3rver,
}
