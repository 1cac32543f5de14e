"""transformers' own Trainer with its output folder on S3, as a user writes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

from support import pages
from support.scripts import that_ends
from support.store import Store

pytest.importorskip("transformers", reason="transformers is installed by `make test-frameworks`")

EXAMPLE = Path(__file__).parents[2] / "examples/frameworks/transformers_trainer.py"
TRAIN = textwrap.dedent(
    """
    import os, sys
    import torch, transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments
    import s3dcp.transformers
    from s3dcp._staging import RemoteFolder

    folder, resume, die_at, die_in_save, best = sys.argv[1], *map(int, sys.argv[2:])

    class Report(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            print("step", state.global_step, flush=True)
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == die_at:
                os._exit(9)

    upload = RemoteFolder.upload
    def upload_until(self, local, names):
        if self.uri.endswith(f"checkpoint-{die_in_save}") and self.marker in names:
            os._exit(9)
        upload(self, local, names)
    RemoteFolder.upload = upload_until

    transformers.set_seed(1)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=20)
    model = transformers.GPT2LMHeadModel(config)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 20, (16, 8))]
    more = dict(eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_loss", greater_is_better=True)
    args = TrainingArguments(
        output_dir=folder, max_steps=8, save_steps=2, save_total_limit=2, per_device_train_batch_size=4,
        use_cpu=True, disable_tqdm=True, learning_rate=0.05, report_to=[], load_best_model_at_end=bool(best),
        **(more if best else {}),
    )
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data, callbacks=[Report()])
    trainer.train(resume_from_checkpoint=True if resume else None)
    trainer.save_state()
    assert args.output_dir == folder
    print("step", trainer.state.global_step)
    print("weights", [value for part in model.parameters() for value in part.flatten().tolist()])
    """
)


def train(
    cwd: Path, folder: str, resume: bool = False, die_at: int = -1, die_in_save: int = -1, best: bool = False
) -> list[str]:
    """What a run of the script printed."""
    (cwd / "work").mkdir(exist_ok=True)
    (cwd / "staging").mkdir(exist_ok=True)
    script = cwd / "train.py"
    script.write_text(TRAIN)
    arguments = [folder, *(str(int(value)) for value in (resume, die_at, die_in_save, best))]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments],
        cwd=cwd / "work",
        env={**os.environ, "TMPDIR": str(cwd / "staging")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (9 if max(die_at, die_in_save) >= 0 else 0), done.stderr
    assert not list((cwd / "work").iterdir()), "a folder was made here"
    return [line for line in done.stdout.splitlines() if line.startswith(("step", "weights"))]


def state(store: Store, name: str) -> dict[str, Any]:
    body = store.client.get_object(Bucket=store.bucket, Key=f"{name}/trainer_state.json")["Body"].read()
    found: dict[str, Any] = json.loads(body)
    return found


def checkpoints(store: Store, name: str) -> set[str]:
    parts = [key.split("/") for key in store.all_keys(f"{name}/")]
    return {part[1] for part in parts if part[1].startswith("checkpoint-")}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_weights(store: Store, tmp_path: Path) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole")
    assert not list((tmp_path / "staging").glob("s3dcp-*")), "files stayed"
    train(tmp_path, f"s3://{store.bucket}/run", die_at=5)
    assert list((tmp_path / "staging").glob("s3dcp-*")), "nothing was killed"
    resumed = train(tmp_path, f"s3://{store.bucket}/run", resume=True)
    assert resumed == ["step 4", "step 8", whole[-1]]
    assert not list((tmp_path / "staging").glob("s3dcp-*")), "what a killed run leaves goes with the next"
    assert checkpoints(store, "run") == {"checkpoint-6", "checkpoint-8"}
    assert state(store, "run")["global_step"] == 8


@pytest.mark.slow
def test_a_save_that_was_killed_is_no_checkpoint(store: Store, tmp_path: Path) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole")
    train(tmp_path, f"s3://{store.bucket}/run", die_in_save=6)
    assert "run/checkpoint-6/model.safetensors" in store.all_keys()
    resumed = train(tmp_path, f"s3://{store.bucket}/run", resume=True)
    assert resumed == ["step 4", "step 8", whole[-1]]
    assert checkpoints(store, "run") == {"checkpoint-6", "checkpoint-8"}


@pytest.mark.slow
def test_the_best_model_is_kept_and_comes_back_at_the_end(store: Store, tmp_path: Path) -> None:
    train(tmp_path, f"s3://{store.bucket}/run", die_at=5, best=True)
    resumed = train(tmp_path, f"s3://{store.bucket}/run", resume=True, best=True)
    assert resumed[:2] == ["step 4", "step 8"]
    losses = {each["step"]: each["eval_loss"] for each in state(store, "run")["log_history"] if "eval_loss" in each}
    name = f"checkpoint-{max(losses, key=lambda step: losses[step])}"
    assert set(losses) == {2, 4, 6, 8}
    assert name in ("checkpoint-2", "checkpoint-4"), "the best one was not saved by the first run"
    assert checkpoints(store, "run") == {name, "checkpoint-8"}
    best = f"s3://{store.bucket}/run/{name}"
    assert state(store, "run/checkpoint-8")["best_model_checkpoint"] == best
    assert state(store, "run")["best_model_checkpoint"] == best

    import safetensors.torch

    key = f"run/{name}/model.safetensors"
    stored = safetensors.torch.load(store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read())
    norm = stored["transformer.ln_f.bias"].tolist()
    assert resumed[-1].endswith(f"{', '.join(map(repr, norm))}]")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_go_on_from_a_path(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(that_ends(EXAMPLE.read_text()))
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    path = f"s3://{store.bucket}/run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "went on from None, ended at step 4" in run(path, "4")
    assert {"run/checkpoint-4/rng_state_0.pth", "run/checkpoint-4/rng_state_1.pth"} <= set(store.all_keys())
    assert f"went on from {path}/checkpoint-4, ended at step 6" in run(path, "6")
    assert f"went on from {path}/checkpoint-4, ended at step 8" in run(f"{path}2", "8", f"{path}/checkpoint-4")
    assert checkpoints(store, "run2") == {"checkpoint-6", "checkpoint-8"}
    assert "run/model.safetensors" in store.all_keys()
    assert not list(tmp_path.glob("s3dcp-*")), "files stayed"


def trainer(output_dir: str) -> Any:
    import transformers

    import s3dcp.transformers  # noqa: F401

    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5)
    args = transformers.TrainingArguments(output_dir=output_dir, use_cpu=True, report_to=[], disable_tqdm=True)
    return transformers.Trainer(model=transformers.GPT2LMHeadModel(config), args=args)


def test_what_is_not_there_is_named(store: Store) -> None:
    from s3dcp import ConfigError, NotFound

    path = f"s3://{store.bucket}/run"
    with pytest.raises(ValueError, match=f"resume_from_checkpoint=True: no complete checkpoint in {path}"):
        trainer(path).train(resume_from_checkpoint=True)
    with pytest.raises(NotFound, match=f"{path}/checkpoint-3: it has no trainer_state.json"):
        trainer(path).train(resume_from_checkpoint=f"{path}/checkpoint-3")
    with pytest.raises(ConfigError, match="output_dir"):
        trainer(f"s3:/{store.bucket}/run")


def test_a_local_trainer_is_as_it_was_and_may_export_to_s3(store: Store, tmp_path: Path) -> None:
    made = trainer(str(tmp_path / "run"))
    assert made.args.output_dir == str(tmp_path / "run")
    made.save_model()
    assert (tmp_path / "run/model.safetensors").is_file()
    made.save_model(f"s3://{store.bucket}/export")
    assert {"export/config.json", "export/model.safetensors"} <= set(store.all_keys())


def test_a_checkpoint_that_was_exported_is_loaded(store: Store, tmp_path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    import transformers

    from s3dcp import S3StorageWriter, catalogue

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=40
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, without a process group
        dcp.save({"model": model.state_dict(), "step": 7}, storage_writer=S3StorageWriter(None, store.uri))
    export = f"s3://{store.bucket}/export"
    catalogue.export(store.uri, export, select=["model"], strip_prefixes=["model."], max_shard_size=20_000)
    for key in store.all_keys("export/"):
        store.client.download_file(store.bucket, key, str(tmp_path / Path(key).name))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config.save_pretrained(tmp_path)
    loaded, told = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(told.values()), told
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name", ["../outside", "a//b", "a/./b"])
def test_a_key_is_no_way_out_of_the_staging_directory(store: Store, tmp_path: Path, name: str) -> None:
    from s3dcp._staging import RemoteFolder

    store.client.put_object(Bucket=store.bucket, Key=f"run/{name}", Body=b"x")
    with pytest.raises(ValueError, match="cannot be a file"):
        RemoteFolder(f"s3://{store.bucket}/run").download(tmp_path / "staging")
    assert not list(tmp_path.iterdir())


def test_the_snippet_of_the_page_trains(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers

    monkeypatch.chdir(tmp_path)
    snippet = pages.block("docs/frameworks.md", "import s3dcp.transformers").replace(
        "s3://checkpoints/", f"s3://{store.bucket}/"
    )
    snippet = snippet.replace("TrainingArguments(", "TrainingArguments(use_cpu=True, report_to=[], max_steps=4, ")
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(0, 5, (8, 4))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(snippet, {"model": transformers.GPT2LMHeadModel(config), "data": data})
    assert not list(tmp_path.iterdir())
    assert "run/model.safetensors" in store.all_keys()
