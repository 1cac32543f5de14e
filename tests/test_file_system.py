"""`S3FileSystem`: torch's file operations on S3."""

from __future__ import annotations

import io
import pickle

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemBase

from s3dcp import NotFound, S3ClientConfig, S3FileSystem
from support.store import REGION, Store

MIB = 1024 * 1024


@pytest.fixture
def fs() -> S3FileSystem:
    return S3FileSystem(REGION)


def test_it_is_a_file_system_for_torch(fs: S3FileSystem) -> None:
    assert isinstance(fs, FileSystemBase)


@pytest.mark.parametrize("size", [0, 1, MIB, 3 * MIB + 5])
def test_what_is_written_is_what_is_read(store: Store, fs: S3FileSystem, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    uri = f"{store.uri}/file"
    with fs.create_stream(uri, "wb") as stream:
        assert stream.write(body[:size]) == size
        assert stream.tell() == size
    assert store.read("file") == body[:size]
    with fs.create_stream(uri, "rb") as stream:
        assert stream.read() == body[:size]


def test_many_small_writes_make_one_object(store: Store, fs: S3FileSystem) -> None:
    with fs.create_stream(f"{store.uri}/file", "wb") as stream:
        for number in range(10_000):
            stream.write(b"%06d\n" % number)
    body = store.read("file")
    assert body == b"".join(b"%06d\n" % number for number in range(10_000))


def test_a_large_object_goes_up_in_parts(store: Store) -> None:
    fs = S3FileSystem(REGION, s3client_config=S3ClientConfig(part_size=5 * MIB))
    body = bytes(range(251)) * (12 * MIB // 251)
    with fs.create_stream(f"{store.uri}/file", "wb") as stream:
        stream.write(memoryview(body))
    assert store.parts("file") == 3
    assert store.read("file") == body


def test_an_object_appears_only_when_its_stream_is_complete(store: Store, fs: S3FileSystem) -> None:
    with fs.create_stream(f"{store.uri}/file", "wb") as stream:
        stream.write(b"x" * (9 * MIB))
        assert store.names() == []
    assert store.names() == ["file"]


def fail_after(stream: io.IOBase, size: int) -> None:
    stream.write(b"x" * size)
    raise KeyError


def test_a_body_that_raises_leaves_nothing_behind(store: Store) -> None:
    fs = S3FileSystem(REGION, s3client_config=S3ClientConfig(part_size=5 * MIB))
    for size in (10, 20 * MIB):
        with pytest.raises(KeyError), fs.create_stream(f"{store.uri}/file", "wb") as stream:
            fail_after(stream, size)
    assert store.all_keys() == []
    assert store.uploads() == []


def test_a_reading_stream_seeks(store: Store, fs: S3FileSystem) -> None:
    store.write("file", bytes(range(100)))
    with fs.create_stream(f"{store.uri}/file", "rb") as stream:
        assert stream.seekable()
        assert stream.seek(90) == 90
        assert stream.read(20) == bytes(range(90, 100))
        assert stream.seek(-5, io.SEEK_END) == 95
        assert stream.read(2) == bytes([95, 96])
        assert stream.seek(-7, io.SEEK_CUR) == 90
        buffer = bytearray(4)
        assert stream.readinto(buffer) == 4
        assert bytes(buffer) == bytes([90, 91, 92, 93])
        stream.seek(0)
        assert stream.read() == bytes(range(100))
        assert stream.read() == b""


def test_reading_all_that_is_left_takes_few_requests(store: Store, fs: S3FileSystem) -> None:
    body = bytes(range(251)) * (3 * MIB // 251)
    store.write("file", body)
    for start in (0, 7, len(body), len(body) + 1):
        with fs.create_stream(f"{store.uri}/file", "rb") as stream:
            stream.seek(start)
            before = fs.client.stats().requests
            assert stream.read() == body[start:]
            assert fs.client.stats().requests - before <= 2
            assert stream.read() == b""


def test_reading_what_is_not_there_is_not_found(store: Store, fs: S3FileSystem) -> None:
    with pytest.raises(NotFound) as caught, fs.create_stream(f"{store.uri}/none", "rb"):
        pass
    assert caught.value.key == f"{store.path}/none"


@pytest.mark.parametrize("mode", ["r", "w", "ab", "r+b", ""])
def test_other_modes_are_refused_by_name(store: Store, fs: S3FileSystem, mode: str) -> None:
    with pytest.raises(ValueError, match="mode="), fs.create_stream(f"{store.uri}/x", mode):
        pass


def test_exists_tells_objects_from_folders(store: Store, fs: S3FileSystem) -> None:
    store.write("folder/file", b"")
    assert fs.exists(f"{store.uri}/folder/file")
    assert not fs.exists(f"{store.uri}/folder")
    assert not fs.exists(f"{store.uri}/none")


def test_exists_does_not_take_a_failure_for_absence(store: Store, monkeypatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PermissionError):
        S3FileSystem(REGION).exists(f"{store.uri}/x")


def test_rename_moves_an_object_of_any_name(store: Store, fs: S3FileSystem) -> None:
    store.write("old name +%20ü", b"body")
    fs.rename(f"{store.uri}/old name +%20ü", f"{store.uri}/sub/new & name")
    assert store.names() == ["sub/new & name"]
    assert store.read("sub/new & name") == b"body"


def test_rename_of_what_is_not_there_is_not_found(store: Store, fs: S3FileSystem) -> None:
    with pytest.raises(NotFound):
        fs.rename(f"{store.uri}/none", f"{store.uri}/x")


def test_rename_stays_within_a_bucket(store: Store, fs: S3FileSystem) -> None:
    with pytest.raises(ValueError, match="new_path="):
        fs.rename(f"{store.uri}/a", "s3://another/a")


def test_rm_file_deletes_one_object(store: Store, fs: S3FileSystem) -> None:
    store.write("a", b"1")
    store.write("a/b", b"2")
    fs.rm_file(f"{store.uri}/a")
    assert store.names() == ["a/b"]


def test_ls_lists_everything_below_a_path_and_nothing_beside_it(store: Store, fs: S3FileSystem) -> None:
    for name in ("a", "b/c", "b/d/e"):
        store.write(name, b"")
    store.client.put_object(Bucket=store.bucket, Key=f"{store.path}-beside", Body=b"")
    assert sorted(fs.ls(store.uri)) == [f"{store.uri}/{name}" for name in ("a", "b/c", "b/d/e")]
    assert fs.ls(f"{store.uri}/none") == []


def test_ls_lists_more_than_one_page(store: Store, fs: S3FileSystem) -> None:
    for number in range(1005):
        store.client.put_object(Bucket=store.bucket, Key=f"many/{number:04}", Body=b"")
    assert len(fs.ls(f"s3://{store.bucket}/many")) == 1005


def test_paths_are_joined_and_folders_need_no_making(fs: S3FileSystem) -> None:
    assert fs.concat_path("s3://bucket/a", "b") == "s3://bucket/a/b"
    assert fs.concat_path("s3://bucket/a/", "b") == "s3://bucket/a/b"
    assert fs.init_path("s3://bucket/a") == "s3://bucket/a"
    fs.mkdir("s3://bucket-that-is-not-there/a")


@pytest.mark.parametrize(
    ("checkpoint_id", "valid"),
    [
        ("s3://bucket/path", True),
        ("s3://bucket", True),
        ("/local/path", False),
        ("s3:/x", False),
        ("", False),
        (5, False),
    ],
)
def test_checkpoint_ids_are_s3_uris(checkpoint_id, valid: bool) -> None:
    assert S3FileSystem.validate_checkpoint_id(checkpoint_id) is valid


def test_it_pickles_without_its_client(store: Store, fs: S3FileSystem) -> None:
    store.write("file", b"body")
    assert fs.exists(f"{store.uri}/file")
    again = pickle.loads(pickle.dumps(fs))
    assert again.exists(f"{store.uri}/file")


def test_a_client_may_be_shared(store: Store, fs: S3FileSystem) -> None:
    store.write("file", b"body")
    shared = S3FileSystem(REGION, s3_client=fs.client)
    before = fs.client.stats().requests
    assert shared.exists(f"{store.uri}/file")
    assert fs.client.stats().requests > before
