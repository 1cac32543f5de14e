"""The chart of BENCHMARKS.md: four questions, one bar for each candidate, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

INK = "#7d8590"  # between GitHub's light and dark page colours, legible on both
OURS, OTHERS, FLOOR = "#2f81f7", "#a3a9b1", "#3fb950"
Result = dict[str, Any]


def draw(results: dict[str, Result], path: Path) -> None:
    """Draws what there are results for; nothing where there are none."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "s3dcp", "font.size": 9, "font.family": "sans-serif"}
    )
    import matplotlib.pyplot as plt

    from report import cpu, rate, typical, wall

    def milliseconds(run: Result) -> float:
        return 1e3 * wall(run)

    panels: list[tuple[str, str, str, Callable[[Result], float]]] = [
        ("large", "save", "Large tensors, save: CPU-s per GiB", cpu),
        ("large", "load", "Large tensors, load: CPU-s per GiB", cpu),
        ("tiny", "save", "1 KiB tensors, save: ms per tensor", milliseconds),
        ("tiny", "load", "1 KiB tensors, load: ms per tensor", milliseconds),
        ("emulated", "save", "20 ms, 90 MB/s per connection, save: GiB/s", rate),
        ("emulated", "load", "20 ms, 90 MB/s per connection, load: GiB/s", rate),
    ]
    panels = [panel for panel in panels if panel[0] in results]
    if not panels:
        return
    figure, places = plt.subplots((len(panels) + 1) // 2, 2, figsize=(10, 1.1 + 0.95 * len(panels)), squeeze=False)
    for place, (case, operation, title, value) in zip(places.flat, panels, strict=False):
        rows = [row for row in results[case]["rows"] if row["operation"] == operation]
        figures = [typical(row, value) / row.get("count", 1) for row in rows]
        colours = [
            OURS if row["candidate"] == "s3dcp" else FLOOR if row["candidate"] == "floor" else OTHERS for row in rows
        ]
        names = ["torch alone" if row["candidate"] == "nothing" else row["label"] for row in rows]
        bars = place.barh(range(len(rows)), figures, color=colours)
        place.bar_label(bars, [f"{figure:.3g}" for figure in figures], color=INK, padding=3)
        place.set_yticks(range(len(rows)), names, color=INK)
        place.set_title(title, color=INK, loc="left", fontsize=9)
        place.set_xticks([])
        place.invert_yaxis()
        place.margins(x=0.15)
        place.patch.set_alpha(0)
        for side in place.spines.values():
            side.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
