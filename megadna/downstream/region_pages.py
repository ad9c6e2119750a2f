"""Pictures and pages of regions: PNG for papers; one HTML file a region that loads nothing and needs no server.

In:  effects of substitutions in regions; what MutateOptions say to draw beside them.
Out: files in a folder, named as megadna/downstream/region_files.py says. The figure of a page is inline SVG.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megadna.alphabet import BASES
from megadna.downstream.html_page import json_element, page
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.map_pages import Map, map_parts, read_map
from megadna.downstream.pictures import importance, information_heights, inline_svg, png, probabilities, styled
from megadna.downstream.region_figures import PER_ROW, Panel, RegionFigure, Tracks, kind_of, lanes_of
from megadna.downstream.region_files import Region, files_of
from megadna.downstream.region_tracks import Variant, read_gff, read_variants
from megadna.genome.records import record_lengths
from megadna.log import get_logger
from megadna.progress import tracked

if TYPE_CHECKING:
    from megadna.downstream.effects import Effects

log = get_logger(__name__)

# Shapes: L bases of a region, N of all, 4 the bases A C G T, K outputs of a model.

MOST_PANELS = 6


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
