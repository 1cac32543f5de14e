"""A pytest plugin: our classes in modules of another project's tests, and the tests that are expected to fail."""

from __future__ import annotations

import posixpath
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3dcp import testing
from upstream import ON_S3, OURS, SUITES

BUCKET = "test-bucket"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", choices=SUITES, required=True)
    parser.addoption("--variant", default="")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that are listed must be there and fail, in the listed way; all others must pass."""
    suite = SUITES[config.getoption("--suite")]
    by_name = {item.name: item for item in items}
    for test, reason, error, _ in suite.failing_in(config.getoption("--variant")):
        if test not in by_name:
            raise pytest.UsageError(f"{test} is listed in tests/upstream and is not there")
        by_name[test].add_marker(pytest.mark.xfail(reason=reason, raises=error, strict=True))
    if len(items) != suite.count:
        raise pytest.UsageError(f"{len(items)} tests; at commit {suite.commit} there are {suite.count}")


@pytest.fixture(scope="session")
def server(s3dcp_server: testing.Server) -> testing.Server:
    """The embedded server, with the bucket of the tests."""
    s3dcp_server.create_bucket(BUCKET)
    return s3dcp_server


@pytest.fixture(scope="module", autouse=True)
def in_place(request: pytest.FixtureRequest, server: testing.Server) -> Iterator[None]:
    """Ours in the place of theirs, while the tests of a module run."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--suite") == "torchtitan":
            _torchtitan(patch, request.module, request.config.getoption("--variant"))
        else:
            _s3torchconnector(patch, request.module, server)
        yield


def _s3torchconnector(patch: pytest.MonkeyPatch, module: types.ModuleType, server: testing.Server) -> None:
    from lightning.pytorch.demos import WikiText2
    from s3torchconnector import S3ClientConfig
    from s3torchconnector._s3client import S3Client

    from s3dcp import S3Checkpoint
    from s3dcp.lightning import S3LightningCheckpoint

    class Client(S3Client):
        """Their client, on the embedded server; theirs for tests keeps objects in memory instead."""

        def __init__(self, region: str, bucket: str = "") -> None:
            config = S3ClientConfig(force_path_style=True)
            super().__init__(region, endpoint=server.endpoint_url, s3client_config=config)

        def add_object(self, key: str, data: bytes) -> None:
            with self.put_object(BUCKET, key) as writer:
                writer.write(data)

    class Words(WikiText2):
        """A text that need not be downloaded."""

        def __init__(self, data_dir: Path) -> None:
            super().__init__(Path("words"))

        @staticmethod
        def download(destination: Path) -> None:
            destination.parent.mkdir(exist_ok=True)
            destination.write_text("the quick brown fox jumps over the lazy dog\n" * 60)

    for name, value in {"CI_BUCKET": BUCKET, "CI_PREFIX": "", "CI_REGION": server.region}.items():
        patch.setenv(name, value)
    ours = {
        "S3Checkpoint": S3Checkpoint,
        "S3LightningCheckpoint": S3LightningCheckpoint,
        "S3Client": Client,
        "MockS3Client": Client,
        "WikiText2": Words,
        "_verify_user_agent": lambda checkpoint: None,
    }
    for name in ours.keys() & vars(module).keys():
        patch.setattr(module, name, ours[name])


def _torchtitan(patch: pytest.MonkeyPatch, module: types.ModuleType, variant: str) -> None:
    import fsspec
    import torch
    from torchtitan.components import checkpointer
    from torchtitan.tools import filesystem

    if OURS in variant:
        from s3dcp.torchtitan import S3CheckpointManager

        for place in (checkpointer, checkpointer.dcp, module):
            patch.setattr(place, "CheckpointManager", S3CheckpointManager)
    if ON_S3 not in variant:
        return
    # What the tests themselves do with files goes where torchtitan's own functions go.
    paths = types.SimpleNamespace(**{**vars(filesystem), "join": posixpath.join})
    listdir, makedirs = filesystem.listdir, lambda path, exist_ok: None
    patch.setattr(module, "os", types.SimpleNamespace(path=paths, listdir=listdir, makedirs=makedirs))
    patch.setattr(module, "shutil", filesystem)
    patch.setattr(module, "tempfile", types.SimpleNamespace(mkdtemp=lambda: f"s3://{BUCKET}/{uuid.uuid4().hex}"))
    patch.setattr(module, "open", lambda path, mode: fsspec.open(path, mode).open(), raising=False)
    save, load = torch.save, torch.load

    def save_to(state: Any, path: str) -> None:
        with fsspec.open(path, "wb") as file:
            save(state, file)

    def load_from(path: str, weights_only: bool) -> Any:
        with fsspec.open(path, "rb") as file:
            return load(file, weights_only=weights_only)

    patch.setattr(torch, "save", save_to)
    patch.setattr(torch, "load", load_from)
