"""Sequence logos: sequences with letters as high as their importance; motifs, and the page that shows them.

In:  rows of bases as attribute.py makes them; shares [W, 4] of the bases of a motif; the table of motifs.py.
Out: PNG bytes; an HTML file that needs no other.
"""

import html
from base64 import b64encode
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megadna.downstream.html_page import Markup, page, table
from megadna.downstream.pictures import draw_logo, heights, information_heights, png, show_positions, styled
from megadna.downstream.region_files import Region
from megadna.files import write_text
from megadna.log import counted

# Shapes: L bases of a sequence, W positions of a motif, 4 the bases A C G T.

_LINE = 100  # bases of a line, at most; the lines of a sequence share its bases evenly
_BASE, _LEFT, _TOP, _LOGO = 0.11, 0.9, 0.5, 1.25  # inches: width of a base; margins; height of a logo with its axis


def draw_sequences(table: pd.DataFrame, columns: dict[str, str], title: str, unit: str) -> bytes:
    """A PNG: for every sequence, and every 100 bases of it at most, one logo for each method, at the position of each
    base on its contig. All logos of a method have one scale; unit: that of all methods but attention, which has none.
    """
    lines = [line for _, rows in table.groupby("region", sort=True) for line in _lines(rows)]
    limits = {method: _limits(table[column].to_numpy(float)) for method, column in columns.items()}
    width = _LEFT + _BASE * max(len(part) for *_, part in lines)
    height = _TOP + _LOGO * len(lines) * len(columns)
    with styled():
        figure = Figure(figsize=(width, height))
        figure.set_layout_engine("none")
        figure.text(0.1 / width, 1 - 0.15 / height, title, fontsize=9, color="#444444", va="top")
        top = height - _TOP
        for name, rows, part in lines:
            for number, (method, column) in enumerate(columns.items()):
                box = (_LEFT / width, (top - 0.95) / height, _BASE * len(part) / width, 0.8 / height)
                axes = figure.add_axes(box)
                _draw_line(axes, rows.iloc[part.start : part.stop], column)
                axes.set_ylim(*limits[method])
                axes.set_ylabel(f"{method}\n({'no unit' if method == 'attention' else unit})", fontsize=8)
                if not number:
                    axes.set_title(name, fontsize=9, weight="bold", loc="left", pad=3)
                top -= _LOGO
        figure.align_ylabels()
        return png(figure, dpi=150)


def _lines(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, range]]:
    """(title, rows of the sequence, the bases of the line) of each line of a sequence."""
    first, low, high = rows.iloc[0], int(rows["position"].min()), int(rows["position"].max()) + 1
    title = Region(first["contig"], low, high, first["strand"], first["name"], "").title
    edges = np.linspace(0, len(rows), 1 + -(-len(rows) // _LINE)).round().astype(int).tolist()
    for start, end in pairwise(edges):
        yield title if not start else "", rows, range(start, end)


def _limits(importance_N: np.ndarray) -> tuple[float, float]:
    """Lower and upper end of the scale of a method."""
    bottom, top = (float(edge(importance_N, initial=0.0)) for edge in (np.nanmin, np.nanmax))
    margin = 0.06 * (top - bottom) or 1.0
    return bottom - margin * (bottom < 0), top + margin


def _draw_line(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """One logo."""
    first = (-1 if rows["strand"].iloc[0] == "-" else 1) * int(rows["position"].iloc[0])
    draw_logo(axes, heights("".join(rows["base"]), rows[column].to_numpy(float)), first_position=first)
    show_positions(axes.xaxis, max(1, len(rows) // 8))
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=7)


def draw_motif(name: str, p_W4: np.ndarray, instances: int) -> bytes:
    """A logo whose stacks are as high as their information against 0.25 for each base, in bits; from 0 to 2. Positions
    of the window count from 1."""
    with styled():
        figure = Figure(figsize=(0.8 + 0.26 * len(p_W4), 1.7))
        axes = figure.subplots()
        draw_logo(axes, information_heights(p_W4), first_position=1)
        axes.set_title(f"{name}: {counted(instances, 'instance')}", fontsize=9, loc="left")
        show_positions(axes.xaxis)
        axes.set_ylim(0, 2)
        axes.set_yticks([0, 1, 2])
        axes.set_ylabel("bits")
        axes.tick_params(labelsize=8)
        return png(figure, dpi=150)


def write_page(path: Path, motifs: pd.DataFrame, pictures: dict[str, bytes]) -> None:
    """One HTML file with a row for each motif, its logo inside."""
    images = [
        Markup(f'<img alt="{html.escape(name)}" height="90" src="data:image/png;base64,{b64encode(png).decode()}"/>')
        for name, png in pictures.items()
    ]
    shown = motifs.copy()
    shown.insert(1, "logo", images)
    rows = list(shown.itertuples(index=False, name=None))
    write_text(path, page("Motifs", "", [table(list(shown), rows) if rows else "<p>No motif.</p>"]))
