"""Pictures and pages of dependency maps; and a map that was written, read for the page of its region.

In:  maps [L, L] of regions, and the runs found in them.
Out: PNG for papers; pages whose own script draws the map and shows i, j and the value under the pointer.
"""

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from megadna.downstream.html_page import json_element, page, table
from megadna.downstream.pictures import MISSING, draw_map, first_x, map_limit, png, show_positions, styled
from megadna.downstream.region_files import Region, files_of
from megadna.errors import UserError, require
from megadna.progress import tracked
from megadna.reading import read_text

if TYPE_CHECKING:
    from megadna.downstream.dependencies import Dependencies

# Shapes: L bases of a region.

_SHADES = 128
_NO_VALUE = 65535


@dataclass(frozen=True)
class Map:
    """A dependency map to draw, and what its caption says."""

    values_LL: np.ndarray
    caption: str
    runs: list[tuple[int, int, int, int]]
    """i_start, i_end, j_start, j_end of each, as indices of bases."""


def read_map(path: Path, regions: list[Region]) -> Map:
    """The map of `megadna dependencies` and its sidecar; UserError if it is not of the one region."""
    from megadna.downstream.dependencies import sidecar

    require(
        len(regions) == 1, f"--map {path}: the map of one region, and there are {len(regions)}; give one with --bed"
    )
    note = sidecar(path)
    require(note.is_file(), f"{note}: no such file; --map is an .npy file of megadna dependencies, with its .json")
    try:
        facts = json.loads(read_text(note))
        map_LL = np.load(path, allow_pickle=False)
        bases, caption = facts["bases"], map_caption(facts["model"], facts["epsilon"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a map of megadna dependencies with its .json ({error})") from error
    size = len(regions[0])
    if bases != regions[0].bases or map_LL.shape != (size, size):
        raise UserError(f"--map {path}: is of another region than {regions[0].title}, or of another strand or genome")
    return Map(map_LL, caption, [])


def map_caption(model: str, epsilon: float) -> str:
    """What a map shows."""
    return (
        f"{model}: largest change of log2 odds at the affected base j when base i is mutated, nothing hidden "
        f"(epsilon {epsilon:g}; times 0.6931 for nats)"
    )


def write_maps(work: "Dependencies", maps: list[np.ndarray], summary: pd.DataFrame | None, folder: Path) -> None:
    """Write the pictures and pages of `dependencies`."""
    options = work.options
    caption = map_caption(options.model, options.epsilon)
    for output in (path for path in options.output if path.suffix in (".png", ".html")):
        files = files_of(folder / output.name, work.regions)
        for number, file in enumerate(tracked(files, f"drawing {output.suffix}", len(files), "regions")):
            region, map_LL = work.regions[number], maps[number]
            if output.suffix == ".png":
                file.write_bytes(map_picture(region, map_LL, options.model, options.epsilon))
                continue
            runs, body = [], []
            if summary is not None:
                rows = summary[summary["region"] == number].drop(columns="region")
                runs, lines = _indices(region, rows), rows.to_numpy().tolist()
                shown = table(list(rows), lines) if lines else "<p>None is stronger than in shuffled maps.</p>"
                body = ["<h2>Stems and repeats</h2>", shown]
            body = [*map_parts(region, Map(map_LL, caption, runs)), *body]
            file.write_text(
                page(region.title, "Dependency map: point at a cell to read its numbers.", body), encoding="utf-8"
            )


def _indices(region: Region, rows: pd.DataFrame) -> list[tuple[int, int, int, int]]:
    """Runs as indices of the region's bases, from positions on the contig."""

    def arm(start: int, end: int) -> tuple[int, int]:
        first, last = sorted((region.index(start), region.index(end - 1)))
        return first, last + 1

    columns = rows[["i_start", "i_end", "j_start", "j_end"]].itertuples(index=False)
    return [(*arm(row.i_start, row.i_end), *arm(row.j_start, row.j_end)) for row in columns]


def map_picture(region: Region, map_LL: np.ndarray, model: str, epsilon: float) -> bytes:
    """A PNG of a dependency map with axes in positions of the contig."""
    side = min(12.0, max(5.0, 0.05 * len(region)))
    with styled():
        figure = Figure(figsize=(side + 1.4, side + 0.8))
        axes = figure.subplots()
        axes.set_box_aspect(1)
        image = draw_map(axes, map_LL, first_position=first_x(region.start, region.end, region.strand))
        label = f"max |\N{GREEK CAPITAL LETTER DELTA} log2 odds|  (\N{GREEK SMALL LETTER EPSILON} = {epsilon:g})"
        figure.colorbar(image, ax=axes, label=label, extend="max", shrink=0.8, pad=0.02, aspect=30)
        axes.set_title(region.title, weight="bold", pad=22)
        highest = float(np.nanmax(map_LL, initial=0.0))
        text = (
            f"{model}; largest value {highest:.3g}, darkest colour from {map_limit(map_LL):.3g} on (99.5th percentile)"
        )
        axes.text(0, 1.012, text, transform=axes.transAxes, fontsize=8, color="#444444")
        axes.set_xlabel(f"affected base j: position on {region.contig} (0-based)")
        axes.set_ylabel("mutated base i")
        for axis in (axes.xaxis, axes.yaxis):
            show_positions(axis, max(4, int(side)))
        return png(figure)


def map_parts(region: Region, map_: Map) -> list[str]:
    """The canvas of a map, its controls and its data."""
    values_LL = map_.values_LL
    highest = float(np.nanmax(values_LL, initial=0.0)) or 1.0
    top = map_limit(values_LL)
    with np.errstate(invalid="ignore"):
        scaled = np.where(np.isfinite(values_LL), np.rint(values_LL / highest * 65534), _NO_VALUE).astype("<u2")
    shades = matplotlib.colormaps["magma_r"](np.linspace(0, 1, _SHADES))[:, :3]
    stored = {
        "values": base64.b64encode(scaled.tobytes()).decode(),
        "highest": highest,
        "colours": np.rint(255 * shades).astype(int).tolist(),
        "missing": [round(255 * part) for part in to_rgb(MISSING)],
        "bases": region.bases,
        "first": region.position(0),
        "step": region.step,
        "runs": map_.runs,
    }
    runs = "" if map_.runs else ' disabled="disabled"'
    return [
        f'<p class="facts">{html.escape(map_.caption)}. Rows: mutated, columns: affected. '
        f"Largest value: {highest:.4g}.</p>",
        '<p class="facts">Drag a square to look closer; double-click to see all.</p>',
        '<div class="controls"><label>colours up to <span id="shown"></span> log2: '
        f'<input type="range" id="top" min="{highest / 100:.6g}" max="{highest:.6g}" step="any" value="{top:.6g}"/>'
        "</label>"
        f'<label><input type="checkbox" id="runs" checked="checked"{runs}/> outline stems and repeats</label></div>',
        '<canvas id="map" width="800" height="800"></canvas>',
        json_element("map-data", stored),
    ]
