"""Pictures of embeddings: rows of vectors -> two dimensions (PCA, UMAP) -> points coloured by class or number.

In:  tables with columns of vectors, read again and again (they need not fit memory), and a text for each row.
Out: PNG or SVG. Of more than MAX_DRAWN rows, as many drawn at random are shown, and the picture says so.
Each channel is set to mean 0 and variance 1 over these rows. A row whose vector or text is missing is counted.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA

from megadna.downstream.inputs import in_natural_order
from megadna.downstream.options import EmbedOptions
from megadna.downstream.outputs import vectors_of
from megadna.downstream.pictures import png, styled
from megadna.downstream.tasks import read_cells
from megadna.errors import require
from megadna.log import counted, get_logger
from megadna.progress import Progress
from megadna.train.plots import COLOURS, GREY

# Shapes: N rows (n of a sample), H hidden channels of all layers side by side.
log = get_logger(__name__)
Tables = Callable[[], Iterator[pa.Table]]
"""Reads the rows again: tables whose columns of fixed-size lists are the vectors."""
MAX_DRAWN = 5_000
MIN_DRAWN = 5
MAX_CLASSES = 14  # two marks in each of seven colours
OTHERS, NO_VALUE = "#c4c8ce", "no value"
_MISSING = {"", ".", "NA", "NaN", "nan"}
_OUTPUT_COLUMNS = ("contig", "name", "strand")


@dataclass(frozen=True)
class Groups:
    """Of what class each point is: `number_n` counts the labels, colours and marks, which the legend shows."""

    title: str
    number_n: np.ndarray
    labels: Sequence[str]
    colours: Sequence[Any]
    marks: Sequence[str]


@dataclass(frozen=True)
class Numbers:
    """The number of each point, NaN where it has none: a scale of colours."""

    title: str
    value_n: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Points [n, 2] and the names of their two axes."""

    points: np.ndarray
    axes: Sequence[str]


def rows_at(tables: Tables, numbers: np.ndarray) -> pa.Table:
    """The rows with these (sorted) numbers."""
    found, start = [], 0
    for table in tables():
        first, last = np.searchsorted(numbers, [start, start + len(table)])
        found.append(table.take(pa.array(numbers[first:last] - start)))
        start += len(table)
    return pa.concat_tables(found)


def mean_and_scale(vectors_nH: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [H] of each channel; 1 where it is constant."""
    scale_H = vectors_nH.std(0)
    return vectors_nH.mean(0), np.where(scale_H > 0, scale_H, 1).astype(np.float32)


def project(vectors_nH: np.ndarray, kind: str, seed: int) -> Panel:
    """The first two principal components with their shares of the variance, or UMAP (15 neighbours) of the first 50."""
    if kind == "pca":
        pca = PCA(2, random_state=seed)
        points = pca.fit_transform(vectors_nH)
        shares = enumerate(pca.explained_variance_ratio_, start=1)
        return Panel(
            points, [f"principal component {number} ({share:.1%} of the variance)" for number, share in shares]
        )
    from umap import UMAP

    fewer = PCA(min(50, *vectors_nH.shape), random_state=seed).fit_transform(vectors_nH)
    points = UMAP(n_neighbors=min(15, len(fewer) - 1), random_state=seed, n_jobs=1).fit_transform(fewer)
    return Panel(points, ["UMAP 1", "UMAP 2"])


def grouped(title: str, texts: Sequence[str]) -> Groups | Numbers:
    """Numbers where all texts are and they have more than MAX_CLASSES values; else classes, the rarest together."""
    known = [text for text in texts if text not in _MISSING]
    counts = Counter(known)
    if len(counts) > MAX_CLASSES and (numbers := _as_numbers(counts)):
        return Numbers(title, np.array([numbers.get(text, np.nan) for text in texts]))
    kept = counts.most_common(MAX_CLASSES if len(counts) <= MAX_CLASSES else MAX_CLASSES - 1)
    names, count = in_natural_order(name for name, _ in kept), len(COLOURS)
    entries = [(_label(name, counts[name]), COLOURS[n % count], "o^"[n // count]) for n, name in enumerate(names)]
    number = {name: n for n, name in enumerate(names)}
    if rest := [name for name in counts if name not in number]:
        number |= dict.fromkeys(rest, len(entries))
        entries.append((_label(f"{len(rest):,} others", sum(counts[name] for name in rest)), OTHERS, "s"))
    if len(known) < len(texts):
        number |= dict.fromkeys(_MISSING, len(entries))
        entries.append((_label(NO_VALUE, len(texts) - len(known)), GREY, "x"))
    return Groups(title, np.array([number[text] for text in texts]), *zip(*entries, strict=True))


def _label(name: str, count: int) -> str:
    """A line of the legend; matplotlib leaves out those that begin with _."""
    short = name if len(name) <= 40 else f"{name[:37]}..."
    return f"{' ' * short.startswith('_')}{short} ({count:,})"


def _as_numbers(texts: Counter[str]) -> dict[str, float]:
    """The number that each text is; {} if one is none, or not finite."""
    try:
        found = {text: float(text) for text in texts}
    except ValueError:
        return {}
    return found if np.isfinite(list(found.values())).all() else {}


def draw(panels: Sequence[Panel], colouring: Groups | Numbers | None, title: str, text: str, path: Path) -> None:
    """Write the picture; `text` is the line below the title."""
    with styled():
        figure = Figure(figsize=(5.5 * len(panels) + 1.8, 5.4), layout="constrained")
        for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            scale = _points(axes, panel.points, colouring)
            axes.set(xlabel=panel.axes[0], ylabel=panel.axes[1])
        figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=11.5)
        figure.axes[0].set_title(text, fontsize=8, color="#444444")
        if isinstance(colouring, Numbers):
            bar = figure.colorbar(scale, ax=figure.axes, extend="both", shrink=0.8, label=colouring.title)
            if missing := int(np.isnan(colouring.value_n).sum()):
                bar.ax.set_title(f"grey: {NO_VALUE} ({missing:,})", fontsize=8)
        elif colouring is not None and len(colouring.labels) <= 20:
            looks = zip(colouring.marks, colouring.colours, strict=True)
            handles = [Line2D([], [], color=colour, marker=mark, linestyle="", markersize=6) for mark, colour in looks]
            beside: dict[str, Any] = {"loc": "outside right upper", "title": colouring.title, "alignment": "left"}
            figure.legend(handles, colouring.labels, frameon=False, fontsize="small", **beside)
        if path.suffix == ".svg":
            figure.savefig(path, metadata={"Date": None})
        else:
            path.write_bytes(png(figure, dpi=150))


def _points(axes: Any, points_n2: np.ndarray, colouring: Groups | Numbers | None) -> Any:
    """Draw the points of each mark, in the order of the rows; the artist that has a scale of colours."""
    size: dict[str, Any] = {"s": 8 if len(points_n2) > 500 else 18, "linewidths": 0}
    if colouring is None:
        return axes.scatter(*points_n2.T, color=COLOURS[0], **size)
    if isinstance(colouring, Numbers):
        is_known = ~np.isnan(colouring.value_n)
        axes.scatter(*points_n2[~is_known].T, color=GREY, **size)
        low, high = np.percentile(colouring.value_n[is_known], [1, 99])
        return axes.scatter(*points_n2[is_known].T, c=colouring.value_n[is_known], vmin=low, vmax=high, **size)
    mark_n = np.array(colouring.marks)[colouring.number_n]
    colour_n = np.array(colouring.colours, object)[colouring.number_n]
    for mark in sorted(set(mark_n), key="xs^o".find):  # greys below
        own = mark_n == mark
        width = {**size, "linewidths": 1} if mark == "x" else size
        axes.scatter(*points_n2[own].T, c=list(colour_n[own]), marker=mark, **width)
    return None


class Picture:
    """--plot of `embed`: its options, and the cells of --colour, read before any work."""

    def __init__(self, options: EmbedOptions) -> None:
        """UserError if --input has no such column."""
        self.options, self.column = options, options.colour or ("name" if options.bed else "")
        self.cells: Sequence[str] = []
        if self.column and self.column not in _OUTPUT_COLUMNS:
            where = f"--colour {self.column}: {options.input}"
            known = f"{', '.join(_OUTPUT_COLUMNS)} of the output"
            require(options.reads_table, f"{where} is no table with columns; choose from {known}")
            table = read_cells(options.input)
            columns = ", ".join(map(str, table.columns))
            require(self.column in table, f"{where} has no such column; choose from {columns}, or {known}")
            self.cells = table[self.column].tolist()

    def write(self, tables: Tables, path: Path) -> None:
        """Draw the rows of the tables; a warning where they are too few."""
        options = self.options
        num_rows = sum(map(len, tables()))
        drawn = np.sort(np.random.default_rng(1).permutation(num_rows)[:MAX_DRAWN])
        rows = rows_at(tables, drawn)
        is_known = np.isfinite(vectors_of(rows)).all(axis=1)
        rows = rows.filter(pa.array(is_known))
        if len(rows) < MIN_DRAWN:
            log.warning("%s: not drawn, as a picture needs %d rows with a vector (%d)", path, MIN_DRAWN, len(rows))
            return
        vectors_nH = vectors_of(rows)
        mean_H, scale_H = mean_and_scale(vectors_nH)
        kinds = ["pca", "umap"] if options.projection == "both" else [options.projection]
        with Progress(f"drawing {path.name}"):
            panels = [project((vectors_nH - mean_H) / scale_H, kind, 1) for kind in kinds]
            colouring = grouped(self.column, self._texts(rows)) if self.column else None
            title = f"Embeddings of {options.input.name}"
            draw(panels, colouring, title, self._text(num_rows, len(drawn), len(rows)), path)

    def _texts(self, rows: pa.Table) -> list[str]:
        if not self.cells:
            return rows[self.column].to_pylist()
        return [self.cells[int(name.removeprefix("row_")) - 1] for name in rows["contig"].to_pylist()]

    def _text(self, num_rows: int, num_drawn: int, num_known: int) -> str:
        options = self.options
        what = "base" if options.pooling == "nucleotide" else "region" if options.bed else "sequence"
        shown = f", {num_known:,} of them drawn" * (num_known < num_rows)
        lost = f" ({num_drawn - num_known:,} without a vector)" * (num_known < num_drawn)
        layers = f", layers {' '.join(map(str, options.layers))}" if options.layers else ""
        folder = Path(options.model)
        model = folder.resolve().name if folder.is_dir() else options.model
        return f"{counted(num_rows, what)}{shown}{lost}; embedded by {model}, pooling {options.pooling}{layers}"
