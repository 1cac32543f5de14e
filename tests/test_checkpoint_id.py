"""``checkpoint_id="s3://…"`` is ours, in scripts that never name s3dcp and in processes that torch starts by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict_saver

import s3dcp
import s3dcp_autoload
from s3dcp import HexPrefixStrategy, S3ClientConfig, S3StorageReader, S3StorageWriter
from s3dcp.checkpoint_id import storage_for
from support.scripts import that_ends
from support.store import Store

PYTHON = Path(s3dcp.__file__).parents[1]
# To save: at once, in a thread and, from torch 2.7 on, in a process.
WAYS = 3 if hasattr(state_dict_saver, "AsyncCheckpointerType") else 2
OURS = re.compile(r"__\d+_\d+-[0-9a-f]{16}\.distcp")

SAVE_AND_LOAD = """
    import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict_saver

    def main():
        dist.init_process_group("cpu:gloo")
        rank = dist.get_rank()
        state = {f"weight_{rank}": torch.arange(4.0) + rank, "step": 3}
        dcp.save(state, checkpoint_id=f"s3://{sys.argv[1]}/save")
        # Older ones than torch 2.7 save in a thread alone.
        ways = {"thread": {}}
        if hasattr(state_dict_saver, "AsyncCheckpointerType"):
            ways = {how.value: {"async_checkpointer_type": how} for how in state_dict_saver.AsyncCheckpointerType}
        for path, how in ways.items():
            dcp.async_save(state, checkpoint_id=f"s3://{sys.argv[1]}/{path}", **how).result()
        for path in "save", *ways:
            loaded = {f"weight_{rank}": torch.zeros(4), "step": 0}
            dcp.load(loaded, checkpoint_id=f"s3://{sys.argv[1]}/{path}")
            assert torch.equal(loaded[f"weight_{rank}"], state[f"weight_{rank}"]) and loaded["step"] == 3, loaded
        dist.destroy_process_group()

    if __name__ == "__main__":
        main()
"""


def run(script: str, *arguments: str, ranks: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, or by torchrun in one for each rank."""
    runner = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("S3DCP_")}
    return subprocess.run(
        [sys.executable, *runner, script, *arguments],
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(that_ends(textwrap.dedent(SAVE_AND_LOAD)))
    return path


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting outlives its test."""
    monkeypatch.setenv("S3DCP_CONFIGURED", "")


# -- scripts


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 4])
def test_a_script_that_never_names_s3dcp_saves_and_loads_with_it(store: Store, script: Path, ranks: int) -> None:
    done = run(str(script), store.bucket, ranks=ranks)
    assert done.returncode == 0, done.stderr
    files = [key for key in store.all_keys() if not key.endswith("/.metadata")]
    assert len(files) == WAYS * ranks
    assert all(OURS.fullmatch(key.partition("/")[2]) for key in files)


@pytest.mark.distributed
def test_what_is_configured_reaches_the_process_that_torch_starts(store: Store, script: Path) -> None:
    text = script.read_text().replace(
        "def main():",
        "import s3dcp\n\ndef main():\n    s3dcp.configure(prefix_strategy=s3dcp.HexPrefixStrategy(), thread_count=2)",
    )
    script.write_text(text)
    done = run(str(script), store.bucket, ranks=1)
    assert done.returncode == 0, done.stderr
    files = [key for key in store.all_keys() if not key.endswith("/.metadata")]
    assert all(key.partition("/")[2].startswith("0000000000/__0_") for key in files)
    assert len(files) == 2 * WAYS


@pytest.mark.parametrize("variable", ["S3DCP_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD"])
def test_one_variable_leaves_torch_to_its_own_ways(tmp_path: Path, variable: str) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import sys, torch.distributed.checkpoint.state_dict_saver as saver\n"
        "assert not hasattr(saver._storage_setup, 's3dcp')\n"
        "import s3dcp\n"
        "s3dcp.register()\n"
        "assert saver._storage_setup.s3dcp\n"
    )
    done = run(str(script), **{variable: "0"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("native", ["missing", "broken"])
def test_a_broken_s3dcp_breaks_no_import_of_torch(tmp_path: Path, native: str) -> None:
    for package in ("s3dcp", "s3dcp_autoload"):
        shutil.copytree(PYTHON / package, tmp_path / package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if native == "broken":
        (tmp_path / "s3dcp/_native.abi3.so").write_bytes(b"no library")
    script = tmp_path / "train.py"
    script.write_text(
        "import torch, torch.distributed.checkpoint as dcp, tempfile\n"
        "import s3dcp_autoload\n"
        f"assert s3dcp_autoload.__file__.startswith({str(tmp_path)!r})\n"
        "assert hasattr(dcp.state_dict_saver._storage_setup, 's3dcp')\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    dcp.save({'a': torch.ones(2)}, checkpoint_id=folder)\n"
        "try:\n"
        "    dcp.save({'a': torch.ones(2)}, checkpoint_id='s3://bucket/run')\n"
        "except Exception as error:\n"
        "    raise SystemExit(0 if '_native' in repr(error) else repr(error))\n"
    )
    done = run(str(script), PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_entry_costs_the_import_of_torch_five_milliseconds_at_most(tmp_path: Path) -> None:
    script = tmp_path / "cost.py"
    script.write_text(
        "import torch, sys, time\n"
        "sys.modules.pop('s3dcp_autoload')\n"
        "start = time.process_time()\n"
        "import s3dcp_autoload\n"
        "s3dcp_autoload.autoload()\n"
        "cost = time.process_time() - start\n"
        "assert not {'s3dcp', 'torch.distributed.checkpoint'} & set(sys.modules)\n"
        "print(cost)\n"
    )
    costs = [float(run(str(script)).stdout) for _ in range(3)]
    assert min(costs) < 0.005


# -- what torch is


def chooser(function: object) -> ModuleType:
    module = ModuleType(s3dcp_autoload._CHOOSER)
    module._storage_setup = function  # type: ignore[attr-defined]
    return module


def test_a_torch_that_is_not_known_is_left_alone_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(checkpoint_id: str) -> None: ...

    for function in (other, None):
        module = chooser(function)
        monkeypatch.setitem(sys.modules, s3dcp_autoload._CHOOSER, module)
        with pytest.warns(UserWarning, match="leaves torch alone"):
            s3dcp_autoload.autoload()
        assert module._storage_setup is function


def test_a_second_registration_changes_nothing() -> None:
    before = dcp.state_dict_saver._storage_setup
    s3dcp.register()
    assert dcp.state_dict_saver._storage_setup is before


def test_who_brings_a_writer_or_a_local_path_gets_that(tmp_path: Path) -> None:
    given = dcp.FileSystemWriter(tmp_path)
    setup = dcp._storage_utils._storage_setup
    assert setup(given, "s3://bucket/run") is given
    assert type(setup(None, str(tmp_path))) is dcp.FileSystemWriter
    assert type(setup(None, tmp_path, reader=True)) is dcp.FileSystemReader


def test_a_path_that_pathlib_has_broken_is_refused_and_no_folder_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="pathlib keeps one slash"):
        dcp.save({"a": torch.ones(1)}, checkpoint_id=PurePosixPath("s3://bucket/run"))
    assert not any(tmp_path.iterdir())


# -- settings


def test_settings_reach_the_writer_and_the_reader() -> None:
    config = S3ClientConfig(max_attempts=3)
    s3dcp.configure(
        region="eu-west-3",
        s3client_config=config,
        prefix_strategy=HexPrefixStrategy(prefix_count=16),
        thread_count=3,
        conditional_commit="require",
        overwrite=False,
        incremental=True,
        verify=False,
        weights_only=False,
    )
    writer, reader = storage_for("s3://bucket/run", False), storage_for("s3://bucket/run", True)
    assert isinstance(writer, S3StorageWriter)
    assert isinstance(reader, S3StorageReader)
    assert writer.prefix_strategy == HexPrefixStrategy(prefix_count=16)
    assert (writer.thread_count, writer.conditional_commit, writer.overwrite) == (3, "require", False)
    assert writer.incremental
    assert (reader.verify, reader.weights_only) == (False, False)
    assert writer.fs._config == reader.fs._config == config


def test_what_is_left_out_goes_back_to_its_default() -> None:
    s3dcp.configure(thread_count=3)
    s3dcp.configure(verify=False)
    assert storage_for("s3://bucket/run", False).thread_count == 1


def test_variables_are_settings_too_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PREFIX_STRATEGY": "round-robin:p1,p2",
        "THREAD_COUNT": "4",
        "OVERWRITE": "0",
        "PART_SIZE": "8388608",
        "DEADLINE": "30",
        "CHECKSUM_HEADERS": "off",
    }.items():
        monkeypatch.setenv(f"S3DCP_{name}", value)
    s3dcp.configure(thread_count=2)
    writer = storage_for("s3://bucket/run", False)
    assert writer.prefix_strategy(1) == "p2/__1_"
    assert (writer.thread_count, writer.overwrite) == (2, False)
    assert writer.fs._config == S3ClientConfig(part_size=8 << 20, deadline=30.0, checksum_headers=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PREFIX_STRATEGY", "octal"),
        ("PREFIX_STRATEGY", "hex:a"),
        ("THREAD_COUNT", "many"),
        ("OVERWRITE", "perhaps"),
        ("DEADLINE", "soon"),
    ],
)
def test_a_variable_that_cannot_work_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"S3DCP_{name}", value)
    with pytest.raises(ValueError, match=f"S3DCP_{name}"):
        storage_for("s3://bucket/run", False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"thread_count": 0}, "thread_count"),
        ({"conditional_commit": "perhaps"}, "conditional_commit"),
        ({"allowed_globals": ["name"]}, "allowed_globals"),
        ({"prefix_strategy": lambda rank: f"__{rank}_"}, "prefix_strategy"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_at_once_and_changes_nothing(
    setting: dict[str, object], message: str
) -> None:
    s3dcp.configure(thread_count=5)
    with pytest.raises(ValueError, match=message):
        s3dcp.configure(**setting)  # type: ignore[arg-type]
    assert storage_for("s3://bucket/run", False).thread_count == 5
