"""Sequences whose letters are as high as their importance.

In:  rows of bases as attribute.py makes them.
Out: the bytes of a PNG picture.
"""

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megadna.downstream.attribution_outputs import heights
from megadna.downstream.pictures import draw_logo, png, show_positions, styled

# Shapes: L bases of a sequence, 4 the bases A C G T.

_LINE = 100  # bases of a line


def draw_sequences(table: pd.DataFrame, columns: dict[str, str]) -> bytes:
    """A PNG: for every sequence, and every 100 bases of it, one logo for each method, at the position of each base on
    its contig."""
    lines = [line for _, rows in table.groupby("region", sort=True) for line in _lines(rows)]
    longest = max(min(_LINE, len(rows)) for *_, rows in lines)
    count = len(lines) * len(columns)
    with styled():
        figure = Figure(figsize=(1.6 + 0.11 * longest, 0.3 + 1.25 * count))
        panels = iter(figure.subplots(count, 1, squeeze=False)[:, 0])
        for title, start, end, rows in lines:
            for number, (method, column) in enumerate(columns.items()):
                axes = next(panels)
                _draw_line(axes, rows, column, range(start, end), longest)
                axes.set_ylabel(method, fontsize=8)
                axes.set_title("" if number else title, fontsize=9, parse_math=False)
        figure.align_ylabels()
        return png(figure, dpi=150)


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, int, int, pd.DataFrame]]:
    """(title, first base, end, rows of the sequence) of each line of a sequence."""
    first, low, high = rows.iloc[0], int(rows["position"].min()), int(rows["position"].max()) + 1
    strand = "" if first["strand"] == "." else f" {first['strand']}"
    title = f"{first['contig']}:{low:,}-{high:,}{strand} {first['name']}".strip()
    for start, end in pairwise([*range(0, len(rows), _LINE), len(rows)]):
        yield title if not start else "", start, end, rows


def _draw_line(axes: Axes, rows: pd.DataFrame, column: str, part: range, longest: int) -> None:
    """One logo, on the scale of its whole sequence."""
    whole_L4 = heights("".join(rows["base"]), rows[column].to_numpy(float))
    sign = -1 if rows["strand"].iloc[0] == "-" else 1
    first = sign * int(rows["position"].iloc[part.start])
    draw_logo(axes, whole_L4[part.start : part.stop], first_position=first)
    axes.set_xlim(first - 0.5, first + longest - 0.5)
    top, bottom = whole_L4.sum(axis=1).max(initial=0), whole_L4.sum(axis=1).min(initial=0)
    margin = 0.06 * ((top - bottom) or 1.0)
    axes.set_ylim(bottom - margin * (bottom < 0), top + margin)
    show_positions(axes.xaxis)
    axes.tick_params(labelsize=7)
