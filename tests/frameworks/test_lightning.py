"""Lightning's own trainer on S3, as a user writes it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

from support import pages
from support.store import Store

pytest.importorskip("lightning", reason="lightning is installed by `make test-frameworks`")

TRAIN = textwrap.dedent(
    """
    import os, sys
    import torch, lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.plugins.io import AsyncCheckpointIO
    from s3dcp.lightning import S3LightningCheckpoint

    folder, epochs, die_in, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
        def training_step(self, batch, number):
            loss = self.layer(batch).square().mean()
            self.log("loss", loss)
            return loss
        def on_train_epoch_start(self):
            print("epoch", self.current_epoch, self.global_step, flush=True)
        def on_train_batch_end(self, *_):
            if self.current_epoch == die_in:
                os._exit(9)
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    lightning.seed_everything(1, verbose=False)
    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=4)
    io = S3LightningCheckpoint()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=[AsyncCheckpointIO(io) if mode == "async" else io],
        callbacks=[ModelCheckpoint(dirpath=folder, monitor="loss", save_top_k=2, save_last=True)],
    )
    model = Model()
    trainer.fit(model, data, ckpt_path="last")
    print("weights", [value for part in model.parameters() for value in part.flatten().tolist()])
    """
)


def train(cwd: Path, store: Store, epochs: int, die_in: int = -1, mode: str = "plain", name: str = "run") -> list[str]:
    """What a run of the script printed."""
    script = cwd / "train.py"
    script.write_text(TRAIN)
    arguments = [f"s3://{store.bucket}/{name}", str(epochs), str(die_in), mode]
    done = subprocess.run([sys.executable, "-W", "ignore", script, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == (9 if die_in >= 0 else 0), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("mode", ["plain", "async"])
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint_to_the_same_weights(
    store: Store, tmp_path: Path, mode: str
) -> None:
    whole = train(tmp_path, store, 5, mode=mode, name="whole")
    train(tmp_path, store, 5, die_in=3, mode=mode)
    resumed = train(tmp_path, store, 5, mode=mode)
    # Killed in epoch 3, the background may not have ended the save of epoch 2.
    assert resumed[0] in (["epoch 3 6"] if mode == "plain" else ["epoch 3 6", "epoch 2 4"])
    assert resumed[-1] == whole[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"], "a folder was made here"


def test_the_snippet_of_the_page_trains(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Model(BoringModel):
        def training_step(self, batch: Any, number: int) -> Any:
            output = super().training_step(batch, number)
            self.log("loss", output["loss"])
            return output

    monkeypatch.chdir(tmp_path)
    snippet = pages.block("docs/frameworks.md", "S3LightningCheckpoint(").replace(
        "s3://checkpoints/", f"s3://{store.bucket}/"
    )
    trainer = "max_epochs=1, limit_train_batches=2, accelerator='cpu', logger=False, enable_progress_bar=False,"
    snippet = snippet.replace("lightning.Trainer(", f"lightning.Trainer({trainer}")
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own
        exec(snippet, {"model": model, "data": model.train_dataloader()})
    assert "run/last.ckpt" in store.all_keys()


def test_as_many_checkpoints_are_kept_as_were_asked_for(store: Store, tmp_path: Path) -> None:
    train(tmp_path, store, 5)
    kept = [key for key in store.all_keys() if key.startswith("run/")]
    assert len(kept) == 3
    assert "run/last.ckpt" in kept


def test_removal_takes_a_file_or_a_folder_and_looks_once(store: Store) -> None:
    from s3dcp.lightning import S3LightningCheckpoint

    plugin = S3LightningCheckpoint()
    path = f"s3://{store.bucket}/run/last.ckpt"
    plugin.save_checkpoint({"step": 1}, path)
    plugin.save_checkpoint({"step": 2}, f"{path}/below")
    plugin.remove_checkpoint(path)
    assert store.all_keys() == []
    plugin.remove_checkpoint(path)


def test_without_a_word_of_lightning_a_checkpoint_may_hold_what_it_wants(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse
    import pickle

    from s3dcp import lightning

    checkpoint, path = lightning.S3LightningCheckpoint("us-east-1"), f"{store.uri}/last.ckpt"
    saved = {"hyper_parameters": argparse.Namespace(rate=0.1)}
    checkpoint.save_checkpoint(saved, path)
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_checkpoint(path)
    monkeypatch.setattr(lightning, "_says_weights_only", lambda: False)  # as before 2.6
    assert checkpoint.load_checkpoint(path) == saved
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_checkpoint(path, weights_only=True)
