"""torch_checkpointing's own manager on S3."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import s3dcp
from support import pages
from support.scripts import that_ends
from support.store import Store

pytest.importorskip("torch_checkpointing", reason="torch_checkpointing is installed by `make test-frameworks`")

from torch_checkpointing.checkpoint_layout import (
    JsonSerialization,
    LayoutInfo,
    RawSerialization,
    SafetensorsSerialization,
)
from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.checkpoint_reader import CheckpointReader
from torch_checkpointing.config import SyncCheckpointSaverConfig
from torch_checkpointing.default_resharder import DefaultResharder
from torch_checkpointing.schema import ItemSpec
from torch_checkpointing.storage.base_storage import ReadArgs
from torch_checkpointing.storage.torch_serialization import load_torch_serialized_from_storage

from s3dcp.torch_checkpointing import S3Storage, S3StorageConfig


def manager(items: dict[str, ItemSpec] | None = None, **settings: Any) -> CheckpointManager:
    config = CheckpointManager.Config(
        items=items or {}, save=SyncCheckpointSaverConfig(), storage_config=S3StorageConfig(**settings)
    )
    return CheckpointManager(config)


def model(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((1024, 1024), value), "bias": torch.arange(10) + int(value)}


def loaded(manager: CheckpointManager, uri: str) -> float:
    into = {"model": model(0), "step": 0}
    manager.load(uri, into=into)
    assert torch.equal(into["model"]["bias"], torch.arange(10) + into["model"]["weight"][0, 0].long())
    return float(into["model"]["weight"][0, 0])


@pytest.fixture
def uri(store: Store) -> str:
    return f"s3://{store.bucket}/run/step_5"


@pytest.fixture
def folder(store: Store) -> Path:
    return Path(f"s3://{store.bucket}/run")


@pytest.fixture
def storage() -> S3Storage:
    return S3StorageConfig().create_storage()


# -- checkpoints


@pytest.mark.parametrize("resharded", [False, True])
def test_a_state_comes_back_into_the_tensors_it_was_saved_from(uri: str, resharded: bool) -> None:
    mine = manager({"model": ItemSpec(resharder=DefaultResharder())} if resharded else None)
    mine.save(uri, {"model": model(3), "step": 7})
    into = {"model": model(0), "step": 0}
    weight = into["model"]["weight"]
    assert mine.load(uri, into=into)["step"] == 7
    assert into["model"]["weight"] is weight
    assert loaded(mine, uri) == 3


def test_every_format_comes_back(uri: str) -> None:
    formats = {"s": SafetensorsSerialization(), "j": JsonSerialization(), "r": RawSerialization()}
    mine = manager({name: ItemSpec(layout=LayoutInfo(f"deep/{name}_{{rank}}", each)) for name, each in formats.items()})
    saved = {"s": {"a": torch.randn(700, 700)}, "j": {"lr": 0.5}, "r": b"\x00raw" * 1_000_000}
    mine.save(uri, saved)
    back = mine.load(uri, into={"s": {"a": torch.zeros(700, 700)}, "j": {"lr": 0.0}, "r": b""})
    assert torch.equal(back["s"]["a"], saved["s"]["a"])
    assert (back["j"], back["r"]) == (saved["j"], saved["r"])


def test_a_checkpoint_is_not_there_before_its_rename(uri: str, folder: Path, store: Store, storage: S3Storage) -> None:
    storage.write(folder / "tmp_step_5" / "model_0.pt", b"half")
    assert storage.exists(folder / "tmp_step_5")
    assert not storage.exists(folder / "step_5")
    assert not storage.exists(folder / "step_5" / "model_0.pt")
    assert storage.ls(folder) == ["tmp_step_5"]
    storage.rename(folder / "tmp_step_5", folder / "step_5", is_directory=True)
    assert storage.ls(folder) == ["step_5"]
    assert not storage.exists(folder / "tmp_step_5")
    assert storage.read(folder / "step_5" / "model_0.pt") == b"half"
    assert len(store.all_keys()) == 2, "something was copied"


def test_a_file_written_twice_is_one_file(folder: Path, storage: S3Storage) -> None:
    path = folder / "tmp_step_5" / "model_0.pt"
    storage.write(path, b"first")
    storage.write(path, b"second")
    assert storage.read(path) == b"second"
    assert storage.ls(folder / "tmp_step_5") == ["model_0.pt"]
    assert not storage.isdir(path)
    storage.delete(path)
    assert not storage.exists(path)
    assert not storage.exists(folder / "tmp_step_5")


def test_a_committed_checkpoint_is_not_replaced_and_a_save_beside_it_changes_nothing(uri: str) -> None:
    mine = manager()
    mine.save(uri, {"model": model(1), "step": 1})
    with pytest.raises(FileExistsError):
        mine.save(uri, {"model": model(2), "step": 2})
    assert loaded(manager(), uri) == 1


def test_of_two_that_commit_one_checkpoint_at_once_one_is_refused(folder: Path, storage: S3Storage) -> None:
    storage.write(folder / "tmp_step_5" / "model_0.pt", b"half")
    together, ended = threading.Barrier(2), []

    def commit() -> None:
        mine = S3StorageConfig().create_storage()
        together.wait()
        try:
            mine.rename(folder / "tmp_step_5", folder / "step_5", is_directory=True)
            ended.append("committed")
        except FileExistsError:
            ended.append("refused")

    threads = [threading.Thread(target=commit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == ["committed", "refused"]


def test_what_a_killed_save_left_is_nobodys_checkpoint_and_goes_with_prune(
    uri: str, folder: Path, store: Store, storage: S3Storage
) -> None:
    storage.write(folder / "tmp_step_4" / "model_0.pt", b"killed")
    storage.write(folder / "tmp_step_5" / "model_0.pt", b"killed")
    mine = manager()
    mine.save(uri, {"model": model(2), "step": 2})
    assert loaded(mine, uri) == 2
    prune = [sys.executable, "-m", "s3dcp", "prune", f"s3://{store.bucket}/run", "--older-than", "0s", "--delete"]
    done = subprocess.run(prune, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [key for key in store.all_keys() if "step_4" in key] == []
    assert len([key for key in store.all_keys() if "model_0.pt" in key]) == 1
    assert loaded(manager(), uri) == 2


def test_a_checkpoint_is_deleted_as_a_whole(uri: str, folder: Path, store: Store, storage: S3Storage) -> None:
    manager().save(uri, {"model": model(1), "step": 1})
    with pytest.raises(PermissionError, match="rmdir"):
        storage.delete(folder / "step_5" / "model_0.pt")
    storage.rmdir(folder / "step_5")
    assert store.all_keys() == []
    manager().save(uri, {"model": model(2), "step": 2})
    assert loaded(manager(), uri) == 2


def test_a_storage_sees_that_a_checkpoint_was_saved_anew(uri: str, folder: Path, storage: S3Storage) -> None:
    mine = manager()
    mine.save(uri, {"model": model(1), "step": 1})
    assert loaded(mine, uri) == 1
    storage.rmdir(folder / "step_5")
    manager().save(uri, {"model": model(2), "step": 2})
    assert loaded(mine, uri) == 2


ASYNC = """
    import sys, torch
    from torch_checkpointing.checkpoint_manager import CheckpointManager
    from s3dcp.torch_checkpointing import S3StorageConfig

    def main():
        manager = CheckpointManager(CheckpointManager.Config(storage_config=S3StorageConfig()))
        model = {"weight": torch.full((1024, 1024), 4.0), "bias": torch.arange(10) + 4}
        manager.save(sys.argv[1], {"model": model, "step": 4}).result()
        manager.close()

    if __name__ == "__main__":
        main()
"""
RANKS = """
    import sys, torch
    import torch.distributed as dist
    from torch_checkpointing.checkpoint_manager import CheckpointManager
    from torch_checkpointing.config import SyncCheckpointSaverConfig
    from s3dcp.torch_checkpointing import S3StorageConfig

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    config = CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=S3StorageConfig())
    manager = CheckpointManager(config)
    manager.save(sys.argv[1], {"model": torch.full((1024, 1024), float(rank))})
    dist.barrier()
    into = {"model": torch.zeros(1024, 1024)}
    manager.load(sys.argv[1], into=into)
    assert into["model"].eq(rank).all()
    manager.close()
    dist.destroy_process_group()
"""
MEMORY = """
    import resource, sys, torch
    from torch_checkpointing.checkpoint_manager import CheckpointManager
    from torch_checkpointing.config import SyncCheckpointSaverConfig
    from s3dcp.torch_checkpointing import S3StorageConfig

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    torch.set_num_threads(1)
    config = CheckpointManager.Config(save=SyncCheckpointSaverConfig(), storage_config=S3StorageConfig())
    manager = CheckpointManager(config)
    manager.save(sys.argv[1] + "/small", {"model": torch.ones(1 << 20)})
    state = [torch.ones(1 << 25) for _ in range(4)]
    before = peak()
    manager.save(sys.argv[1] + "/large", {"model": state})
    print(peak() - before)
"""


def run(tmp_path: Path, source: str, *arguments: str, ranks: int = 0) -> str:
    script = tmp_path / "job.py"
    script.write_text(that_ends(textwrap.dedent(source)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    command = [sys.executable, "-W", "ignore", *torchrun, str(script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_save_in_the_background_comes_from_the_process_that_it_starts(uri: str, tmp_path: Path) -> None:
    run(tmp_path, ASYNC, uri)
    assert loaded(manager(), uri) == 4


@pytest.mark.distributed
def test_each_rank_loads_what_it_saved(uri: str, tmp_path: Path) -> None:
    run(tmp_path, RANKS, uri, ranks=2)


def test_a_save_holds_no_second_copy_of_the_state(store: Store, tmp_path: Path) -> None:
    grown = int(run(tmp_path, MEMORY, f"s3://{store.bucket}/run").split()[-1])
    assert grown < 128, f"{grown} MiB more for a state of 512 MiB"


# -- the storage


def test_files_outside_of_checkpoints_are_written_moved_listed_and_deleted(folder: Path, storage: S3Storage) -> None:
    with storage.stream_write(folder / "a" / "one") as stream:
        stream.write(b"x" * 10)
        stream.write(memoryview(b"y" * 20_000_000))
    storage.rename(folder / "a" / "one", folder / "a" / "two")
    assert storage.ls(folder / "a") == ["two"]
    assert storage.getsize(folder / "a" / "two") == 20_000_010
    storage.write(folder / "b" / "deep" / "three", b"3")
    storage.rename(folder / "b", folder / "c", is_directory=True)
    assert storage.read(folder / "c" / "deep" / "three") == b"3"
    assert not storage.exists(folder / "b")
    for source, target in [("a", "c"), ("a/two", "c")]:
        with pytest.raises(OSError, match=r"occupied|folder"):
            storage.rename(folder / source, folder / target)
    storage.delete(folder / "a" / "two")
    with pytest.raises(FileNotFoundError):
        storage.ls(folder / "a")
    assert storage.glob(f"{folder}/*") == [f"{folder}/c"]


def test_a_write_that_fails_leaves_nothing(folder: Path, store: Store, storage: S3Storage) -> None:
    for name in ("plain", "tmp_step_5/model_0.pt"):
        stream = storage.stream_write(folder / name)
        stream.write(b"x" * 20_000_000)
        stream.__exit__(InterruptedError, None, None)
    assert store.all_keys() == []
    assert store.uploads() == []


def test_a_stream_reads_any_part(folder: Path, storage: S3Storage) -> None:
    body = torch.randint(0, 256, (5_000_001,), dtype=torch.uint8).numpy().tobytes()
    storage.write(folder / "file", body)
    with storage.stream_read(folder / "file", ReadArgs(pre_read_full_file=False)) as stream:
        for start, count in [(0, 10), (1_048_570, 20), (4_999_990, 100), (1_000_000, 3_000_000), (5_000_001, 5)]:
            stream.seek(start)
            assert stream.read(count) == body[start : start + count]
        stream.seek(7)
        assert stream.read() == body[7:]
    assert storage.stream_read(folder / "file").read() == body


def test_the_fill_hook_fetches_a_file_into_memory_of_its_own(folder: Path, storage: S3Storage, uri: str) -> None:
    manager().save(uri, {"model": model(6), "step": 6})
    path = folder / "step_5" / "model_0.pt"
    state = load_torch_serialized_from_storage(path, storage, mmap_fill=storage.mmap_fill)
    assert torch.equal(state["weight"], model(6)["weight"])
    with pytest.raises(OSError, match="expected=1"):
        storage.mmap_fill(1, path)
    assert "mmap_fill_factory" in CheckpointReader.__init__.__code__.co_varnames


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "/local"}, "folder: an S3 path"),
        ({"temp_dir_prefix": ""}, "temp_dir_prefix=''"),
        ({"conditional_commit": "perhaps"}, "conditional_commit='perhaps'"),
        ({"region": 3, "folder": "s3://bucket/run"}, "region=3"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S3StorageConfig(**settings).create_storage().exists(Path("x"))


def test_another_prefix_than_the_writers_is_told(folder: Path, storage: S3Storage) -> None:
    storage.write(folder / "tmp_job1_step_5" / "model_0.pt", b"1")
    with pytest.raises(ValueError, match="temp_dir_prefix='tmp_'"):
        storage.rename(folder / "tmp_job1_step_5", folder / "step_5", is_directory=True)


def test_a_path_that_is_not_on_s3_is_refused_or_below_the_folder(store: Store, storage: S3Storage) -> None:
    with pytest.raises(s3dcp.ConfigError, match="path='run/step_5'"):
        storage.write(Path("run/step_5"), b"")
    mine = S3StorageConfig(folder=f"s3://{store.bucket}/jobs").create_storage()
    mine.write(Path("run/file"), b"1")
    assert store.all_keys() == ["jobs/run/file"]


def test_the_snippet_of_the_page_runs(store: Store) -> None:
    [snippet] = [block for block in pages.blocks("docs/frameworks.md", "python") if "S3StorageConfig" in block]
    names: dict[str, Any] = {"model": torch.nn.Linear(3, 3), "__name__": "page"}
    exec(snippet.replace("s3://checkpoints/", f"s3://{store.bucket}/"), names)
    assert "run/step_1000/.metadata" in store.all_keys()
