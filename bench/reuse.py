"""What incremental saves cost: a model of which little is trained, saved again and again.

99 % of the state (`--gib`) stays as it is, the rest changes between two saves, as with LoRA. Every run is a fresh
process against the embedded server in this one, and saves each way twice: `plain`, and `incremental`, of which the
first save has nothing to reuse. CPU is that of the saving process; bytes are the bodies that it sent. Every checkpoint
is loaded again and compared. Python's garbage is collected before each save: a full collection walks all that torch has
imported, and is due when enough was made before, in whichever save comes next.

    python bench/reuse.py --gib 2 --runs 5 [--publish]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

BUCKET = "bench"
GIB = 1 << 30
FROZEN_TENSORS = 48
TRAINED_TENSORS = 96
ORDER = ("first", "second")


def state(gib: float, step: int) -> dict[str, Any]:
    """Frozen layers, and small trained ones of 1 % of the bytes."""
    import torch

    def tensors(name: str, count: int, nbytes: float, seed: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        elements = int(nbytes / count / 2)
        return {
            f"{name}.{number}": torch.randint(-(1 << 15), 1 << 15, (elements,), generator=generator, dtype=torch.int16)
            for number in range(count)
        }

    frozen = tensors("frozen", FROZEN_TENSORS, 0.99 * gib * GIB, 1)
    return {**frozen, **tensors("trained", TRAINED_TENSORS, 0.01 * gib * GIB, 2 + step), "step": step}


def saves(way: str, gib: float) -> list[dict[str, float]]:
    """Two saves and what each took."""
    import torch
    import torch.distributed.checkpoint as dcp

    from s3dcp import HexPrefixStrategy, S3StorageReader, S3StorageWriter
    from s3dcp._usage import UsageMeter

    uri = f"s3://{BUCKET}/{way}-{os.getpid()}"
    warm = S3StorageWriter("us-east-1", f"{uri}/warm")
    dcp.save({"x": torch.zeros(1 << 20)}, storage_writer=warm, no_dist=True)
    took = []
    for step in range(2):
        saved = state(gib, step)
        strategy = HexPrefixStrategy(epoch_num=step)
        options = {"incremental": True} if way == "incremental" else {}
        writer = S3StorageWriter("us-east-1", uri, prefix_strategy=strategy, **options)
        meter = UsageMeter(writer.fs.client)
        gc.collect()
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        dcp.save(saved, storage_writer=writer, no_dist=True)
        after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        took.append({"cpu": cpu, "wall": seconds, "bytes": meter.read().bytes_sent})
        loaded = {name: torch.empty_like(value) if name != "step" else 0 for name, value in saved.items()}
        dcp.load(loaded, storage_reader=S3StorageReader("us-east-1", f"{uri}/epoch_{step}"), no_dist=True)
        assert loaded["step"] == step
        assert all(torch.equal(loaded[name], value) for name, value in saved.items() if name != "step")
    return took


def measured(gib: float, runs: int) -> dict[str, Any]:
    """Both ways in turn, each time by a process and against a server of their own."""
    from s3dcp import testing

    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(runs):
        for way in ("plain", "incremental"):
            with testing.server(buckets=[BUCKET]):
                command = [sys.executable, __file__, "--gib", str(gib), "--way", way]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            for number, took in enumerate(json.loads(done.stdout)):
                found.setdefault((way, number), []).append(took)
    rows = [
        {"candidate": "s3dcp", "label": f"{way}, {ORDER[number]}", "operation": "reuse", "gib": gib, "runs": took}
        for (way, number), took in found.items()
    ]
    return {"case": "reuse", "title": "Saves of what has changed", "lacking": {}, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--publish", action="store_true", help="write to bench/results and refresh BENCHMARKS.md")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        warnings.simplefilter("ignore")
        print(json.dumps(saves(options.way, options.gib)))
        return
    import report
    from run import PUBLISHED, machine, versions

    command = " ".join(["python bench/reuse.py", *(word for word in sys.argv[1:] if word != "--publish")])
    result = {"machine": machine(), "versions": versions(), "command": command}
    result |= measured(options.gib, options.runs)
    print(report.table(result))
    if options.publish:
        (PUBLISHED / "reuse.json").write_text(json.dumps(result, indent=1) + "\n")
        report.publish(PUBLISHED)


if __name__ == "__main__":
    main()
