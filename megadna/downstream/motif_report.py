"""Logos of motifs, and the page that shows them beside their numbers; the page needs no other file.

In:  shares [W, 4] of the bases; the table of motifs.py.
Out: PNG bytes; an HTML file.
"""

from base64 import b64encode
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from megadna.downstream.pictures import draw_logo, information_heights, png, show_positions, styled
from megadna.files import write_text
from megadna.log import counted

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:left}img{height:90px}"
)


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


def write_page(path: Path, table: pd.DataFrame, pictures: dict[str, bytes]) -> None:
    """One HTML file with a row for each motif, its logo inside."""
    columns = [column for column in table.columns if column != "motif"]
    head = "".join(f"<th>{escape(name)}</th>" for name in ["motif", "logo", *columns])
    rows = []
    for _, row in table.iterrows():
        name = str(row["motif"])
        image = f'<img alt="{escape(name)}" src="data:image/png;base64,{b64encode(pictures[name]).decode()}">'
        cells = [escape(name), image, *(escape(_text(row[column])) for column in columns)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = f"<table><tr>{head}</tr>\n{chr(10).join(rows)}\n</table>" if rows else "<p>No motif.</p>"
    write_text(
        path,
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Motifs</title><style>{_STYLE}</style>'
        f"</head><body><h1>Motifs</h1>\n{body}\n</body></html>\n",
    )


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
