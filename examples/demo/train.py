"""Trains a small GPT under FSDP2 and checkpoints it to S3; `run.py` starts this with torchrun.

Every rank draws the same global batch from one seeded sampler and takes its share, so the loss of a step does
not depend on the number of ranks. The sampler's state is part of the checkpoint: a resumed job goes on with
the data that comes next. Standard output is for people, `--events` for `run.py`; warnings and tracebacks go
to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from s3dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter

TEXT = Path(__file__).with_name("text.txt")
CONTEXT = 64
GLOBAL_BATCH = 16
FILES_PER_RANK = 2
HALFWAY_SECONDS = 60


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each behind a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(x)


class GPT(nn.Module):
    """A byte-level decoder: (batch, length) bytes to (batch, length, 256) logits."""

    def __init__(self, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(256, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Sampler:
    """Draws windows of the demo's own text, the same on every rank."""

    def __init__(self) -> None:
        self._text = torch.frombuffer(bytearray(TEXT.read_bytes()), dtype=torch.uint8).long()
        self._generator = torch.Generator().manual_seed(2)

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's share of the next global batch: inputs and targets, (batch, CONTEXT) each."""
        starts = torch.randint(len(self._text) - CONTEXT - 1, (GLOBAL_BATCH,), generator=self._generator)
        share = GLOBAL_BATCH // dist.get_world_size()
        starts = starts[dist.get_rank() * share :][:share]
        windows = torch.stack([self._text[start : start + CONTEXT + 1] for start in starts])
        return windows[:, :-1], windows[:, 1:]

    def state(self) -> torch.Tensor:
        return self._generator.get_state()

    def restore(self, state: torch.Tensor) -> None:
        self._generator.set_state(state)


class DieHalfway(dcp.DefaultSavePlanner):
    """Kills its process in the middle of a save: bytes are sent, and the last item is not handed over yet."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self._tell = tell
        self._items_left = 0

    def finish_plan(self, new_plan: dcp.SavePlan) -> dcp.SavePlan:
        self._items_left = len(new_plan.items)
        return super().finish_plan(new_plan)

    def resolve_data(self, write_item: Any) -> Any:
        self._items_left -= 1
        if self._items_left == 0:
            threading.Event().wait(HALFWAY_SECONDS)
            raise RuntimeError(f"no byte was sent in {HALFWAY_SECONDS} s")
        return super().resolve_data(write_item)

    def on_progress(self, bytes_done: int, bytes_total: int) -> None:
        if self._items_left == 0 and bytes_done > 0:
            self._tell("killed", rank=dist.get_rank(), bytes_sent=bytes_done, bytes_total=bytes_total)
            os.kill(os.getpid(), signal.SIGKILL)


class Job:
    """The training state and its checkpoints."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(1)
        self.model = GPT(args.width, args.layers)
        mesh = init_device_mesh("cpu", (self.ranks,))
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.sampler = Sampler()
        self.step = 0

    # -- training

    def train(self) -> None:
        """Go on until the last step, saving every few."""
        while self.step < self.args.steps:
            self.step += 1
            loss = self._train_step()
            self.tell("step", step=self.step, loss=loss)
            self._show_step(loss)
            if self.step % self.args.save_every == 0:
                self.save()

    def _train_step(self) -> float:
        inputs, targets = self.sampler.next()
        loss = F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        return mean.item() / self.ranks

    def _show_step(self, loss: float) -> None:
        before = self.args.earlier_losses.get(str(self.step))
        if before is not None:
            self.say(f"step {self.step:3}   loss {loss:.6f}   before the crash {before:.6f}")
        elif self.step == 1 or self.step % 4 == 0:
            self.say(f"step {self.step:3}   loss {loss:.6f}")

    # -- checkpoints

    def state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {
            "model": model,
            "optimizer": optimizer,
            "job": {"step": self.step, "sampler": self.sampler.state()},
        }

    def save(self) -> None:
        """Save as this step's epoch; the rank told to die does so halfway."""
        writer = S3StorageWriter(
            None,
            self.args.path,
            prefix_strategy=HexPrefixStrategy(epoch_num=self.step),
            thread_count=FILES_PER_RANK,
            progress=True,
        )
        planner = dcp.DefaultSavePlanner()
        if self.step == self.args.die_at and self.rank == self.ranks - 1:
            planner = DieHalfway(self.tell_from_here)
            writer.progress = planner.on_progress
        state = self.state()
        sha256, nbytes = fingerprint(state)
        self.say(f"saving step {self.step}: {nbytes / 2**20:.1f} MiB of state from {self.ranks} ranks; rank 0's share:")
        dist.barrier()
        began = time.perf_counter()
        with bars_on_stdout():
            dcp.save(state, storage_writer=writer, planner=planner)
        seconds = time.perf_counter() - began
        self.tell("save", step=self.step, ranks=self.ranks, seconds=seconds, sha256=sha256)

    def resume(self) -> None:
        """Load the newest complete checkpoint, resharded for this number of ranks."""
        reader = S3StorageReader(None, self.args.path, progress=True)
        state = self.state()
        dist.barrier()
        began = time.perf_counter()
        with bars_on_stdout():
            dcp.load(state, storage_reader=reader)
        seconds = time.perf_counter() - began
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        self.step = state["job"]["step"]
        self.sampler.restore(state["job"]["sampler"])
        # From the live model and optimizer, not from what was loaded.
        sha256, nbytes = fingerprint(self.state())
        self.say(f"resumed at step {self.step}: {nbytes / 2**20:.1f} MiB onto {self.ranks} ranks")
        self.tell("resume", step=self.step, ranks=self.ranks, seconds=seconds, bytes=nbytes, sha256=sha256)

    # -- telling

    def say(self, line: str) -> None:
        """A line for the person watching, from rank 0."""
        if self.rank == 0:
            print(f"   {line}", flush=True)

    def tell(self, event: str, **facts: Any) -> None:
        """An event for `run.py`, from rank 0."""
        if self.rank == 0:
            self.tell_from_here(event, **facts)

    def tell_from_here(self, event: str, **facts: Any) -> None:
        """An event for `run.py`, from any rank; one write, so lines of two ranks do not mix."""
        line = json.dumps({"event": event, **facts}) + "\n"
        with open(self.args.events, "ab", buffering=0) as file:
            file.write(line.encode())


def fingerprint(state: dict[str, Any]) -> tuple[str, int]:
    """SHA-256 over all tensors, gathered whole from all ranks, in order of their names; and their bytes."""
    digest, nbytes = hashlib.sha256(), 0
    for name, tensor in sorted(named_tensors(state)):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        data = whole.contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode())
        digest.update(data)
        nbytes += data.nbytes
    return digest.hexdigest(), nbytes


def named_tensors(value: Any, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value.detach())]
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in named_tensors(inner, f"{name}.{key}")]
    return []


@contextlib.contextmanager
def bars_on_stdout() -> Any:
    """Progress bars go to standard error, which `run.py` keeps in a log: show them with the other lines."""
    with contextlib.redirect_stderr(sys.stdout):
        yield


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", required=True, help="s3://bucket/path of the checkpoints")
    parser.add_argument("--events", required=True, help="file to append events to, one JSON object per line")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--die-at", type=int, help="step whose save the last rank does not survive")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--earlier-losses", type=json.loads, default={}, help="step to loss, to show beside")
    return parser.parse_args()


def main() -> None:
    # Warnings and log records keep to this stream, also while bars are redirected.
    logging.basicConfig(stream=sys.stderr)
    logging.captureWarnings(True)
    torch.set_num_threads(1)
    args = arguments()
    dist.init_process_group("gloo")
    job = Job(args)
    if args.resume:
        job.resume()
    job.train()
    dist.destroy_process_group()
    # What is sharded holds the group until the interpreter ends; torch aborts if a thread of it frees a tensor then.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
