"""Pictures and pages of regions: PNG for papers; one HTML file a region that loads nothing and needs no server.

In:  effects of substitutions in regions; what MutateOptions say to draw beside them.
Out: files in a folder, named as megadna/downstream/region_files.py says. A figure has for each output a sequence logo
     and, beneath it, a heat map; then variants and features: in rows of bases one below the other (PNG), or in one long
     row, as inline SVG (page). Sizes are in inches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megadna.alphabet import BASES
from megadna.downstream.html_page import json_element, page
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.map_pages import Map, map_parts, read_map
from megadna.downstream.pictures import (
    BASE_COLOURS,
    draw_heat_map,
    draw_logo,
    first_x,
    importance,
    information_heights,
    inline_svg,
    png,
    probabilities,
    show_positions,
    styled,
)
from megadna.downstream.region_files import Region, Variant, files_of, read_gff, read_variants
from megadna.genome.records import record_lengths, reverse_complement
from megadna.log import counted, get_logger
from megadna.progress import tracked

if TYPE_CHECKING:
    from megadna.downstream.mutate import Effects

log = get_logger(__name__)

# Shapes: L bases of a region, N of all, 4 the bases A C G T, K outputs of a model.

MOST_PANELS = 6

PER_ROW = 100
"""Bases of a row of a PNG, at most; several rows share the bases evenly."""
BASE_WIDTH = 0.125
LEFT, RIGHT, TOP, LEAST_WIDTH = 0.95, 0.25, 0.62, 6.0
_LOGO, _HEAT, _VARIANTS, _LANE, _GAP, _TICKS, _BAR = 1.0, 0.62, 0.8, 0.2, 0.1, 0.42, 0.62
_MOST_LANES = 3  # of one kind of feature
_FEATURE_COLOURS = {"gene": "#4c566a", "CDS": "#0072B2", "exon": "#56B4E9", "mRNA": "#8a8f98", "transcript": "#8a8f98"}


@dataclass(frozen=True)
class Panel:
    """One output of a model over a region."""

    name: str
    """"" where the model has one output."""
    effects_L4: np.ndarray
    heights_L4: np.ndarray
    effect: str
    """What the heat map shows, with its unit."""
    height: str
    """What the logo's heights are, with their unit."""


Feature = tuple[int, int, str, str]
"""start, end, strand, label."""
Lane = tuple[str, list[Feature]]
"""The kind of feature ("" on further lines of one kind), and features that do not overlap."""


@dataclass(frozen=True)
class Tracks:
    """What lies in a region; None where no file was given."""

    variants: list[Variant] | None = None
    lanes: list[Lane] | None = None


def lanes_of(features: pd.DataFrame, region: Region) -> list[Lane]:
    """The features in the region, those of one kind in as few lines as they fit without overlap, _MOST_LANES at most
    (further ones are left out and counted); kinds in the order of the file."""
    on = features["contig"] == region.contig
    here = features[on & (features["end"] > region.start) & (features["start"] < region.end)]
    found: list[Lane] = []
    left_out = 0
    for kind, rows in here.groupby("feature", sort=False):
        lines: list[list[Feature]] = []
        for one in rows.sort_values(["start", "end"])[["start", "end", "strand", "label"]].itertuples(index=False):
            line = next((line for line in lines if line[-1][1] <= one.start), None)
            if line is not None:
                line.append(tuple(one))
            elif len(lines) < _MOST_LANES:
                lines.append([tuple(one)])
            else:
                left_out += 1
        found += [("" if number else str(kind), line) for number, line in enumerate(lines)]
    if left_out:
        text = "%s: %s not drawn: more than %d of a kind overlap"
        log.warning(text, region.title, counted(left_out, "feature"), _MOST_LANES)
    return found


class RegionFigure:
    """Draws a region; afterwards `span` says where its bases are."""

    def __init__(self, region: Region, title: str, panels: Sequence[Panel], tracks: Tracks, per_row: int) -> None:
        self.region, self.panels, self.tracks = region, panels, tracks
        self.x = first_x(region.start, region.end, region.strand)
        num_rows = -(-len(region) // per_row)
        self.per_row = -(-len(region) // num_rows)
        self.width = max(LEAST_WIDTH, LEFT + self.per_row * BASE_WIDTH + RIGHT)
        self.limits = [float(np.nanmax(np.abs(panel.effects_L4), initial=0.0)) or 1.0 for panel in panels]
        self.lines: list[tuple[float, Callable[[Axes, slice], None]]] = []
        for panel, limit in zip(panels, self.limits, strict=True):
            self.lines += [(_LOGO, partial(self._logo, panel)), (_HEAT, partial(self._heat, panel, limit))]
        if tracks.variants is not None:
            self.lines.append((_VARIANTS, self._variants))
        if tracks.lanes is not None:
            self.lines.append((_LANE * max(1, len(tracks.lanes)), self._features))
        self.row_height = sum(height + _GAP for height, _ in self.lines) - _GAP + _TICKS
        self.height = TOP + num_rows * self.row_height + 0.15 + _BAR * len(panels)
        self.figure = Figure(figsize=(self.width, self.height))
        self.figure.set_layout_engine("none")
        self.figure.text(0.12 / self.width, 1 - 0.26 / self.height, region.title, fontsize=12, weight="bold")
        self.figure.text(0.12 / self.width, 1 - 0.46 / self.height, title, fontsize=8.5, color="#444444")
        for row in range(num_rows):
            self._draw_row(row, last=row == num_rows - 1)
        self._draw_bars()

    @property
    def span(self) -> tuple[float, float]:
        """Shares of the figure's width at which the first base begins and the last of a row ends."""
        return LEFT / self.width, 1 - RIGHT / self.width

    def _axes(self, top: float, height: float, bases: int) -> Axes:
        """Axes over the bases of a row, their top this number of inches from the figure's."""
        width = (self.span[1] - self.span[0]) * bases / self.per_row
        return self.figure.add_axes((self.span[0], 1 - (top + height) / self.height, width, height / self.height))

    def _ends(self, here: slice) -> tuple[float, float]:
        """x of the ends of some bases."""
        return self.x + here.start - 0.5, self.x + here.stop - 0.5

    def _draw_row(self, row: int, *, last: bool) -> None:
        first, top = row * self.per_row, TOP + row * self.row_height
        here = slice(first, min(first + self.per_row, len(self.region)))
        drawn: list[Axes] = []
        for height, draw in self.lines:
            drawn.append(self._axes(top, height, here.stop - first))
            draw(drawn[-1], here)
            top += height + _GAP
        for axes in drawn:
            axes.set_xlim(*self._ends(here))
            axes.tick_params(axis="x", labelbottom=axes is drawn[-1], length=3 if axes is drawn[-1] else 0, labelsize=8)
            show_positions(axes.xaxis, max(1, int(axes.get_position().width * self.width / 1.1)))
        if last:
            strand = ", minus strand, 5' to 3'" if self.region.strand == "-" else ""
            drawn[-1].set_xlabel(f"position on {self.region.contig} (0-based{strand})", fontsize=9, labelpad=2)

    def _logo(self, panel: Panel, axes: Axes, here: slice) -> None:
        draw_logo(axes, panel.heights_L4[here], first_position=self.x + here.start)
        up, down = (np.nan_to_num(part).clip(0).sum(axis=1).max() for part in (panel.heights_L4, -panel.heights_L4))
        room = 0.06 * (up + down) or 0.5
        axes.set_ylim(-down - room * (down > 0), up + room)
        label = f"{panel.name}\n{panel.height}" if panel.name else panel.height
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.locator_params(axis="y", nbins=4)
        axes.spines["bottom"].set_visible(False)

    def _heat(self, panel: Panel, limit: float, axes: Axes, here: slice) -> None:
        x, reference = self.x + here.start, self.region.bases[here]
        draw_heat_map(axes, panel.effects_L4[here], reference, first_position=x, limit=limit)
        axes.tick_params(axis="y", labelsize=8)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _variants(self, axes: Axes, here: slice) -> None:
        """A stem from 0 to the value of each variant, with its alternative allele; a ring at 0 where it has none."""
        sign, minus = self.region.step, self.region.strand == "-"
        values = [variant.value for variant in self.tracks.variants or [] if variant.value is not None]
        low, high = min([0.0, *values]), max([0.0, *values])
        room = 0.28 * ((high - low) or 1.0)
        axes.axhline(0, color="#8a8f98", linewidth=0.7)
        for variant in self.tracks.variants or []:
            at, value = sign * variant.position, variant.value or 0.0
            text = allele(variant, minus=minus)
            colour = BASE_COLOURS.get(text[-1:], "#444444") if len(text) == 1 else "#444444"
            axes.plot([at, at], [0, value], color=colour, linewidth=1.2, solid_capstyle="butt")
            axes.plot(at, value, "o", markersize=3, color=colour, fillstyle="none" if variant.value is None else "full")
            axes.annotate(
                text, (at, value), (0, -4 if value < 0 else 4), textcoords="offset points", ha="center",
                va="top" if value < 0 else "bottom", fontsize=6.5, color=colour, annotation_clip=True, clip_on=True,
            )  # fmt: skip
        axes.set_ylim(low - room * (low < 0 or not values), high + room)
        axes.set_ylabel("variants\nLLR (nats)" if values else "variants", fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.locator_params(axis="y", nbins=3)
        if not values:
            axes.set_yticks([])

    def _features(self, axes: Axes, here: slice) -> None:
        """A box for each feature, with its name and strand where they fit."""
        lanes = self.tracks.lanes or [("no feature", [])]
        sign, minus = self.region.step, self.region.strand == "-"
        left, right = self._ends(here)
        for number, (_, line) in enumerate(lanes):
            colour = _FEATURE_COLOURS.get(kind_of(lanes, number), "#009E73")
            for start, end, strand, label in line:
                low = min(sign * start, sign * (end - 1)) - 0.5
                axes.broken_barh([(low, end - start)], (number - 0.36, 0.72), facecolor=colour, linewidth=0)
                seen = max(low, left), min(low + end - start, right)
                arrow = {"+": " \N{RIGHTWARDS ARROW}", "-": " \N{LEFTWARDS ARROW}"}.get(_flipped(strand, minus), "")
                if seen[1] - seen[0] > 0.75 * len(label + arrow):
                    axes.text(sum(seen) / 2, number, label + arrow, ha="center", va="center", fontsize=6.5,
                              color="white", clip_on=True)  # fmt: skip
        axes.set_yticks(range(len(lanes)), [kind for kind, _ in lanes], fontsize=7)
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    def _draw_bars(self) -> None:
        """A colour bar for each panel, at the bottom."""
        for number, (panel, limit) in enumerate(zip(self.panels, self.limits, strict=True)):
            bottom = self.height - (len(self.panels) - number - 1) * _BAR - 0.5
            size = min(2.6, self.width - LEFT - RIGHT)
            axes = self.figure.add_axes(
                (LEFT / self.width, 1 - bottom / self.height, size / self.width, 0.1 / self.height)
            )
            scale: Any = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-limit, limit), "RdBu_r")
            self.figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=[-limit, 0, limit], format="%.3g")
            axes.tick_params(labelsize=7.5, length=2)
            text = f"{panel.name}: {panel.effect}" if panel.name else panel.effect
            note = f"{text}; dots: the base that is there"
            axes.text(1.12 if size > 2.5 else 1.15, 0.5, note, transform=axes.transAxes, va="center", fontsize=8)


def allele(variant: Variant, *, minus: bool) -> str:
    """The alternative allele in a picture: its bases on the strand read, or how many are inserted or deleted."""
    ref, alt = variant.ref, variant.alt
    if not (ref + alt).isalpha():
        return alt[:12]
    if len(ref) == len(alt):
        return (reverse_complement(alt) if minus else alt)[:8]
    return f"+{len(alt) - len(ref)}" if len(alt) > len(ref) else f"\N{MINUS SIGN}{len(ref) - len(alt)}"


def _flipped(strand: str, minus: bool) -> str:
    return {"+": "-", "-": "+"}.get(strand, strand) if minus else strand


def kind_of(lanes: list[Lane], number: int) -> str:
    """The kind of feature of a lane."""
    return next(kind for kind, _ in reversed(lanes[: number + 1]) if kind)


class Pictures:
    """What `mutate` draws; made before anything is computed, so that a wrong file is named at once."""

    def __init__(self, options: MutateOptions, regions: list[Region]) -> None:
        self.options, self.regions = options, regions
        needs_names = options.gff is not None or options.variants is not None
        contigs = record_lengths(options.input, options.column) if needs_names else {}
        self.features = None if options.gff is None else read_gff(options.gff, contigs)
        self.variants = None if options.variants is None else read_variants(options.variants, contigs)
        self.map = None if options.map is None else read_map(options.map, regions)

    def write(self, effects: "Effects", effects_NK4: np.ndarray, folder: Path) -> None:
        """Write the files of every region; effects_NK4: of the bases of all regions, in their order."""
        files = {
            path.suffix: files_of(folder / path.name, self.regions)
            for path in self.options.output
            if path.suffix in (".png", ".html")
        }
        title = f"{Path(self.options.model).name}: {effects.describe()}"
        start = 0
        for number, region in enumerate(tracked(self.regions, "drawing", len(self.regions), "regions")):
            panels = effects_panels(effects, region, effects_NK4[start : start + len(region)])
            tracks = self._tracks(region)
            start += len(region)
            if ".png" in files:
                with styled():
                    files[".png"][number].write_bytes(png(RegionFigure(region, title, panels, tracks, PER_ROW).figure))
            if ".html" in files:
                text = region_page(region, title, panels, tracks, self.map)
                files[".html"][number].write_text(text, encoding="utf-8")

    def _tracks(self, region: Region) -> Tracks:
        inside = [
            v for v in self.variants or [] if v.contig == region.contig and region.start <= v.position < region.end
        ]
        lanes = None if self.features is None else lanes_of(self.features, region)
        return Tracks(None if self.variants is None else inside, lanes)


def effects_panels(effects: "Effects", region: Region, effects_LK4: np.ndarray) -> list[Panel]:
    """A panel for each output; MOST_PANELS at most, and the log says so."""
    if effects.is_language_model:
        heights_L4 = information_heights(probabilities(effects_LK4[:, 0]))
        return [Panel("", effects_LK4[:, 0], heights_L4, effects.unit, "information\n(bits)")]
    names = [column.removeprefix("change_") for column in effects.columns]
    if len(names) > MOST_PANELS:
        log.warning(
            "pictures show the first %d of %d outputs: %s", MOST_PANELS, len(names), ", ".join(names[:MOST_PANELS])
        )
    found = []
    for number, name in enumerate(names[:MOST_PANELS]):
        effects_L4 = effects_LK4[:, number]
        found.append(Panel(name, effects_L4, importance(effects_L4, region.bases), effects.unit, "importance"))
    return found


def region_page(region: Region, title: str, panels: Sequence[Panel], tracks: Tracks, map_: Map | None) -> str:
    """The page of a region's effects: one long figure, what it shows at each base, and the map if there is one."""
    with styled():
        drawn = RegionFigure(region, title, panels, tracks, len(region))
        svg = inline_svg(drawn.figure)
    left, right = drawn.span
    texts = _texts(region, panels, tracks)
    shown = {"left": left, "right": right, "columns": drawn.per_row, "texts": texts}
    body = [
        f'<div class="wide" id="figure">{svg}<div id="cursor"></div></div>',
        json_element("bases-data", shown),
        *([] if map_ is None else ["<h2>Dependency map</h2>", *map_parts(region, map_)]),
    ]
    return page(region.title, "Point at a base to read its numbers.", body)


def _texts(region: Region, panels: Sequence[Panel], tracks: Tracks) -> list[str]:
    """What hovering shows of each base."""
    variants: dict[int, list[Variant]] = {}
    for variant in tracks.variants or []:
        variants.setdefault(variant.position, []).append(variant)
    found = []
    for index, base in enumerate(region.bases):
        position = region.position(index)
        lines = [f"{region.contig}:{position:,} (0-based)  {base}"]
        for panel in panels:
            values = "  ".join(f"{b} {v:+.3f}" for b, v in zip(BASES, panel.effects_L4[index], strict=True))
            lines.append(f"{panel.name + ': ' if panel.name else ''}{values}")
        for variant in variants.get(position, []):
            score = "not scored" if variant.value is None else f"LLR {variant.value:+.3f}"
            lines.append(f"variant {variant.ref[:20]} > {variant.alt[:20]}  {score}")
        for number, (_, lane) in enumerate(tracks.lanes or []):
            kind = kind_of(tracks.lanes or [], number)
            over = [feature for feature in lane if feature[0] <= position < feature[1]]
            lines += [f"{kind} {label} ({start:,}-{end:,} {strand})" for start, end, strand, label in over]
        found.append("\n".join(lines))
    return found
