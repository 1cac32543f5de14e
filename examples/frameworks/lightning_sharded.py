"""Lightning with FSDP2 and sharded checkpoints on S3: run it again and it goes on where it was.

Lightning starts the second rank itself: run with ``python``.
"""

import sys

import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.fsdp import fully_shard

from s3dcp.lightning import S3ModelParallelStrategy

path = sys.argv[1] if len(sys.argv) > 1 else "s3://checkpoints/lightning"
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 2


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))

    def configure_model(self) -> None:
        fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)

    def on_train_start(self) -> None:
        self.print(f"goes on at epoch {self.current_epoch}, step {self.global_step}")


seed_everything(1, verbose=False)
trainer = Trainer(
    max_epochs=epochs,
    accelerator="cpu",
    devices=2,
    strategy=S3ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    callbacks=[ModelCheckpoint(dirpath=path, save_last=True)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4), ckpt_path="last")
