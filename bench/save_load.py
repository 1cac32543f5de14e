"""One save and one load of a Llama-shaped bf16 state, beside the peer and a plain socket, in one run.

Every measurement is a fresh process; the candidates take turns, so that a noisy machine hits them alike. CPU is
user and system time of the measured process alone, the server is another process. The floor moves the same bytes
through plain sockets on loopback: one kernel copy per byte and nothing else.

    make bench BENCH="--gib 1 --runs 3"
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
import warnings
from importlib.metadata import version

BUCKET = "bench"
CANDIDATES = ("floor", "s3dcp", "s3torchconnector")
FLOOR_CONNECTIONS = 4
BLOCK = 4 * 1024 * 1024
# Filled memory is warm memory; the floor sends and receives this much again and again.
WINDOW = 256 * 1024 * 1024


def llama_state(gib: float, fill: bool) -> tuple[dict[str, object], int]:
    """bf16 matrices of a 2048-wide decoder until `gib` is reached; (state dict, bytes)."""
    import torch

    hidden, ffn = 2048, 5632
    shapes = {
        "wq": (hidden, hidden),
        "wk": (hidden, hidden // 4),
        "wv": (hidden, hidden // 4),
        "wo": (hidden, hidden),
        "w1": (ffn, hidden),
        "w2": (hidden, ffn),
        "w3": (ffn, hidden),
        "norm": (hidden,),
    }
    state: dict[str, object] = {"step": torch.tensor(7.0), "extra": {"lr": 1e-4}}
    generator = torch.Generator().manual_seed(0)
    total = layer = 0
    while total < gib * 2**30:
        for name, shape in shapes.items():
            tensor = torch.zeros(shape, dtype=torch.bfloat16)
            if fill:
                tensor.view(torch.int16).random_(generator=generator)
            state[f"layers.{layer}.{name}"] = tensor
            total += tensor.nbytes
        layer += 1
    return state, total


def measured(action: object) -> dict[str, float]:
    """Wall, CPU and extra peak memory of calling `action` in this process."""
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the high-water mark starts anew

    def memory(field: str) -> int:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith(field))
        return int(line.split()[1]) * 1024

    before, resident, began = resource.getrusage(resource.RUSAGE_SELF), memory("VmRSS"), time.perf_counter()
    action()  # type: ignore[operator]
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak_mib": (memory("VmHWM") - resident) / 2**20}


def run_one(candidate: str, operation: str, gib: float, uri: str) -> None:
    """The measured process: prints one JSON line."""
    warnings.filterwarnings("ignore")
    if candidate == "floor":
        nbytes = int(gib * 2**30)
        print(json.dumps({**floor(operation, nbytes), "bytes": nbytes}))
        return
    import torch
    import torch.distributed.checkpoint as dcp

    state, nbytes = llama_state(gib, fill=operation == "save")
    if candidate == "s3dcp":
        from s3dcp import S3StorageReader, S3StorageWriter

        config = None
    else:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        config = S3ClientConfig(force_path_style=True, throughput_target_gbps=100.0)

    def save() -> None:
        dcp.save(state, storage_writer=S3StorageWriter("us-east-1", uri, config), no_dist=True)

    def load() -> None:
        dcp.load(state, storage_reader=S3StorageReader("us-east-1", uri, config), no_dist=True)

    result = measured(save if operation == "save" else load)
    if operation == "load":
        expected, _ = llama_state(gib, fill=True)
        for name, tensor in expected.items():
            loaded = state[name]
            if isinstance(tensor, torch.Tensor) and isinstance(loaded, torch.Tensor):
                # As bytes: random bits hold NaNs, which equal nothing.
                same = torch.equal(tensor.reshape(-1).view(torch.uint8), loaded.reshape(-1).view(torch.uint8))
                if not same:
                    raise SystemExit(f"{candidate}: {name} was loaded wrong")
    print(json.dumps({**result, "bytes": nbytes}))


def floor(operation: str, nbytes: int) -> dict[str, float]:
    """Plain sockets to a child process that swallows or produces the bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    share = nbytes // FLOOR_CONNECTIONS
    memory = memoryview(bytearray(os.urandom(BLOCK) * (WINDOW // BLOCK)))

    def send(connection: socket.socket) -> None:
        for start in range(0, share, BLOCK):
            offset = start % WINDOW
            connection.sendall(memory[offset : offset + min(BLOCK, share - start)])

    def receive(connection: socket.socket) -> None:
        done = 0
        while done < share:
            offset = done % WINDOW
            got = connection.recv_into(memory[offset : offset + min(BLOCK, share - done)])
            if not got:
                raise SystemExit("floor: the connection ended early")
            done += got

    def on_all(work: object, connections: list[socket.socket]) -> None:
        threads = [threading.Thread(target=work, args=(connection,)) for connection in connections]  # type: ignore[arg-type]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    if child == 0:
        accepted = [listener.accept()[0] for _ in range(FLOOR_CONNECTIONS)]
        on_all(receive if operation == "save" else send, accepted)
        os._exit(0)
    connections = [socket.create_connection(listener.getsockname()) for _ in range(FLOOR_CONNECTIONS)]
    result = measured(lambda: on_all(send if operation == "save" else receive, connections))
    os.waitpid(child, 0)
    return result


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    gib = runs[0]["bytes"] / 2**30
    return {
        "gib_per_s": statistics.median(gib / run["wall"] for run in runs),
        "cpu_s_per_gib": statistics.median(run["cpu"] / gib for run in runs),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Save and load beside the peer.")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state (default 1)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each candidate, of which the median counts")
    parser.add_argument("--json", help="also write every run to this file")
    parser.add_argument("--one", nargs=3, metavar=("CANDIDATE", "OPERATION", "URI"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], options.one[1], options.gib, options.one[2])
        return

    from s3dcp.testing import server

    runs: dict[str, list[dict[str, float]]] = {}
    with server(buckets=(BUCKET,)):
        for number in range(options.runs):
            for operation in ("save", "load"):
                for candidate in CANDIDATES:
                    uri = f"s3://{BUCKET}/{candidate}"
                    command = [
                        sys.executable,
                        __file__,
                        "--gib",
                        str(options.gib),
                        "--one",
                        candidate,
                        operation,
                        uri,
                    ]
                    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    runs.setdefault(f"{operation} {candidate}", []).append(json.loads(line))
            print(f"run {number + 1} of {options.runs} done", file=sys.stderr)

    packages = ", ".join(f"{name} {version(name)}" for name in ("s3dcp", "torch", "s3torchconnector"))
    print(f"{packages}, Python {platform.python_version()}, {os.cpu_count()} cores, {options.gib} GiB, "
          f"medians of {options.runs}\n")  # fmt: skip
    print("| operation | candidate | GiB/s | CPU-s per GiB | × floor | extra peak MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for operation in ("save", "load"):
        base = medians(runs[f"{operation} floor"])["cpu_s_per_gib"]
        for candidate in CANDIDATES:
            row = medians(runs[f"{operation} {candidate}"])
            print(f"| {operation} | {candidate} | {row['gib_per_s']:.2f} | {row['cpu_s_per_gib']:.2f} "
                  f"| {row['cpu_s_per_gib'] / base:.1f} | {row['peak_mib']:.0f} |")  # fmt: skip
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"gib": options.gib, "runs": runs}, file, indent=1)


if __name__ == "__main__":
    main()
