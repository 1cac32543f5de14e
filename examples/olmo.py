"""A checkpoint of OLMo-core's layout, saved by s3dcp: ``python olmo.py s3://bucket/run``. OLMo-core loads it."""

import sys

import torch
import torch.distributed.checkpoint as dcp
from olmo_core.distributed.checkpoint import load_model_and_optim_state
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)


def save(path, model, optimizer):
    options = StateDictOptions(cpu_offload=True)
    state = {
        "model": get_model_state_dict(model, options=options),
        "optim": get_optimizer_state_dict(model, optimizer, options=options),
    }
    dcp.save(state, checkpoint_id=path)


if __name__ == "__main__":
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    save(sys.argv[1], model, optimizer)

    again = torch.nn.Linear(8, 8)
    load_model_and_optim_state(sys.argv[1], again, torch.optim.AdamW(again.parameters()))
    print("the same weights:", torch.equal(again.weight, model.weight))
