"""What an index costs: writing and reading `.metadata` of 10,000 to 1,000,000 items, beside plain pickle.

Every measurement is a fresh process against the embedded server in this one. `save` is a commit at a path where
nothing is, `replace` one that overwrites an index as large, `epoch` one that writes an epoch's index and the path's;
`read` is a reader's `read_metadata`. `dumps` and `loads` are Python's pickle of the same metadata, without S3. CPU
and memory are those of the measured process; peak memory is what came on top of what was there before, so a read's
includes the metadata that it returns.

    python bench/index.py --items 10000 100000 1000000 --runs 3
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

BUCKET = "bench"
OPERATIONS = ("dumps", "save", "replace", "epoch", "loads", "read")


def metadata_of(items: int, chunks: int) -> tuple[Any, list[list[Any]]]:
    """Metadata of `items` tensor chunks, `chunks` per tensor, and the results of the ranks that wrote them."""
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        MetadataIndex,
        TensorProperties,
        TensorStorageMetadata,
    )
    from torch.distributed.checkpoint.storage import WriteResult

    results: list[list[Any]] = [[] for _ in range(max(8, chunks))]
    tensors: dict[str, Any] = {}
    planner_data: dict[str, Any] = {}
    for number in range(items // chunks):
        fqn = f"model.layers.{number // 10}.experts.{number % 10}.weight"
        rows = 4 * (1 + number % 5)
        size = torch.Size([rows * chunks, 256])
        parts = [
            ChunkStorageMetadata(torch.Size([place * rows, 0]), torch.Size([rows, 256])) for place in range(chunks)
        ]
        tensors[fqn] = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), size, parts)
        planner_data[fqn] = ("model", "layers", number // 10, "experts", number % 10, "weight")
        for place, part in enumerate(parts):
            rank = (number + place) % len(results)
            nbytes = rows * 512 + 1024
            info = _StorageInfo(f"a00000000{rank % 10}/__{rank}_0-0123456789abcdef.distcp", number * nbytes, nbytes)
            info.crc32 = (number * 1000 + place).to_bytes(4, "little") * 2  # type: ignore[attr-defined]
            info.data_offset = 704  # type: ignore[attr-defined]
            results[rank].append(WriteResult(MetadataIndex(fqn, part.offsets, place), nbytes, info))
    return Metadata(tensors, planner_data=planner_data), results


def measured(action: Callable[[], Any]) -> dict[str, float]:
    """Wall, CPU and extra peak memory of calling `action` in this process."""

    def memory(field: str) -> int:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith(field))
        return int(line.split()[1]) * 1024

    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the high-water mark starts anew
    before, resident, began = resource.getrusage(resource.RUSAGE_SELF), memory("VmRSS"), time.perf_counter()
    kept = action()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = memory("VmHWM") - resident
    del kept
    return {"wall": wall, "cpu": cpu, "peak": peak}


def run_one(operation: str, items: int, chunks: int) -> dict[str, float]:
    """One measurement, in this process."""
    import s3dcp
    from s3dcp import S3StorageReader, S3StorageWriter

    warnings.simplefilter("ignore")
    uri = f"s3://{BUCKET}/{items}-{chunks}"

    def committer(uri: str, **settings: Any) -> Callable[[], Any]:
        metadata, results = metadata_of(items, chunks)
        writer = S3StorageWriter("us-east-1", uri, **settings)
        plans = [s3dcp_plan() for _ in results]

        def commit() -> None:
            writer.set_up_storage_writer(True)
            writer.prepare_local_plan(plans[0])
            writer.prepare_global_plan(plans)
            writer.finish(metadata, results)

        return commit

    def s3dcp_plan() -> Any:
        from torch.distributed.checkpoint.planner import SavePlan

        return SavePlan([])

    if operation in ("save", "replace"):
        # the path is new at "save", and holds its index at "replace"
        return measured(committer(uri, overwrite=True))
    if operation == "epoch":
        strategy = s3dcp.RoundRobinPrefixStrategy(["p"], epoch_num=1)
        return measured(committer(f"{uri}-epochs", prefix_strategy=strategy, overwrite=True))
    if operation == "read":
        reader = S3StorageReader("us-east-1", uri)
        return measured(reader.read_metadata)
    metadata, results = metadata_of(items, chunks)
    metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
    if operation == "dumps":
        return measured(functools.partial(pickle.dumps, metadata))
    body = pickle.dumps(metadata)
    del metadata, results
    return measured(lambda: pickle.loads(body))


def index_bytes(items: int, chunks: int) -> int:
    """Size of the index that `save` wrote."""
    from s3dcp import S3FileSystem

    return len(S3FileSystem("us-east-1").client.get_object(BUCKET, f"{items}-{chunks}/.metadata")[0])


def main() -> None:
    """Run the measurements and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 64], help="chunks per tensor")
    parser.add_argument("--runs", type=int, default=3, help="medians of this many")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        operation, items, chunks = arguments.one
        print(json.dumps(run_one(operation, int(items), int(chunks))))
        return

    if {"replace", "read"}.intersection(arguments.operations) and "save" not in arguments.operations:
        parser.error("--operations: replace and read need save, which writes the index that is there")

    from s3dcp import testing

    rows = []
    columns = f"{'wall':>9} {'CPU':>9} {'us/item':>8} {'peak':>9} {'x index':>7}"
    print(f"{'items':>9} {'chunks':>6} {'index':>9}  {'':8} {columns}")
    for chunks in arguments.chunks:
        for items in arguments.items:
            runs: dict[str, list[dict[str, float]]] = {operation: [] for operation in arguments.operations}
            size = 0
            for _ in range(arguments.runs):
                # a new server for each round: "save" finds nothing there
                with testing.server(buckets=[BUCKET]):
                    for operation in arguments.operations:
                        command = [sys.executable, __file__, "--one", operation, str(items), str(chunks)]
                        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
                        runs[operation].append(json.loads(done.stdout.splitlines()[-1]))
                    if "save" in arguments.operations:
                        size = index_bytes(items, chunks)
            for operation, measurements in runs.items():
                middle = {
                    field: statistics.median(measurement[field] for measurement in measurements)
                    for field in ("wall", "cpu", "peak")
                }
                rows.append({"items": items, "chunks": chunks, "index": size, "operation": operation, **middle})
                ratio = f"{middle['peak'] / size:7.2f}" if size else ""
                shape = f"{items:9,} {chunks:6} {size / 2**20:5.1f} MiB"
                times = (
                    f"{middle['wall'] * 1e3:6,.0f} ms {middle['cpu'] * 1e3:6,.0f} ms {middle['cpu'] / items * 1e6:8.2f}"
                )
                print(f"{shape}  {operation:8} {times} {middle['peak'] / 2**20:5,.0f} MiB {ratio}", flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
