"""Pictures of bases: sequence logos, heat maps of substitutions, dependency maps; as PNG or as SVG for a page.

In:  arrays with columns A, C, G, T (logo, heat map) or [L, L] (map), in the order in which the bases are read.
Out: matplotlib axes; PNG bytes; SVG text that loads nothing.

A letter is scaled outlines of a glyph, and all letters of one base are one compound path: 200 positions take 0.01 s
(logomaker 0.8 draws a patch a letter: 4 s). x is the position of a base; of the minus strand, read from its high end,
it is the negative of the position, and the axis shows the position.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from megadna.alphabet import BASES
from megadna.train.plots import GREY

# Shapes: L bases, 4 the bases A C G T, V vertices of a glyph, N letters of one base.

BASE_COLOURS = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}
"""Green, blue, orange and red as in most logos, in the tones of Okabe & Ito's palette."""
MISSING = "#d9dbe0"
"""Where there is no value."""
_LETTER_WIDTH = 0.94
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 160,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "megadna",
    "text.parse_math": False,  # names have $
}
"""Of matplotlib, for every picture."""


def information_heights(p_L4: np.ndarray) -> np.ndarray:
    """Heights [L, 4] of a logo, bits: p times the information of the position against 0.25 for each base, sum over
    bases of p log2(p / 0.25) (Schneider & Stephens 1990, without their small-sample correction). NaN stays NaN."""
    return p_L4 * (2.0 - entropy_bits(p_L4))[:, None]


def entropy_bits(p_L4: np.ndarray) -> np.ndarray:
    """Entropy [L] of each position, bits: -sum p log2 p; 0 to 2; NaN where p is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms_L4 = np.where(p_L4 == 0, 0.0, p_L4 * np.log2(p_L4))
    return -terms_L4.sum(axis=1)


def probabilities(llr_L4: np.ndarray) -> np.ndarray:
    """p [L, 4] of the bases from ln p(base) - ln p(base that is there)."""
    p_L4 = np.exp(llr_L4.astype(np.float64) - llr_L4.max(axis=1, keepdims=True))
    return p_L4 / p_L4.sum(axis=1, keepdims=True)


def importance(effects_L4: np.ndarray, reference: str) -> np.ndarray:
    """Heights [L, 4] of a logo of a head's effects: at the base that is there, minus the mean effect over the four
    bases, so that a base whose substitutions lower the output stands up (tangermeme's saturation mutagenesis)."""
    return heights(reference, -effects_L4.mean(axis=1))


def heights(bases: str, values_L: np.ndarray) -> np.ndarray:
    """Heights [L, 4] of a logo: the value in the column of each base; 0 where it is unknown."""
    known_L4 = (np.array(list(bases))[:, None] == np.array(list(BASES))) & ~np.isnan(values_L)[:, None]
    return np.where(known_L4, values_L[:, None], 0.0)


def draw_logo(axes: Axes, heights_L4: np.ndarray, *, first_position: int = 0) -> None:
    """Draw a sequence logo: at each position the letters A C G T with these heights (columns), the highest outermost;
    negative heights are drawn downwards, upside down. NaN draws nothing. Position `first_position` is the first row's;
    sets the limits of both axes, and leaves their labels to the caller."""
    heights_L4 = np.nan_to_num(np.asarray(heights_L4, np.float64), nan=0.0)
    order_L4 = np.argsort(np.abs(heights_L4), axis=1, kind="stable")
    sorted_L4 = np.take_along_axis(heights_L4, order_L4, axis=1)
    bottom_L4 = np.zeros_like(heights_L4)
    low, high = 0.0, 0.0
    for sign in (1, -1):
        part_L4 = np.where(sorted_L4 * sign > 0, sorted_L4, 0.0)
        ends_L4 = np.cumsum(part_L4, axis=1)
        starts_L4 = np.take_along_axis(ends_L4 - part_L4, np.argsort(order_L4, axis=1), axis=1)
        bottom_L4 = np.where(heights_L4 * sign > 0, starts_L4, bottom_L4)
        low, high = min(low, ends_L4.min(initial=0.0)), max(high, ends_L4.max(initial=0.0))
    for column, base in enumerate(BASES):
        at_N = np.flatnonzero(heights_L4[:, column])
        if len(at_N):
            outline = _letters(base, first_position + at_N, bottom_L4[at_N, column], heights_L4[at_N, column])
            letters = PathPatch(outline, facecolor=BASE_COLOURS[base], linewidth=0)
            letters.set_in_layout(False)  # no one needs the extents of thousands of curves: they take a second
            axes.add_artist(letters)
    axes.set_xlim(first_position - 0.5, first_position + len(heights_L4) - 0.5)
    room = 0.04 * (high - low) or 1.0
    axes.set_ylim(low - room * (low < 0), high + room)
    if low < 0:
        axes.axhline(0, color="#555555", linewidth=0.6)


def _letters(base: str, x_N: np.ndarray, bottom_N: np.ndarray, height_N: np.ndarray) -> Outline:
    """One compound path of a letter at every x, from its bottom on, `height` high (negative: upside down)."""
    vertices_V2, codes_V = _glyph(base)
    x_NV = x_N[:, None] + (vertices_V2[:, 0] - 0.5) * _LETTER_WIDTH
    y_NV = bottom_N[:, None] + vertices_V2[:, 1] * height_N[:, None]
    return Outline(np.stack([x_NV.ravel(), y_NV.ravel()], axis=1), np.tile(codes_V, len(x_N)))


@cache
def _glyph(base: str) -> tuple[np.ndarray, np.ndarray]:
    """(vertices [V, 2] in the unit square, codes [V]) of a letter's outline."""
    outline = TextPath((0, 0), base, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = outline.get_extents()
    return (outline.vertices - box.min) / box.size, np.asarray(outline.codes)


def draw_heat_map(
    axes: Axes, values_L4: np.ndarray, reference: str, *, first_position: int = 0, limit: float | None = None
) -> Any:
    """Draw the values of the four bases at each position, blue below 0 and red above, white at 0; a dot marks the base
    of `reference` [L]; grey where there is no value. limit: the value of the darkest colours (default: the largest
    magnitude). Returns the image, for a colour bar."""
    if limit is None:
        limit = float(np.nanmax(np.abs(values_L4), initial=0.0)) or 1.0
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad=MISSING)
    edges = first_position - 0.5, first_position + len(values_L4) - 0.5
    image = axes.imshow(
        np.ma.masked_invalid(values_L4.T), cmap=colours, vmin=-limit, vmax=limit, aspect="auto",
        interpolation="nearest", extent=(*edges, 3.5, -0.5),
    )  # fmt: skip
    known = [(first_position + i, BASES.index(base)) for i, base in enumerate(reference) if base in BASES]
    if known:
        x, y = zip(*known, strict=True)
        axes.scatter(x, y, s=4, color="#222222", linewidths=0, zorder=3)
    axes.set_yticks(range(4), list(BASES))
    axes.tick_params(axis="y", length=0)
    return image


def draw_map(axes: Axes, map_LL: np.ndarray, *, first_position: int = 0) -> Any:
    """Draw a dependency map: row i the mutated base, column j the affected one, from pale to dark at the 99.5th
    percentile; grey where there is no value. Returns the image, for a colour bar."""
    colours = matplotlib.colormaps["magma_r"].with_extremes(bad=MISSING)
    edges = first_position - 0.5, first_position + len(map_LL) - 0.5
    return axes.imshow(
        np.ma.masked_invalid(map_LL), cmap=colours, vmin=0, vmax=map_limit(map_LL), interpolation="nearest",
        extent=(*edges, edges[1], edges[0]),
    )  # fmt: skip


def map_limit(map_LL: np.ndarray) -> float:
    """The value of a map's darkest colour: its 99.5th percentile, so that one cell does not make all others pale."""
    known = map_LL[np.isfinite(map_LL)]
    highest = float(np.percentile(known, 99.5)) if len(known) else 0.0
    return highest or float(known.max(initial=0.0)) or 1.0


def show_positions(axis: Any, most: int = 12) -> None:
    """Write positions along an axis: whole numbers with commas, without the sign that the minus strand gives them."""
    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(round(value)):,}"))


def first_x(start: int, end: int, strand: str) -> int:
    """x of the first base read of a region: its start, or, of the minus strand, the negative of its last position."""
    return -(end - 1) if strand == "-" else start


@contextmanager
def styled() -> Iterator[None]:
    """megadna's style for every figure that is made in the block."""
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as a PNG file; nothing at its edges is cut off."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.12)
    return content.getvalue()


def inline_svg(figure: Figure) -> str:
    """The figure as an <svg> element to be put into a page; it refers to nothing outside itself."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = content.getvalue().decode()
    return text[text.index("<svg") :]
