"""Tables of results, and BENCHMARKS.md with them: medians of the runs, ratios, and how far the runs spread.

python bench/report.py      # refresh BENCHMARKS.md and the chart from bench/results
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "BENCHMARKS.md"
CHART = ROOT / "docs" / "benchmarks.svg"
Result = dict[str, Any]
Cell = Callable[[Result], str]


def typical(row: Result, value: Callable[[Result], float]) -> float:
    return median(value(run) for run in row["runs"])


def rate(run: Result) -> float:
    return run["bytes"] / 2**30 / run["wall"]  # type: ignore[no-any-return]


def cpu(run: Result) -> float:
    return run["cpu"] / (run["bytes"] / 2**30)  # type: ignore[no-any-return]


def spread(row: Result, value: Callable[[Result], float]) -> str:
    values = [value(run) for run in row["runs"]]
    return f"{min(values):.2f}–{max(values):.2f}"


def wall(run: Result) -> float:
    return run["wall"]  # type: ignore[no-any-return]


def beside(result: Result, row: Result, label: str) -> Result | None:
    """The row of `label` that did the same operation on the same state."""
    same = (other for other in result["rows"] if other["label"] == label and other["operation"] == row["operation"])
    return next(same, None)


def by_bytes(result: Result) -> dict[str, Cell]:
    def floors(row: Result) -> str:
        floor = beside(result, row, "floor")
        return f"{typical(row, cpu) / typical(floor, cpu):.1f}" if floor else "–"

    return {
        "": lambda row: row["operation"],
        "candidate": lambda row: row["label"],
        "state, GiB": lambda row: f"{row['gib']:g}",
        "s": lambda row: f"{typical(row, wall):.2f}",
        "GiB/s": lambda row: f"{typical(row, rate):.2f}",
        "CPU-s per GiB": lambda row: f"{typical(row, cpu):.2f}",
        "lowest–highest": lambda row: spread(row, cpu),
        "× floor": floors,
        "extra peak, MiB": lambda row: f"{typical(row, lambda run: run['peak_mib']):.0f}",
        "connections": lambda row: f"{typical(row, lambda run: run['connections']):.0f}",
    }


def by_tensors(result: Result) -> dict[str, Cell]:
    def each(row: Result) -> float:
        return 1e3 * typical(row, wall) / row["count"]

    def share(row: Result) -> str:
        note = row["label"].removeprefix(row["candidate"])
        idle = beside(result, row, f"nothing{note}") or beside(result, row, "nothing")
        return f"{each(row) - each(idle):.3f}" if idle and row["candidate"] != "nothing" else "–"

    return {
        "": lambda row: row["operation"],
        "candidate": lambda row: row["label"],
        "tensors": lambda row: f"{row['count']:,}",
        "s": lambda row: f"{typical(row, wall):.2f}",
        "ms per tensor": lambda row: f"{each(row):.3f}",
        "of which its own": share,
        "lowest–highest, s": lambda row: spread(row, wall),
        "CPU-s": lambda row: f"{typical(row, lambda run: run['cpu']):.2f}",
        "extra peak, MiB": lambda row: f"{typical(row, lambda run: run['peak_mib']):.0f}",
    }


def by_budget(result: Result) -> dict[str, Cell]:
    def share(run: Result) -> float:
        return 100 * run["refused"] / (run["refused"] + run["requests"])  # type: ignore[no-any-return]

    def next_share(run: Result) -> float:
        return 100 * run["next_refused"] / (run["next_refused"] + run["next_requests"])  # type: ignore[no-any-return]

    def next_save(row: Result, value: Callable[[Result], float], shown: str) -> str:
        return f"{typical(row, value):{shown}}" if all("next_wall" in run for run in row["runs"]) else "–"

    def unless_failed(cell: Cell, otherwise: str = "–") -> Cell:
        return lambda row: otherwise if any("failed" in run for run in row["runs"]) else cell(row)

    def failures(row: Result) -> str:
        failed = [run["failed"] for run in row["runs"] if "failed" in run]
        return f"{len(failed)} of {len(row['runs'])} failed: {failed[0]}" if failed else spread(row, wall)

    return {
        "candidate": lambda row: row["label"],
        "s": unless_failed(lambda row: f"{typical(row, wall):.1f}"),
        "lowest–highest": failures,
        "ideal, s": unless_failed(lambda row: f"{typical(row, lambda run: run['ideal']):.1f}"),
        "requests": lambda row: f"{typical(row, lambda run: run['requests']):.0f}",
        "refused": lambda row: f"{typical(row, lambda run: run['refused']):.0f}",
        "refused, %": lambda row: f"{typical(row, share):.0f}",
        "next save, s": lambda row: next_save(row, lambda run: run["next_wall"], ".1f"),
        "refused in it, %": lambda row: next_save(row, next_share, ".0f"),
        "CPU-s": unless_failed(lambda row: f"{typical(row, lambda run: run['cpu']):.1f}"),
    }


def by_steps(result: Result) -> dict[str, Cell]:
    def seconds(name: str) -> Cell:
        return lambda row: f"{typical(row, lambda run: run[name]):.2f}"

    return {
        "candidate": lambda row: row["label"],
        "state, GiB": lambda row: f"{row['gib']:g}",
        "first call, s": seconds("first_stall"),
        "call, s": seconds("stall"),
        "save, s": seconds("seconds"),
        "loop slower after the call, %": lambda row: f"{typical(row, lambda run: run['slowdown']):.0f}",
        "lock held, ms": lambda row: f"{1e3 * typical(row, lambda run: run['locked']):.0f}",
        "lost in all, s": seconds("lost"),
        "lowest–highest, s": lambda row: spread(row, lambda run: run["lost"]),
        "extra peak, MiB": lambda row: f"{typical(row, lambda run: run['peak_mib']):.0f}",
    }


def by_changes(result: Result) -> dict[str, Cell]:
    def seconds(run: Result) -> float:
        return run["cpu"]  # type: ignore[no-any-return]

    first = beside(result, result["rows"][0], "incremental, first")
    assert first is not None
    return {
        "save": lambda row: row["label"],
        "state, GiB": lambda row: f"{row['gib']:g}",
        "sent, GiB": lambda row: f"{typical(row, lambda run: run['bytes']) / 2**30:.3f}",
        "CPU-s": lambda row: f"{typical(row, seconds):.2f}",
        "lowest–highest": lambda row: spread(row, seconds),
        "× first incremental": lambda row: f"{typical(row, seconds) / typical(first, seconds):.2f}",
        "s": lambda row: f"{typical(row, wall):.2f}",
    }


def by_milliseconds(result: Result) -> dict[str, Cell]:
    return {
        "import": lambda row: f"`{row['module']}`",
        "after": lambda row: f"`{row['after']}`" if row["after"] != "sys" else "nothing",
        "ms": lambda row: f"{1e3 * typical(row, wall):.0f}",
        "lowest–highest, s": lambda row: spread(row, wall),
    }


def table(result: Result) -> str:
    """The result of one case as a Markdown table."""
    first = result["rows"][0]
    kinds = {"module": by_milliseconds, "count": by_tensors, "part_mib": by_budget}
    by = next((kind for name, kind in kinds.items() if name in first), by_bytes)
    columns = {"train": by_steps, "reuse": by_changes}.get(first["operation"], by)(result)
    order = {"save": 0, "load": 1}
    rows = sorted(result["rows"], key=lambda row: order.get(row["operation"], 0))
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(row) for cell in columns.values()] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for what, reason in result["lacking"].items():
        text += f"\n\nNot in it, {what}: {reason}."
    runs = len(first["runs"])
    return f"{text}\n\n{f'Medians of {runs} runs' if runs > 1 else 'One run'}, candidates in turn."


def described(result: Result) -> str:
    """Machine and versions of a result."""
    where, what = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in what.items())
    return (
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB, Linux {where['kernel']}. {packages}. "
        f"`{result['command']}`."
    )


def _unpublished(name: str) -> str:
    return f'No result is published here yet; `make bench BENCH="{name}"` measures it.'


def publish(folder: Path) -> None:
    """Puts the tables of `folder` between their marks in BENCHMARKS.md, and draws the chart."""
    from chart import draw

    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def filled(match: re.Match[str]) -> str:
        result = results.get(match["name"])
        text = f"{table(result)}\n\n{described(result)}" if result else _unpublished(match["name"])
        return f"{match['open']}\n{text}\n{match['close']}"

    marks = re.compile(r"(?P<open><!-- results: (?P<name>\w+) -->)\n.*?(?P<close><!-- end -->)", re.DOTALL)
    PAGE.write_text(marks.sub(filled, PAGE.read_text()))
    draw(results, CHART)


if __name__ == "__main__":
    publish(ROOT / "bench" / "results")
