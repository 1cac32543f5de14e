"""torchtitan's own trainer and debug model on S3."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from s3dcp import testing
from support import pages, torchtitan_on_cpu
from support.scripts import that_ends
from support.store import Store

pytest.importorskip("torchtitan", reason="torchtitan is installed by `make test-frameworks`")

EXAMPLES = pages.ROOT / "examples"
TORCHTITANS = ("--module", "llama3", "--config", "llama3_debugmodel")
EXAMPLE = ("--module", "torchtitan_job", "--config", "llama3_debugmodel")
SMALL = (
    *("--training.steps", "20", "--training.seq_len", "64", "--training.local_batch_size", "2"),
    *("--training.disable_cuda_graphs", "--validator.freq", "1000000", "--debug.seed", "1"),
    *("--checkpoint.enable", "--checkpoint.interval", "5", "--checkpoint.keep_latest_k", "2"),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchtitan")
    torchtitan_on_cpu.assets(folder)
    return folder


class Training:
    """Two ranks of a run."""

    def __init__(self, workplace: Path, folder: str, *arguments: str, job: tuple[str, ...] = TORCHTITANS) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-W", "ignore", torchtitan_on_cpu.__file__, *job, *SMALL]
        command += ["--dump_folder", str(workplace / "out"), "--checkpoint.folder", folder, *arguments]
        self.log = workplace / "log"
        self.ranks = []
        with self.log.open("w") as log:
            for rank in range(2):
                variables = {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                    "HF_HUB_OFFLINE": "1",
                    "S3DCP_FSSPEC": "1",
                    "PYTHONPATH": f"{EXAMPLES}:{os.environ['PYTHONPATH']}",
                }
                started = subprocess.Popen(
                    command, cwd=workplace, env={**os.environ, **variables}, stdout=log, stderr=log
                )
                self.ranks.append(started)

    def end(self) -> str:
        """What it said, once it is over."""
        codes = [rank.wait(timeout=400) for rank in self.ranks]
        text = self.log.read_text()
        assert codes == [0, 0], text[-5000:]
        return text

    def kill_once(self, happened: Callable[[], bool]) -> None:
        while not happened():
            assert all(rank.poll() is None for rank in self.ranks), self.log.read_text()[-5000:]
            time.sleep(0.05)
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)
            rank.wait()


def losses(text: str) -> dict[int, float]:
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    return {int(step): float(loss) for step, loss in re.findall(r"step: *(\d+) +loss: +([\d.]+)", plain)}


def steps(store: Store, mark: str = ".metadata") -> list[int]:
    return sorted(int(found[1]) for key in store.all_keys() if (found := re.fullmatch(rf"run/step-(\d+)/{mark}", key)))


@pytest.mark.slow
def test_a_run_that_was_killed_in_a_save_goes_on_from_its_newest_complete_checkpoint(
    store: Store, s3dcp_server: testing.Server, workplace: Path
) -> None:
    folder = f"s3://{store.bucket}/run"
    whole = losses(Training(workplace, f"s3://{store.bucket}/whole").end())
    fault = "silence on=PutObject,UploadPart key=run/step-15/*.distcp skip=1"
    s3dcp_server.inject(fault)
    try:
        Training(workplace, folder).kill_once(lambda: any(count for _, count in s3dcp_server.faults()))
    finally:
        s3dcp_server.clear_faults()
    assert steps(store) == [5, 10]
    resumed = Training(workplace, folder).end()
    assert f"Loading the checkpoint from {folder}/step-10." in resumed
    assert losses(resumed) == {step: whole[step] for step in range(11, 21)}
    # As on a disk: torchtitan keeps two until its last step, after which it does not look.
    assert steps(store) == [10, 15, 20]
    assert not (workplace / "s3:").exists()


@pytest.mark.slow
def test_the_example_keeps_two_and_exports_what_transformers_loads(
    store: Store, workplace: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is installed by `make test-frameworks`")
    export = ("--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf", "--checkpoint.async_mode", "async")
    Training(workplace, f"s3://{store.bucket}/run", *export, job=EXAMPLE).end()
    assert steps(store) == [15]
    assert steps(store, "model.safetensors.index.json") == [20]
    files = [key for key in store.all_keys() if key.startswith("run/step-20/")]
    assert [Path(key).name for key in files] == ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    for key in files:
        store.client.download_file(store.bucket, key, str(tmp_path / Path(key).name))
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=16,
        tie_word_embeddings=False,
    )
    for each in (config, transformers.GenerationConfig()):
        each.save_pretrained(tmp_path)
    found, told = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values()), told
    logits = found(torch.arange(10)[None]).logits
    assert logits.shape == (1, 10, 2048)
    assert logits.isfinite().all()


def test_retention_counts_what_is_complete(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3dcp.torchtitan import S3CheckpointManager

    marks = {5: ".metadata", 7: "part", 10: ".metadata", 15: "model.safetensors.index.json", 20: "part"}
    for step, mark in marks.items():
        store.client.put_object(Bucket=store.bucket, Key=f"run/step-{step}/{mark}", Body=b"x")
    monkeypatch.setattr(S3CheckpointManager, "_should_purge", lambda self: True)
    monkeypatch.setattr(S3CheckpointManager, "__del__", lambda self: None)
    manager = S3CheckpointManager.__new__(S3CheckpointManager)
    manager.folder, manager.keep_latest_k, manager.purge_queue = f"s3://{store.bucket}/run", 2, queue.Queue()
    manager._purge_stale_checkpoints()
    assert list(manager.purge_queue.queue) == [f"{manager.folder}/step-{step}" for step in (5, 7)]


EXPORT = """
    import sys, torch
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
    from s3dcp.torchtitan import export_safetensors

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    wholes = {f"layer.{n}": torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5) * n for n in range(1, 5)}
    state = {name: distribute_tensor(whole, mesh, [Shard(0)]) for name, whole in wholes.items()}
    state["scale"] = torch.tensor(3.0, dtype=torch.bfloat16)
    files = {name: 1 + (number > 2) for number, name in enumerate(sorted(state))}
    if sys.argv[2] == "missing":
        files.pop("scale")
    export_safetensors(state, sys.argv[1], files)
    dist.destroy_process_group()
"""


def export(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "export.py"
    script.write_text(that_ends(textwrap.dedent(EXPORT)))
    torchrun = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*torchrun, str(script), *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.distributed
def test_sharded_tensors_are_exported_whole_and_in_the_files_asked_for(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load

    done = export(tmp_path, f"s3://{store.bucket}/out", "all")
    assert done.returncode == 0, done.stderr
    names = [f"out/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert store.all_keys() == [*names, "out/model.safetensors.index.json"]
    first, second = (load(store.client.get_object(Bucket=store.bucket, Key=name)["Body"].read()) for name in names)
    assert (sorted(first), sorted(second)) == (["layer.1", "layer.2", "layer.3"], ["layer.4", "scale"])
    whole = torch.arange(35, dtype=torch.float32).reshape(7, 5)
    assert all(torch.equal(first[f"layer.{number}"], whole * number) for number in (1, 2, 3))
    assert second["scale"].dtype is torch.bfloat16


@pytest.mark.distributed
def test_an_export_that_fails_on_one_rank_fails_on_all_and_leaves_no_index(store: Store, tmp_path: Path) -> None:
    store.client.put_object(Bucket=store.bucket, Key="out/model.safetensors.index.json", Body=b"of an export before")
    done = export(tmp_path, f"s3://{store.bucket}/out", "missing")
    assert done.returncode != 0
    assert "files: says nothing of scale" in done.stderr
    assert "out/model.safetensors.index.json" not in store.all_keys()


def test_a_configuration_that_cannot_work_is_refused() -> None:
    from s3dcp.torchtitan import S3CheckpointManager, on_s3

    class Job:
        checkpoint = "s3://bucket/run"

    with pytest.raises(ValueError, match=r"config.checkpoint='s3://bucket/run'"):
        on_s3(Job())
    with pytest.raises(ValueError, match="last_save_model_only"):
        S3CheckpointManager.Config(folder="s3://bucket/run", last_save_in_hf=True, last_save_model_only=False)
    with pytest.raises(ValueError, match="last_save_in_hf"):
        S3CheckpointManager.Config(folder="gs://bucket/run", last_save_in_hf=True)
    assert S3CheckpointManager.Config(folder="s3://bucket/run", last_save_in_hf=True).last_save_in_hf


def test_the_example_is_the_snippet_of_the_page() -> None:
    [snippet] = [block for block in pages.blocks("docs/frameworks.md", "python") if "on_s3" in block]
    assert (EXAMPLES / "torchtitan_job.py").read_text().endswith(f'"""\n\n{snippet}')
