"""A training loop with accelerate whose states are on S3: run it again and it goes on where it was.

Run with ``python`` or ``torchrun --nproc-per-node 2``.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed

import s3dcp.accelerate  # noqa: F401 - project_dir may be on S3 from here on

path = sys.argv[1] if len(sys.argv) > 1 else "s3://checkpoints/accelerate"
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 4


class Epoch:
    number = 0

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


set_seed(1)
project = ProjectConfiguration(project_dir=path, automatic_checkpoint_naming=True, total_limit=2)
accelerator = Accelerator(cpu=True, project_config=project)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
data = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=4)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
epoch = Epoch()
accelerator.register_for_checkpointing(epoch)
try:
    accelerator.load_state()
    project.iteration = epoch.number
except FileNotFoundError:
    accelerator.print("nothing to go on from")
first = epoch.number
while epoch.number < epochs:
    for batch in data:
        accelerator.backward((model(batch) + torch.rand(1)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    epoch.number += 1
    accelerator.save_state()
accelerator.save_model(model, f"{path}/model")
accelerator.print(f"epochs {first} to {epoch.number}")
accelerator.print("weights", [value for part in model.parameters() for value in part.flatten().tolist()])
accelerator.end_training()
