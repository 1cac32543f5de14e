"""A Trainer whose checkpoints are on S3: run it again and it goes on where it was.

Run with ``python`` or ``torchrun --nproc-per-node 2``.
"""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from s3dcp.transformers import get_last_checkpoint  # output_dir may be on S3 from this import on

path = sys.argv[1] if len(sys.argv) > 1 else "s3://checkpoints/trainer"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 8
set_seed(1)
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=20))
texts = [{"input_ids": row, "labels": row} for row in torch.randint(0, 20, (16, 8))]
args = TrainingArguments(
    output_dir=path,
    max_steps=steps,
    save_steps=2,
    save_total_limit=2,
    per_device_train_batch_size=4,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
last = sys.argv[3] if len(sys.argv) > 3 else get_last_checkpoint(path)
trainer = Trainer(model=model, args=args, train_dataset=texts)
trainer.train(resume_from_checkpoint=last)
trainer.save_model()
if trainer.is_world_process_zero():
    print(f"went on from {last}, ended at step {trainer.state.global_step}")
