"""Runs benchmark cases: candidates take turns, each measurement in a process of its own, and prints their tables.

    make bench                                          # every case
    make bench BENCH="large --gib 0.5 --runs 3"         # one case, about a minute
    make bench BENCH="large --only s3dcp,floor"

Saves go to a server that drops the bytes, loads come from one that keeps them: neither is what is measured. Every
result is written as JSON; with --publish to bench/results, and BENCHMARKS.md and its chart are drawn anew from there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import report
from candidates import SAVED_BY, VERSIONS, lacking
from cases import ALL, CASES, FLOOR, US, Case, Options, Row
from s3dcp import testing
from servers import ROOT, TRANSFER, Server

WORKER = Path(__file__).with_name("worker.py")
PUBLISHED = ROOT / "bench" / "results"
TIMEOUT_SECONDS = 1200
# What an idle partition saves up of its budget, in the server's model.
SAVED_UP_SECONDS = 1.0


def machine() -> dict[str, Any]:
    """The machine a result was measured on."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**20, 1),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """What was measured; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name == "s3dcp":
                import s3dcp

                found[name] = s3dcp.__version__
    return found


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.readlines()


class Runner:
    """One case: its servers and its results so far."""

    def __init__(self, name: str, case: Case, servers: dict[str, Server]) -> None:
        self.name, self.servers = name, servers
        self.connections: dict[str, int] = {}
        self.prepared: set[str] = set()
        self.saves = 0

    def measure(self, row: Row) -> dict[str, Any]:
        """One run of `row`."""
        if row.operation == "import":
            return run_worker({**row.spec, "candidate": row.candidate}, {}, 1)
        if row.budget is not None:
            return self._throttled(row, *row.budget)
        mode = "discard" if row.operation in ("save", "train") or row.candidate == "s3dcp engine" else "store"
        server, spec = self.servers[mode], self._spec(row)
        if row.before is not None:
            self._prepare(row, spec)
        server.seen()
        before = server.cpu_seconds()
        if row.candidate == "s3dcp engine":
            result = run_engine(row.operation, spec, server)
        else:
            result = run_worker(spec, server.environment, row.ranks)
        seen = server.seen()
        result |= {"server_cpu": server.cpu_seconds() - before, "connections": seen["connections"]}
        result["requests"] = sum(seen["requests"].values())
        if row.candidate == US:
            self.connections[row.operation] = seen["connections"]
        return result

    def _throttled(self, row: Row, writes_per_second: float, partitions: int) -> dict[str, Any]:
        """A save, and of ours another to its path, on a server with fresh partitions, none of which splits."""
        spec = self._spec(row)
        folder = spec["uri"].removeprefix("s3://")
        first_keys = [f"{folder}/{rank:x}" for rank in range(1, partitions)]
        model = testing.Partitions(writes_per_second, 1e6, split_after=1e6, first_keys=first_keys)
        with testing.server(["bench"], partitions=model, environment=False) as server:
            with testing.environment(server):
                environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            try:
                result = run_worker(spec, environment, row.ranks)
            except WorkerFailed as failure:
                result = {"failed": failure.reason}
            seen = server.partitions()
            if row.candidate == US and "failed" not in result:
                result["next_wall"] = run_worker(spec, environment, row.ranks)["wall"]
                after = server.partitions()
                for count, name in (("admitted", "next_requests"), ("refused", "next_refused")):
                    result[name] = sum(getattr(partition, count) for partition in after)
                    result[name] -= sum(getattr(partition, count) for partition in seen)
        busiest = max(partition.admitted for partition in seen)
        return {
            **result,
            "requests": sum(partition.admitted for partition in seen),
            "refused": sum(partition.refused for partition in seen),
            "ideal": max(busiest / writes_per_second - SAVED_UP_SECONDS, 0.0),
        }

    def _spec(self, row: Row) -> dict[str, Any]:
        spec = {**row.spec, "candidate": row.candidate, "operation": row.operation}
        if row.candidate == FLOOR:
            # As many as we had in this very run.
            spec.setdefault("connections", self.connections.get(row.operation, 32))
        if row.operation in ("save", "train"):
            self.saves += 1
            spec["uri"] = f"s3://bench/{self.name}/{row.candidate.replace(' ', '-')}/{self.saves}"
        else:
            what = {name: value for name, value in {**row.spec, **(row.before or {})}.items() if value is not None}
            what.pop("fast_planner", None)
            kind = "-".join(f"{name}-{value}" for name, value in sorted(what.items()))
            spec["uri"] = f"s3://bench/{self.name}/{row.candidate.replace(' ', '-')}/{kind}"
        if row.candidate == "s3dcp engine":
            spec["uri"] = f"s3://bench/{self.name}/engine"
        return spec

    def _prepare(self, row: Row, load: dict[str, Any]) -> None:
        """The save that a load needs, unmeasured, once."""
        if load["uri"] in self.prepared:
            return
        changes = dict(row.before or {})
        ranks = changes.pop("ranks", 1)
        candidate = SAVED_BY.get(row.candidate, row.candidate)
        run_worker(
            {**load, **changes, "candidate": candidate, "operation": "save"}, self.servers["store"].environment, ranks
        )
        self.prepared.add(load["uri"])


class WorkerFailed(SystemExit):
    """A measured process ended with an error."""

    def __init__(self, spec: dict[str, Any], errors: str) -> None:
        super().__init__(f"{spec['candidate']} failed: {json.dumps(spec)}\n{errors[-4000:]}")
        self.reason = errors.strip().splitlines()[-1].rpartition("Exception: ")[2]


def run_worker(spec: dict[str, Any], environment: dict[str, str], ranks: int) -> dict[str, Any]:
    """Runs the measured process (or one for each rank): the longest wall time, the CPU time and the bytes of all."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment = {**inherited, **environment}
    if ranks > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        environment |= group
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(spec)],
            env={**environment, "RANK": str(rank)} if ranks > 1 else environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    results = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
            if process.returncode:
                raise WorkerFailed(spec, errors)
            results.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    total = {
        "wall": max(result["wall"] for result in results),
        "cpu": sum(result["cpu"] for result in results),
        "peak_mib": max(result["peak_mib"] for result in results),
    }
    return {**results[0], **total, "bytes": sum(result.get("bytes", 0) for result in results)}


def run_engine(operation: str, spec: dict[str, Any], server: Server) -> dict[str, Any]:
    """The engine's own example program: it moves bytes, without torch and without Python."""
    if not TRANSFER.exists():
        raise SystemExit(f"{TRANSFER} is missing: cargo build --release -p s3dcp-s3 --example transfer")
    bucket, key = spec["uri"].removeprefix("s3://").split("/", 1)
    command = [str(TRANSFER), {"save": "put", "load": "get"}[operation], bucket, key, str(spec["gib"])]
    command.append(str(spec["connections"]))
    environment = {**os.environ, **server.environment}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    words = output.split()  # "put: 2.91 GiB/s, 0.190 CPU-s per GiB"
    rate, cpu = float(words[1]), float(words[3])
    return {"wall": spec["gib"] / rate, "cpu": cpu * spec["gib"], "peak_mib": 0.0, "bytes": int(spec["gib"] * 2**30)}


def measured(name: str, case: Case, options: Options, runs: int) -> dict[str, Any]:
    """Every row of a case, `runs` times in turn."""
    lacks, rows = {}, []
    for row in case.rows(options):
        if reason := lacking(name, row.candidate, row.operation):
            lacks[f"{row.operation} by {row.candidate}"] = reason
        else:
            rows.append(row)
    results: list[dict[str, Any]] = [
        {"candidate": row.candidate, "label": row.label, "operation": row.operation, "ranks": row.ranks, **row.spec}
        | {"runs": []}
        for row in rows
    ]
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(Server(mode, **case.server)) for mode in ("discard", "store")}
        runner = Runner(name, case, servers)
        for number in range(runs):
            began = time.monotonic()
            for row, result in zip(rows, results, strict=True):
                result["runs"].append(runner.measure(row))
            print(f"{name}: run {number + 1} of {runs}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {"case": name, "title": case.title, "server": case.server, "lacking": lacks, "rows": results}


def options_of(arguments: argparse.Namespace) -> Options:
    names = tuple(arguments.only.split(",")) if arguments.only else ALL
    unknown = set(names) - set(ALL)
    if unknown:
        raise SystemExit(f"--only: no such candidate: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    return Options(arguments.gib, arguments.slow_gib, arguments.count, names)


def results_of(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    options = options_of(arguments)
    for name in arguments.cases or CASES:
        case = CASES[name]
        result = measured(name, case, options, min(arguments.runs, case.max_runs or arguments.runs))
        yield {
            "machine": machine(),
            "versions": versions(),
            "command": f'make bench BENCH="{" ".join(word for word in sys.argv[1:] if word != "--publish")}"',
        } | result


def main() -> None:
    parser = argparse.ArgumentParser(description="Saves and loads beside the peers.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--gib", type=float, default=2.0, help="size of the large state (default %(default)s)")
    parser.add_argument(
        "--slow-gib", type=float, default=0.5, help="the same for slow candidates (default %(default)s)"
    )
    parser.add_argument("--count", type=int, default=100_000, help="tensors of the small ones (default %(default)s)")
    parser.add_argument(
        "--runs", type=int, default=5, help="runs of each row, some cases do fewer (default %(default)s)"
    )
    parser.add_argument("--only", help=f"candidates, separated by commas, of {', '.join(ALL)}")
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".cache" / "bench-results", help="folder for the JSON results"
    )
    parser.add_argument("--publish", action="store_true", help="write to bench/results and refresh BENCHMARKS.md")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in CASES:
            parser.error(f"no such case: {name}; there are {', '.join(CASES)}")
    folder = PUBLISHED if arguments.publish else arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    for result in results_of(arguments):
        (folder / f"{result['case']}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n## {result['title']}\n\n{report.table(result)}\n", flush=True)
    if arguments.publish:
        report.publish(folder)


if __name__ == "__main__":
    main()
