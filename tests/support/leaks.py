"""Saves, loads and failures of every kind, in a process of its own that logs, prints and pickles all it has.

``python -m support.leaks URI``; standard input is JSON: for each case the environment to change and the endpoint.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from s3dcp import S3ClientConfig, S3FileSystem, S3StorageReader, S3StorageWriter
from support import jobs
from support.environment import kept_environment
from support.store import REGION


def show(value: Any, locals_too: bool = True) -> None:
    """Write everything that can be had of a value to standard output, of an error also the local variables."""
    print(f"{value} {value!r} {getattr(value, '__dict__', None)!r}", flush=True)
    try:
        sys.stdout.buffer.write(pickle.dumps(value))
    except (TypeError, pickle.PicklingError) as error:
        print(f"does not pickle: {error}")
    if isinstance(value, BaseException):
        print("".join(traceback.TracebackException.from_exception(value, capture_locals=locals_too).format()))


def case(name: str, uri: str, endpoint_url: str | None) -> None:
    """Everything that uses the credentials."""
    logging.getLogger("s3dcp").debug("case: %s", name)
    locals_too = "@" not in (endpoint_url or "")  # a caller's own variables are the caller's
    state = {"x": torch.ones(3), "large": torch.zeros(6 << 20, dtype=torch.uint8)}

    def settings() -> dict[str, Any]:
        config = S3ClientConfig(max_attempts=2, part_size=5 << 20, endpoint_url=endpoint_url, deadline=20)
        return {"endpoint_url": endpoint_url, "s3client_config": config}

    calls: list[Callable[[], Any]] = [
        lambda: jobs.save(state, uri, progress=True, **settings()),
        lambda: jobs.load(state, uri, **settings()),
        lambda: S3FileSystem(REGION, **settings()).ls(uri),
        lambda: S3FileSystem(REGION, **settings()).exists(uri),
        lambda: S3FileSystem(REGION, **settings()).rm_file(f"{uri}/none"),
        lambda: S3StorageReader(REGION, uri, **settings()).read_metadata(),
    ]
    for call in calls:
        try:
            call()
        except BaseException as error:
            show(error, locals_too)
    for make in (settings, lambda: S3StorageWriter(REGION, uri, **settings())):
        try:
            made = make()
        except ValueError as error:
            show(error, locals_too)
            continue
        show(made)
        if isinstance(made, S3StorageWriter):
            show(made.fs)
            show(S3StorageReader(REGION, uri, **settings()))
            try:
                show(made.fs.client)
                show(made.fs.client.stats())
            except ValueError as error:
                show(error)


def main() -> None:
    """All cases, one after the other."""
    logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
    faulthandler.enable()
    for name, (changes, endpoint_url) in json.load(sys.stdin).items():
        with kept_environment():
            os.environ.update(changes)
            case(name, sys.argv[1], endpoint_url)
    faulthandler.dump_traceback(all_threads=True)


if __name__ == "__main__":
    main()
