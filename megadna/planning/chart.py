"""Picture of ranked layouts: memory and time of each, by part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megadna.planning.hardware import Gpu
from megadna.planning.layouts import Layout

PARTS = 12
"""Layouts shown, best first."""


def draw(layouts: list[Layout], gpu: Gpu, path: Path) -> None:
    """PNG of stacked bars: GB of the fullest GPU on the left, seconds of a step on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = layouts[:PARTS][::-1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 1.6 + 0.42 * len(shown)), sharey=True)
    _bars(left, shown, lambda layout: vars(layout.memory), 1e9)
    left.axvline(gpu.memory_gb, color="black", linestyle="--", linewidth=1)
    left.set(title="memory of the fullest GPU", xlabel=f"GB (dashed: {gpu.name}, {gpu.memory_gb:.0f} GB)")
    _bars(right, shown, lambda layout: {k: v for k, v in vars(layout.time).items() if k != "traffic"}, 1.0)
    right.set(title="one optimizer step", xlabel="seconds")
    left.set_yticks(
        range(len(shown)), [f"{layout.name}{'' if layout.fits else '  (does not fit)'}" for layout in shown]
    )
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.9 / (1 + 0.42 * len(shown))), ncols=5)
    figure.savefig(path, dpi=110, bbox_inches="tight", format="png")
    pyplot.close(figure)


def _bars(axes: Any, layouts: list[Layout], parts_of: Callable[[Layout], dict[str, float]], unit: float) -> None:
    rows = [parts_of(layout) for layout in layouts]
    starts = [0.0] * len(rows)
    for name in rows[0]:
        widths = [row[name] / unit for row in rows]
        if max(widths) > 0.002 * max(sum(row.values()) / unit for row in rows):
            axes.barh(range(len(rows)), widths, left=starts, label=name, height=0.7)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
