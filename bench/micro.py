"""What the pure parts cost: Criterion's time for each, and instructions where Valgrind is installed.

    make bench-micro

Instructions are the difference between a long and a short run of the same program under `valgrind --tool=callgrind`,
divided by the difference in repetitions: they hardly move from run to run, whatever else the machine does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

from servers import TARGET

BINARY = TARGET / "s3dcp-bench-micro"
RESULTS = TARGET / "micro"
SHORT, LONG = 2, 22


def times() -> dict[str, float]:
    """Nanoseconds of each case, the median that Criterion left in its folder."""
    found = {}
    for path in RESULTS.glob("*/new/estimates.json"):
        name = json.loads(path.with_name("benchmark.json").read_text())["full_id"]
        found[name] = json.loads(path.read_text())["median"]["point_estimate"]
    return found


def instructions(name: str) -> float:
    """Instructions of one repetition of a case."""

    def collected(repetitions: int) -> int:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(BINARY), "count", name]
        done = subprocess.run([*command, str(repetitions)], check=True, capture_output=True, text=True)
        counted = re.search(r"Collected : (\d+)", done.stderr)
        if not counted:
            raise SystemExit(f"valgrind did not say what it counted:\n{done.stderr}")
        return int(counted[1])

    return (collected(LONG) - collected(SHORT)) / (LONG - SHORT)


def readable(nanoseconds: float) -> str:
    for unit, size in (("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.3g} ns"


def main() -> None:
    environment = {**os.environ, "CRITERION_HOME": str(RESULTS)}
    subprocess.run([str(BINARY), "time"], check=True, stdout=sys.stderr, env=environment)
    names = subprocess.run([str(BINARY), "names"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    valgrind = shutil.which("valgrind") is not None
    print("| what | time | instructions |")
    print("| --- | --- | --- |")
    measured = times()
    for name in names:
        case, small = name.removesuffix("*"), name.endswith("*")
        count = f"{instructions(case):,.0f}" if valgrind and small else "–"
        print(f"| {case} | {readable(measured[case])} | {count} |", flush=True)
    if not valgrind:
        print("valgrind is not installed: instructions were not counted", file=sys.stderr)


if __name__ == "__main__":
    main()
