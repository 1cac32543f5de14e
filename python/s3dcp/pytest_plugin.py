"""Fixtures for pytest, found by it as soon as s3dcp is installed.

``s3dcp_server``
    One S3 endpoint in memory for the whole session; the AWS environment variables point to it from its first use to
    the end of the session.
``s3dcp_bucket``
    The name of an empty bucket of the test's own on that server.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from . import testing

__all__ = ["s3dcp_bucket", "s3dcp_server"]


@pytest.fixture(scope="session")
def s3dcp_server() -> Iterator[testing.Server]:
    """An S3 endpoint in memory, in the AWS environment variables."""
    with testing.server(buckets=()) as server:
        yield server


@pytest.fixture(scope="session")
def _s3dcp_bucket_names() -> Callable[[], str]:
    numbers = itertools.count(1)
    return lambda: f"test-{next(numbers)}"


@pytest.fixture
def s3dcp_bucket(s3dcp_server: testing.Server, _s3dcp_bucket_names: Callable[[], str]) -> Iterator[str]:
    """The name of an empty bucket; it and what the test leaves in it are gone afterwards."""
    name = _s3dcp_bucket_names()
    s3dcp_server.create_bucket(name)
    yield name
    s3dcp_server.delete_bucket(name)
