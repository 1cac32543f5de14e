"""The fsspec file system: fsspec's own suite for implementations, and what is particular to S3 and checkpoints."""

from __future__ import annotations

import datetime
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from fsspec.tests import abstract

from s3dcp import DefaultPrefixStrategy, HexPrefixStrategy, NotFound, S3ClientConfig, S3StorageReader, S3StorageWriter
from s3dcp.fsspec import S3FsspecFileSystem
from support.store import Store

# fsspec's own fixtures.
pytestmark = pytest.mark.filterwarnings("ignore:Class-scoped fixture")


@pytest.fixture
def fs(s3dcp_bucket: str) -> S3FsspecFileSystem:
    return S3FsspecFileSystem(skip_instance_cache=True)


# -- fsspec's suite


class Fixtures(abstract.AbstractFixtures):
    @pytest.fixture(scope="class")
    def fs(self, s3dcp_server: Any) -> S3FsspecFileSystem:
        return S3FsspecFileSystem()

    @pytest.fixture
    def fs_path(self, s3dcp_server: Any) -> Iterator[str]:
        bucket = f"suite-{uuid.uuid4().hex[:12]}"
        s3dcp_server.create_bucket(bucket)
        yield bucket
        s3dcp_server.delete_bucket(bucket)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def fs_sanitize_path(self) -> Any:
        return lambda path: path


@pytest.mark.s3("embedded")
class TestCopyOfTheSuite(abstract.AbstractCopyTests, Fixtures):
    pass


@pytest.mark.s3("embedded")
class TestGetOfTheSuite(abstract.AbstractGetTests, Fixtures):
    pass


@pytest.mark.s3("embedded")
class TestPutOfTheSuite(abstract.AbstractPutTests, Fixtures):
    pass


@pytest.mark.s3("embedded")
class TestPipeOfTheSuite(abstract.AbstractPipeTests, Fixtures):
    pass


@pytest.mark.s3("embedded")
class TestOpenOfTheSuite(abstract.AbstractOpenTests, Fixtures):
    pass


# -- looking


def test_folders_and_files_are_listed_level_by_level(fs: S3FsspecFileSystem, store: Store) -> None:
    for name in ("a", "folder/b", "folder/c/d"):
        fs.pipe_file(f"{store.bucket}/{name}", name.encode())
    assert fs.ls(store.bucket, detail=False) == [f"{store.bucket}/a", f"{store.bucket}/folder"]
    file, folder = fs.ls(f"s3://{store.bucket}/folder/")
    assert (file["name"], file["size"], file["type"]) == (f"{store.bucket}/folder/b", 8, "file")
    assert (folder["name"], folder["type"]) == (f"{store.bucket}/folder/c", "directory")
    assert fs.ls(f"{store.bucket}/a", detail=False) == [f"{store.bucket}/a"]
    assert fs.find(store.bucket) == [f"{store.bucket}/{name}" for name in ("a", "folder/b", "folder/c/d")]
    assert fs.glob(f"{store.bucket}/folder/*") == [f"{store.bucket}/folder/b", f"{store.bucket}/folder/c"]
    assert fs.du(store.bucket) == 1 + 8 + 10


def test_a_listing_stops_at_its_limit(fs: S3FsspecFileSystem, store: Store) -> None:
    for number in range(30):
        fs.pipe_file(f"{store.bucket}/many/{number:02}", b"x")
    assert fs.ls(f"{store.bucket}/many", detail=False, limit=3) == [f"{store.bucket}/many/{n:02}" for n in range(3)]


def test_an_entry_says_when_it_was_written_and_what_it_is(fs: S3FsspecFileSystem, store: Store) -> None:
    path = f"{store.bucket}/file"
    fs.pipe_file(path, b"one")
    first = fs.ukey(path)
    assert abs(fs.modified(path) - datetime.datetime.now(datetime.timezone.utc)) < datetime.timedelta(minutes=5)
    fs.pipe_file(path, b"two")
    assert fs.ukey(path) != first


@pytest.mark.parametrize("call", ["info", "ls", "cat_file", "rm_file", "modified"])
def test_what_is_not_there_is_a_file_not_found(fs: S3FsspecFileSystem, store: Store, call: str) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(fs, call)(f"{store.bucket}/nothing")


def test_a_copy_of_nothing_is_a_file_not_found_and_leaves_nothing(
    fs: S3FsspecFileSystem, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        fs.get_file(f"{store.bucket}/nothing", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        fs.cp_file(f"{store.bucket}/nothing", f"{store.bucket}/copy")


def test_a_bucket_that_is_not_there_is_named(fs: S3FsspecFileSystem, store: Store) -> None:
    with pytest.raises(NotFound, match="no-such-bucket-here"):
        fs.ls("no-such-bucket-here")
    with pytest.raises(ValueError, match="must begin with a bucket"):
        fs.ls("s3://")


# -- reading and writing


def test_ranges_of_many_files_come_in_one_go_and_each_tells_of_itself(fs: S3FsspecFileSystem, store: Store) -> None:
    path = f"{store.bucket}/file"
    fs.pipe_file(path, b"0123456789")
    missing = f"{store.bucket}/missing"
    found = fs.cat_ranges([path, missing, path], [2, 0, -3], [5, 4, None])
    assert (found[0], found[2]) == (b"234", b"789")
    assert isinstance(found[1], FileNotFoundError)
    assert fs.cat_file(path, 8, 100) == b"89"
    assert fs.cat(path) == b"0123456789"


def test_a_file_larger_than_a_part_is_written_and_read_in_pieces(fs: S3FsspecFileSystem, store: Store) -> None:
    path, body = f"{store.bucket}/large", os.urandom(11 << 20)
    with fs.open(path, "wb") as file:
        for start in range(0, len(body), 3 << 20):
            file.write(body[start : start + (3 << 20)])
        assert not fs.exists(path)
    with fs.open(path, "rb") as file:
        assert file.read(5) == body[:5]
        file.seek(-7, 2)
        assert file.read() == body[-7:]
    assert fs.cat_file(path) == body


def test_text_is_read_and_written_and_appended(fs: S3FsspecFileSystem, store: Store) -> None:
    path = f"s3dcp://{store.bucket}/text"
    with fsspec.open(path, "w", encoding="utf-8") as file:
        file.write("größer\n")
    with fs.open(path, "a", encoding="utf-8") as file:
        file.write("als")
    with fsspec.open(path, "r", encoding="utf-8") as file:
        assert file.read() == "größer\nals"


def test_an_exception_in_the_block_leaves_no_file_and_no_upload(fs: S3FsspecFileSystem, store: Store) -> None:
    def write_half() -> None:
        with fs.open(f"{store.bucket}/half", "wb") as file:
            file.write(bytes(12 << 20))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        write_half()
    assert store.all_keys() == []
    assert store.uploads() == []


def test_a_file_goes_there_and_back(fs: S3FsspecFileSystem, store: Store, tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(os.urandom(100_000))
    fs.put_file(tmp_path / "from", f"{store.bucket}/copy")
    fs.cp_file(f"{store.bucket}/copy", f"{store.bucket}/again")
    fs.mv(f"{store.bucket}/again", f"{store.bucket}/moved")
    fs.get_file(f"{store.bucket}/moved", tmp_path / "deep" / "to")
    assert (tmp_path / "deep" / "to").read_bytes() == (tmp_path / "from").read_bytes()
    assert store.all_keys() == ["copy", "moved"]


# -- deleting


def save(path: str, **settings: Any) -> None:
    dcp.save({"weight": torch.arange(4.0)}, storage_writer=S3StorageWriter(None, path, **settings), no_dist=True)


def test_a_recursive_removal_takes_a_checkpoint_and_all_beside_it(fs: S3FsspecFileSystem, store: Store) -> None:
    save(f"s3://{store.bucket}/run/step-1", prefix_strategy=HexPrefixStrategy())
    fs.pipe_file(f"{store.bucket}/run/step-1/notes.txt", b"notes")
    save(f"s3://{store.bucket}/run/step-2")
    fs.rm(f"{store.bucket}/run/step-1", recursive=True)
    assert all(key.startswith("run/step-2/") for key in store.all_keys())
    loaded = {"weight": torch.zeros(4)}
    dcp.load(loaded, storage_reader=S3StorageReader(None, f"s3://{store.bucket}/run/step-2"), no_dist=True)


def test_a_removal_spares_what_an_index_elsewhere_names(fs: S3FsspecFileSystem, store: Store) -> None:
    # Patterns of epochs lie in folders of their own; the index of the path names what is in them.
    path = f"s3://{store.bucket}/run"
    save(path, prefix_strategy=HexPrefixStrategy(epoch_num=1))
    shard = next(key for key in store.all_keys() if key.endswith(".distcp"))
    fs.rm(f"{store.bucket}/{shard.rpartition('/')[0]}", recursive=True)
    assert shard in store.all_keys()
    dcp.load({"weight": torch.zeros(4)}, storage_reader=S3StorageReader(None, path), no_dist=True)


def test_a_removal_takes_the_index_before_the_files(fs: S3FsspecFileSystem, store: Store, s3dcp_server: Any) -> None:
    if not hasattr(s3dcp_server, "inject"):
        pytest.skip("the server lets nothing go wrong on request")
    save(f"s3://{store.bucket}/run", prefix_strategy=DefaultPrefixStrategy())
    s3dcp_server.inject("error:403/AccessDenied on=DeleteObjects")
    try:
        with pytest.raises(PermissionError):
            fs.rm(f"{store.bucket}/run", recursive=True)
    finally:
        s3dcp_server.clear_faults()
    assert [key for key in store.all_keys() if key.endswith(".metadata")] == []
    assert len(store.all_keys()) == 1
    fs.rm(f"{store.bucket}/run", recursive=True)
    assert store.all_keys() == []


# -- settings


def test_both_names_lead_here_once_s3_is_asked_for() -> None:
    script = """
import fsspec, s3dcp.fsspec
assert fsspec.get_filesystem_class("s3dcp") is s3dcp.fsspec.S3FsspecFileSystem
s3dcp.fsspec.register()
assert fsspec.get_filesystem_class("s3") is s3dcp.fsspec.S3FsspecFileSystem
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_variable_makes_s3_ours_where_torch_is_imported() -> None:
    script = """
import fsspec, torch.distributed.checkpoint
assert fsspec.get_filesystem_class("s3").__module__ == "s3dcp.fsspec"
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "S3DCP_FSSPEC": "1"})


def test_the_arguments_of_s3fs_that_have_a_meaning_are_taken() -> None:
    made = S3FsspecFileSystem(
        anon=True, client_kwargs={"endpoint_url": "http://localhost:1", "region_name": "eu-west-3"}
    )
    assert made._files._config == S3ClientConfig(unsigned=True)
    assert (made._files._region, made._files._endpoint_url) == ("eu-west-3", "http://localhost:1")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"key": "AKIA", "secret": "s"}, "key, secret"),
        ({"client_kwargs": {"verify": False}}, "client_kwargs: verify"),
        ({"anon": True, "s3client_config": S3ClientConfig()}, "s3client_config"),
        ({"region": 3}, "region"),
    ],
)
def test_an_argument_without_a_meaning_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        S3FsspecFileSystem(**arguments, skip_instance_cache=True).exists("bucket/key")


def test_a_file_system_pickles(fs: S3FsspecFileSystem, store: Store) -> None:
    fs.pipe_file(f"{store.bucket}/file", b"x")
    assert pickle.loads(pickle.dumps(fs)).cat_file(f"{store.bucket}/file") == b"x"
