"""Who is measured: how each makes the writer or reader that torch's `dcp.save` and `dcp.load` are given.

Every candidate runs with its best documented settings, the same everywhere. Imports happen here, before the clock
starts; clients are made while it runs.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

REGION = "us-east-1"
Factory = Callable[[str, dict[str, Any]], Callable[[], Any]]


def s3dcp(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    from s3dcp import HexPrefixStrategy, S3ClientConfig, S3StorageReader, S3StorageWriter

    if operation == "save":
        config = S3ClientConfig(part_size=spec["part_mib"] * 2**20) if "part_mib" in spec else None
        strategy = HexPrefixStrategy() if spec.get("hex") else None
        return lambda: S3StorageWriter(REGION, spec["uri"], config, strategy, spec.get("files", 1))
    connections = S3ClientConfig(max_connections=spec["connections"]) if spec.get("connections") else None
    return lambda: S3StorageReader(REGION, spec["uri"], connections, share=spec.get("share", "auto"))


def s3torchconnector(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    from s3torchconnector import S3ClientConfig
    from s3torchconnector.dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter

    part_size = {"part_size": spec["part_mib"] * 2**20} if "part_mib" in spec else {}
    config = S3ClientConfig(force_path_style=True, throughput_target_gbps=100.0, **part_size)
    if operation == "save":
        strategy = HexPrefixStrategy() if spec.get("hex") else None
        return lambda: S3StorageWriter(REGION, spec["uri"], config, strategy, spec.get("files", 1))
    return lambda: S3StorageReader(REGION, spec["uri"], config)


def fsspec(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    """torch's own writer and reader over s3fs."""
    import s3fs  # noqa: F401

    return _through_fsspec(operation, spec, {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]})


def obstore(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    """torch's own writer and reader over obstore's fsspec file system."""
    from obstore.fsspec import register

    register("s3")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    client_options: dict[str, Any] = {"allow_http": endpoint.startswith("http:"), "timeout": "300s"}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        with open(bundle) as file:
            client_options["root_certificate"] = file.read()
    store = {"endpoint": endpoint, "region": REGION, "virtual_hosted_style_request": False}
    return _through_fsspec(operation, spec, {"config": store, "client_options": client_options})


def _through_fsspec(operation: str, spec: dict[str, Any], options: dict[str, Any]) -> Callable[[], Any]:
    try:
        from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader, FsspecWriter
    except ImportError:  # torch before 2.15
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

    if operation == "save":
        files = spec.get("files", 1)
        return lambda: FsspecWriter(spec["uri"], thread_count=files, sync_files=False, **options)
    return lambda: FsspecReader(spec["uri"], **options)


def file_system(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    """torch's own writer, into memory that is mounted as a file system: no network and no disk."""
    from torch.distributed.checkpoint import FileSystemWriter

    folder = tempfile.mkdtemp(prefix="s3dcp-bench-", dir="/dev/shm")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return lambda: FileSystemWriter(folder)


def multi_storage_client(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    from multistorageclient.contrib.torch import MultiStorageFileSystemReader, MultiStorageFileSystemWriter

    options: dict[str, Any] = {
        "base_path": spec["uri"].split("/")[2],
        "region_name": REGION,
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
    }
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["verify"] = bundle
    profile = {"storage_provider": {"type": "s3", "options": options}}
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump({"profiles": {"bench": profile}}, file)
    atexit.register(os.unlink, file.name)
    os.environ["MSC_CONFIG"] = file.name
    uri = "msc://bench/" + "/".join(spec["uri"].split("/")[3:])
    if operation == "save":
        return lambda: MultiStorageFileSystemWriter(uri, thread_count=spec.get("files", 1), sync_files=False)
    return lambda: MultiStorageFileSystemReader(uri)


def nothing(operation: str, spec: dict[str, Any]) -> Callable[[], Any]:
    """A writer or reader that does nothing: what torch itself takes."""
    from nothing import NothingReader, NothingWriter

    return NothingWriter if operation == "save" else NothingReader


FACTORIES: dict[str, Factory] = {
    "s3dcp": s3dcp,
    "s3torchconnector": s3torchconnector,
    "fsspec": fsspec,
    "obstore": obstore,
    "multi-storage-client": multi_storage_client,
    "FileSystemWriter": file_system,
    "nothing": nothing,
}
# One stream, copied in Python: they get a smaller state, so that a run ends; their figures are per GiB.
SLOW = ("fsspec", "obstore", "multi-storage-client")
VERSIONS = ("s3dcp", "torch", "s3torchconnector", "fsspec", "s3fs", "obstore", "multi-storage-client")
# A candidate that cannot save loads what this one saved.
SAVED_BY = {"obstore": "fsspec"}
# Why a candidate is not measured: by case, candidate and operation, "*" for all.
LACKS = {
    (
        "https",
        "s3torchconnector",
        "*",
    ): "its client trusts the system's certificate authorities alone, and has no setting "
    "for the private one of this run",
    (
        "*",
        "obstore",
        "save",
    ): "its file object keeps a view of what it is given to write and torch's archive writer reuses "
    "that memory, so the checkpoint cannot be read back; loads are of a checkpoint saved through s3fs",
}


def lacking(case: str, candidate: str, operation: str) -> str | None:
    """Why `candidate` is not measured here; None where it is."""
    for key in ((case, candidate, "*"), (case, candidate, operation), ("*", candidate, operation)):
        if key in LACKS:
            return LACKS[key]
    return None
