"""Lightning's sharded strategies on S3: two ranks on the CPU, as Lightning's launcher starts them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from support import pages
from support.store import Store

pytest.importorskip("lightning", reason="lightning is installed by `make test-frameworks`")

EXAMPLE = Path(__file__).parents[2] / "examples/frameworks/lightning_sharded.py"
TRAIN = textwrap.dedent(
    """
    import functools, os, sys
    import torch, lightning
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp import fully_shard
    from s3dcp.lightning import S3FSDPStrategy, S3ModelParallelStrategy

    folder, epochs, die_in, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        def configure_model(self):
            if kind != "fsdp1":
                fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])
        def training_step(self, batch, number):
            loss = self.layers(batch).square().mean()
            self.log("loss", loss)
            return loss
        def on_train_epoch_start(self):
            self.print("epoch", self.current_epoch, self.global_step, flush=True)
        def on_train_batch_end(self, *_):
            if self.current_epoch == die_in:
                os._exit(9)
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)
        def on_train_end(self):
            if kind == "fsdp1":
                with FSDP.summon_full_params(self.trainer.strategy.model):
                    full = [part.detach().clone() for part in self.parameters()]
            else:
                full = [part.full_tensor() for part in self.parameters()]
            self.print("weights", [value for part in full for value in part.flatten().tolist()])

    if kind == "fsdp1":
        # FSDP trains on the CPU when it is told to, and Lightning does not tell it.
        made = FSDP.__init__
        FSDP.__init__ = functools.wraps(made)(
            lambda self, *args, **kwargs: made(self, *args, **{**kwargs, "device_id": torch.device("cpu")})
        )
        strategy = S3FSDPStrategy(state_dict_type="sharded", auto_wrap_policy={torch.nn.Linear})
    else:
        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        if kind == "lightning":
            strategy = ModelParallelStrategy(**sizes)
        else:
            strategy = S3ModelParallelStrategy(**sizes, save_distributed_checkpoint=kind != "full")

    lightning.seed_everything(1, verbose=False)
    data = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, monitor="loss", save_top_k=1, save_last=True)],
    )
    trainer.fit(Model(), data, ckpt_path="last")
    """
)


def train(cwd: Path, folder: str, epochs: int, kind: str, die_in: int = -1) -> list[str]:
    """What rank 0 of a run of the script printed."""
    script = cwd / "train.py"
    script.write_text(TRAIN)
    arguments = [folder, str(epochs), str(die_in), kind]
    done = subprocess.run([sys.executable, "-W", "ignore", script, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == (9 if die_in >= 0 else 0), done.stderr
    return done.stdout.splitlines()


def only_the_script(cwd: Path) -> bool:
    return [path.name for path in cwd.iterdir()] == ["train.py"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["fsdp2", "fsdp1", "full"])
def test_two_ranks_that_were_killed_go_on_from_the_last_checkpoint_to_the_same_weights(
    store: Store, tmp_path: Path, kind: str
) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole", 3, kind)
    train(tmp_path, f"s3://{store.bucket}/run", 3, kind, die_in=1)
    if kind != "full":
        # What Lightning keeps in meta.pt is part of the checkpoint itself.
        store.client.put_object(Bucket=store.bucket, Key="run/last.ckpt/meta.pt", Body=b"of another save")
        # What a killed save leaves is not taken for a checkpoint.
        store.client.put_object(Bucket=store.bucket, Key="run/last-v1.ckpt/__0_0-0123456789abcdef.distcp", Body=b"")
    resumed = train(tmp_path, f"s3://{store.bucket}/run", 3, kind)
    assert resumed[0] == "epoch 1 2"
    assert resumed[-1] == whole[-1]
    assert only_the_script(tmp_path), "a folder was made here"
    names = {key.split("/")[1] for key in store.all_keys("run/")} - {"last-v1.ckpt"}
    assert len(names) == 2
    assert "last.ckpt" in names
    assert any(key.endswith(".distcp") for key in store.all_keys("whole/")) == (kind != "full")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_downloaded_checkpoint_is_lightnings_own_and_an_uploaded_one_ours(store: Store, tmp_path: Path) -> None:
    whole = train(tmp_path, f"s3://{store.bucket}/whole", 2, "fsdp2")
    train(tmp_path, f"s3://{store.bucket}/run", 1, "fsdp2")
    local = tmp_path / "local"
    for key in store.all_keys("run/"):
        file = local / key.removeprefix("run/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read())
    resumed = train(tmp_path, str(local), 2, "lightning")
    assert resumed[0] == "epoch 1 2"
    assert resumed[-1] == whole[-1]

    newest = max(local.glob("last*.ckpt"), key=lambda folder: folder.stat().st_mtime)
    for file in newest.iterdir():
        store.client.put_object(Bucket=store.bucket, Key=f"theirs/last.ckpt/{file.name}", Body=file.read_bytes())
    resumed = train(tmp_path, f"s3://{store.bucket}/theirs", 3, "fsdp2")
    assert resumed[0] == "epoch 2 4"


def test_a_path_that_would_be_a_local_folder_is_refused(store: Store) -> None:
    from s3dcp import ConfigError
    from s3dcp.lightning import S3ModelParallelStrategy

    strategy = S3ModelParallelStrategy()
    with pytest.raises(ConfigError, match="filepath="):
        strategy.save_checkpoint({"state_dict": {}}, Path(f"s3://{store.bucket}/run"))
    with pytest.raises(ConfigError, match="checkpoint_path"):
        strategy.load_checkpoint(f"s3:/{store.bucket}/run")
    with pytest.raises(TypeError, match="storage_options="):
        strategy.save_checkpoint({"state_dict": {}}, f"s3://{store.bucket}/run", storage_options={})


def test_the_snippet_of_the_page_trains(store: Store, tmp_path: Path) -> None:
    snippet = pages.block("docs/frameworks.md", "S3ModelParallelStrategy(").replace(
        "s3://checkpoints/", f"s3://{store.bucket}/"
    )
    snippet = snippet.replace("lightning.Trainer(", "lightning.Trainer(max_epochs=2, accelerator='cpu', devices=2, ")
    head = TRAIN.partition("trainer = lightning.Trainer(")[0]
    script = tmp_path / "train.py"
    script.write_text(f"{head}model = Model()\n{snippet}")
    arguments = ["unused", "1", "-1", "fsdp2"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "run/last.ckpt/.metadata" in store.all_keys()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_example_goes_on_where_it_was(store: Store, tmp_path: Path) -> None:
    for epochs, said in ((1, "goes on at epoch 0, step 0"), (2, "goes on at epoch 1, step 2")):
        command = [sys.executable, "-W", "ignore", str(EXAMPLE), store.uri, str(epochs)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
    assert not list(tmp_path.iterdir()), "a folder was made here"
