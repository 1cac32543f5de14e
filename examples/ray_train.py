"""Ray Train with a checkpoint on S3: ``python ray_train.py s3://bucket/run``; a second run goes on from the first."""

import sys

import fsspec
import torch
import torch.distributed.checkpoint as dcp
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict


def train(config):
    model = prepare_model(torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    first = 0
    if fsspec.filesystem("s3dcp").exists(f"{config['path']}/.metadata"):
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True), epoch=0)
        dcp.load(state, checkpoint_id=config["path"])
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        first = state["epoch"] + 1
    for epoch in range(first, first + 2):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True), epoch=epoch)
        dcp.save(state, checkpoint_id=config["path"])
        print("saved epoch", epoch, flush=True)


if __name__ == "__main__":
    TorchTrainer(train, train_loop_config={"path": sys.argv[1]}, scaling_config=ScalingConfig(num_workers=2)).fit()
