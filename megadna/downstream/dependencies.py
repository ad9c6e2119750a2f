"""Dependency maps: how much the prediction at base j changes when base i is mutated, nothing hidden.

In:  RegionOptions' input and a masked language model; each region, with its flanks, fits the context.
Out: by the extension of each output
     .npy      map [L, L] of a region; OUTPUT.json says what it is (model, epsilon, base of logarithms, region)
     .parquet  a row a pair: contig, start, end, name, strand, i, j (0-based positions on the contig), value
     .tsv      the runs that the summary finds, those of all regions
     .png, .html  a picture or an interactive page of each region

e(i, j) = max over the three other bases at i, and over the four bases b at j, of |log2 odds_mutant(b) - log2
odds_reference(b)|; odds = p / (1 - p), p the softmax over A, C, G, T with epsilon added, renormalised; e(i, i) = 0.
Rows are mutated, columns affected; the map is not symmetric. 3 L + 1 forward passes. In nats: times ln 2 = 0.6931.
(Tomaz da Silva et al., "Nucleotide dependency analysis of DNA language models reveals genomic functional elements"; of
their code, one notebook uses log2, another natural logarithms.) N has no row and no column: NaN.

Runs: off-diagonal blocks of high values along anti-diagonals (stems: i + j constant, as arms of a hairpin pair) and
along diagonals (repeats: j - i constant) that are stronger than chance, the best first. Values are symmetrised,
(e(i, j) + e(j, i)) / 2, and compared by their square roots, as few are large and most near 0. Dependencies decay with
distance, so each root is compared with those of about its distance: z = (root - median) / (1.4826 x their median
absolute deviation). A cell scores min(z, 6) - 1, a run the sum of its cells (the segment of a line with the largest
sum). Chance: values are shuffled among cells of about the same distance, which keeps the decay and destroys runs; p is
the share of shuffled maps, this map counted among them, whose best run of the kind scores as high. Runs with p <= 0.05
are reported; cells within 2 of one are not used for the next.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna import __version__
from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.inputs import REGION, check_input, read_input
from megadna.downstream.interpretation_options import DependencyOptions
from megadna.downstream.outputs import Work
from megadna.downstream.region_files import WHOLE, Region, checked_regions, files_of, pieces, sidecar
from megadna.downstream.stated import most_bases, read_config, require_context
from megadna.files import write_json
from megadna.genome.records import Stretch, reverse_complement
from megadna.progress import Progress, tracked

if TYPE_CHECKING:
    from megadna.downstream.masked_bases import MaskedBases

# Shapes: L bases of a region, S bases that the model sees (with flanks), R mutated bases of a piece, 4 the bases,
# P pairs of bases i < j at least `min_distance` apart, D lines, T cells of a line.

MAX_PART_TOKENS = 1 << 20
"""Tokens that a model reads for a saved part."""
_MAX_GROUP_TOKENS = 1 << 21  # of mutants whose predictions, 16 bytes a base, are in memory at once
Kind = Literal["stem", "repeat"]
MAX_Z = 6.0
Z_OFFSET = 1.0
MAX_P = 0.05
MOST_RUNS = 50
"""Of each kind."""
_NONE = -1e9


@dataclass(frozen=True)
class Run:
    """One run; i < j are indices of bases."""

    kind: Kind
    i_start: int
    i_end: int
    """Half-open."""
    j_start: int
    j_end: int
    mean: float
    """Of the symmetrised map over the run."""
    background: float
    """Median of the map at these distances."""
    score: float
    p: float

    def __len__(self) -> int:
        return self.i_end - self.i_start

    def pairs(self) -> list[tuple[int, int]]:
        """(i, j) of each cell."""
        others = range(self.j_start, self.j_end)
        firsts = range(self.i_start, self.i_end)
        return list(zip(firsts, reversed(others) if self.kind == "stem" else others, strict=True))


def dependencies(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """The maps of every sequence of `input`, in memory, a row a pair (contig, start, end, name, strand, i, j, value);
    keyword arguments are the fields of DependencyOptions. `dependency_map` gives one map as an array."""
    chosen = DependencyOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    work = Dependencies(chosen)
    work.load()
    maps = work.maps(pa.concat_tables(work.tables()))
    return pa.concat_tables([_pairs(*one) for one in zip(work.regions, maps, strict=True)]).to_pandas()


def dependency_map(model: "MaskedBases", bases: str, *, epsilon: float = 1e-10) -> np.ndarray:
    """e(i, j) [L, L] in log2 of a sequence that fits the context, fp32; row i mutated, column j affected."""
    return mutated_rows(model, Stretch("", 0, len(bases), "+", bases), epsilon)


def mutated_rows(model: "MaskedBases", stretch: Stretch, epsilon: float) -> np.ndarray:
    """Rows [R, S] of the map of a stretch's bases, for the bases between its context."""
    seen = stretch.bases
    codes_S = base_codes(dna_of(seen))
    rows = range(stretch.before, len(seen) - stretch.after)
    found_RS = np.full((len(rows), len(seen)), np.nan, np.float32)
    reference_S4 = log2_odds(model.shown([seen])[0], epsilon)
    mutated = [i for i in rows if codes_S[i] < 4]
    at_once = max(1, _MAX_GROUP_TOKENS // (3 * len(seen)))
    for first in range(0, len(mutated), at_once):
        group = mutated[first : first + at_once]
        mutants = [seen[:i] + base + seen[i + 1 :] for i in group for base in BASES if base != seen[i]]
        log_p = model.shown(mutants)
        for number, i in enumerate(group):
            changes = [np.abs(log2_odds(one, epsilon) - reference_S4) for one in log_p[3 * number : 3 * number + 3]]
            found_RS[i - stretch.before] = np.max(changes, axis=(0, 2))
            found_RS[i - stretch.before, i] = 0.0
    found_RS[:, codes_S == 4] = np.nan
    return found_RS


def log2_odds(log_p_S4: np.ndarray, epsilon: float) -> np.ndarray:
    """log2 p/(1-p) [S, 4] in fp64 of p = exp(log_p) with epsilon added and renormalised."""
    p_S4 = np.exp(log_p_S4.astype(np.float64)) + epsilon
    p_S4 /= p_S4.sum(axis=-1, keepdims=True)
    return np.log2(p_S4) - np.log2(p_S4.sum(axis=-1, keepdims=True) - p_S4)


class Dependencies(Work):
    """The options, the regions and a model."""

    what = "mapping"
    options: DependencyOptions

    def __init__(self, options: DependencyOptions) -> None:
        """UserError for what can be wrong before the model is loaded."""
        super().__init__(options)
        self.found: pd.DataFrame | None = None
        """The summary, once it is written."""
        self.regions = checked_regions(options, "row and no column")
        self._flanked = [(stretch.before, len(stretch.bases)) for stretch in read_input(options, context=options.flank)]
        """Bases of flank before each region, and its bases with both flanks."""
        self._require_context(most_bases(read_config(options.model), options.model))

    def load(self) -> None:
        """Load the model; UserError if a region does not fit its context."""
        from megadna.downstream.masked_bases import load_masked_bases

        with Progress(f"loading {self.options.model}"):
            self.model = load_masked_bases(self.options)
        self._require_context(self.model.max_bases)

    def _require_context(self, most: int | None) -> None:
        flank = f", --flank {self.options.flank}" if self.options.flank else ""
        for region, (_, seen) in zip(self.regions, self._flanked, strict=True):
            require_context(region.title + flank, seen, most, self.options.model)

    def blocks(self) -> Iterator[list[Stretch]]:
        """Mutated bases, those of a saved part together."""
        for stretch in read_input(self.options, context=self.options.flank):
            for piece in pieces(stretch, max(1, MAX_PART_TOKENS // (3 * len(stretch.bases))), WHOLE):
                yield [piece]

    def table(self, block: list[Stretch]) -> pa.Table:
        """A row a mutated base: its values for every base that the model saw, flanks included."""
        rows: list[np.ndarray] = []
        for piece in block:
            rows += list(mutated_rows(self.model, piece, self.options.epsilon))
            self.progress.advance(piece.end - piece.start)
        return pa.table({"values": pa.array(rows, pa.list_(pa.float32()))})

    def maps(self, table: pa.Table) -> list[np.ndarray]:
        """The map [L, L] of each region."""
        rows, found, start = table["values"], [], 0
        for region, (before, seen) in zip(self.regions, self._flanked, strict=True):
            map_LS = rows.slice(start, len(region)).combine_chunks().flatten().to_numpy().reshape(-1, seen)
            found.append(np.ascontiguousarray(map_LS[:, before : before + len(region)]))
            start += len(region)
        return found

    def summary(self, maps: list[np.ndarray]) -> pd.DataFrame:
        """The runs of every region, a row each: region (its number in the input, from 0) and `run_row`."""
        options = self.options
        rows = []
        look: dict[str, int] = {key: getattr(options, key) for key in ("min_distance", "shuffles", "seed")}
        for number, map_LL in enumerate(tracked(maps, "looking for runs", len(maps), "regions")):
            rows += [{"region": number, **run_row(self.regions[number], run)} for run in find_runs(map_LL, **look)]
        nothing = run_row(self.regions[0], Run("stem", 0, 1, 0, 1, 0.0, 0.0, 0.0, 1.0))
        return pd.DataFrame(rows, columns=["region", *nothing])

    def settings(self) -> dict[str, Any]:
        """The options, and the size of a part."""
        return super().settings() | {"tokens": MAX_PART_TOKENS}

    def files(self) -> list[Path]:
        """All files that may be written."""
        found: list[Path] = []
        for output in self.options.output:
            own = files_of(output, self.regions) if output.suffix in (".npy", ".png", ".html") else [output]
            found += own + [sidecar(path) for path in own if path.suffix == ".npy"]
        return found

    def join(self, parts: list[Path], path: Path) -> None:
        """Write all outputs from the parts into the folder of `path`."""
        maps = self.maps(pa.concat_tables(list(map(parquet.read_table, parts))))
        runs = self.summary(maps) if self.options.shuffles else None
        self.found = runs
        for output in self.options.output:
            target = path.with_name(output.name)
            if output.suffix == ".npy":
                for file, region, map_LL in zip(files_of(target, self.regions), self.regions, maps, strict=True):
                    np.save(file, map_LL)
                    write_json(sidecar(file), self.facts(region))
            elif output.suffix == ".parquet":
                with parquet.ParquetWriter(target, _pairs(self.regions[0], maps[0][:1, :1]).schema) as writer:
                    for region, map_LL in zip(self.regions, maps, strict=True):
                        writer.write_table(_pairs(region, map_LL))
            elif output.suffix == ".tsv" and runs is not None:
                runs.to_csv(target, sep="\t", index=False, float_format="%.6g")
        if self.options.written(".png", ".html"):
            from megadna.downstream.map_pages import write_maps

            write_maps(self, maps, runs, path.parent)

    def facts(self, region: Region) -> dict[str, Any]:
        """What the map of a region is."""
        facts: dict[str, Any] = {"program": f"megadna {__version__} dependencies", "model": self.options.model}
        facts |= {
            "epsilon": self.options.epsilon,
            "log_base": 2,
            "rows": "mutated base i",
            "columns": "affected base j",
        }
        return {**facts, **asdict(region), "flank": self.options.flank}


def run_row(region: Region, run: Run) -> dict[str, Any]:
    """contig, name, kind; the two arms as 0-based, half-open intervals of the contig and their bases as read; length;
    matching: share of complementary pairs (stem) or of equal bases (repeat); mean and background in log2; score; p."""
    pairs = [(region.bases[i], region.bases[j]) for i, j in run.pairs()]
    if run.kind == "stem":
        pairs = [(one, reverse_complement(other)) for one, other in pairs]
    arms = (run.i_start, run.i_end), (run.j_start, run.j_end)
    (i_start, i_last), (j_start, j_last) = (sorted((region.position(a), region.position(b - 1))) for a, b in arms)
    i_bases, j_bases = (region.bases[a:b] for a, b in arms)
    return {
        "contig": region.contig, "name": region.name, "kind": run.kind, "i_start": i_start, "i_end": i_last + 1,
        "j_start": j_start, "j_end": j_last + 1, "length": len(run), "i_bases": i_bases, "j_bases": j_bases,
        "matching": sum(one == other for one, other in pairs) / len(pairs), "mean": run.mean,
        "background": run.background, "score": run.score, "p": run.p,
    }  # fmt: skip


def _pairs(region: Region, map_LL: np.ndarray) -> pa.Table:
    """A row a pair of bases."""
    rows, columns = map_LL.shape
    positions = np.array([region.position(index) for index in range(max(rows, columns))])
    facts = {key: pa.repeat(getattr(region, key), rows * columns) for key in REGION}
    i, j = np.repeat(positions[:rows], columns), np.tile(positions[:columns], rows)
    return pa.table({**facts, "i": i, "j": j, "value": map_LL.ravel()})


def find_runs(map_LL: np.ndarray, *, min_distance: int, shuffles: int, seed: int) -> list[Run]:
    """The runs of a map, stems first; [] if it has no pair of bases `min_distance` apart with a value."""
    even_LL = (map_LL + map_LL.T) / 2
    i_P, j_P = np.triu_indices(len(map_LL), min_distance)
    known = np.isfinite(even_LL[i_P, j_P])
    i_P, j_P = i_P[known], j_P[known]
    if not len(i_P):
        return []
    values_P = even_LL[i_P, j_P]
    classes = _classes(j_P - i_P, len(map_LL))
    median_P, score_P = np.empty_like(values_P), np.empty_like(values_P)
    for cells in classes:
        median_P[cells] = np.median(values_P[cells])
        roots = np.sqrt(np.maximum(values_P[cells], 0.0))
        from_median = roots - np.median(roots)
        spread = 1.4826 * np.median(np.abs(from_median))
        z = from_median / spread if spread > 0 else np.zeros(len(cells))
        score_P[cells] = np.minimum(z, MAX_Z) - Z_OFFSET
    scores_LL, median_LL = np.full(map_LL.shape, _NONE), np.full(map_LL.shape, np.nan)
    scores_LL[i_P, j_P], median_LL[i_P, j_P] = score_P, median_P
    rng = np.random.default_rng(seed)
    found: list[Run] = []
    lines = {kind: _lines(len(map_LL), kind) for kind in ("stem", "repeat")}
    chance: dict[str, list[float]] = {kind: [] for kind in lines}
    for _ in range(shuffles):
        shuffled_LL = np.full(map_LL.shape, _NONE)
        for cells in classes:
            shuffled_LL[i_P[cells], j_P[cells]] = score_P[rng.permutation(cells)]
        for kind, line in lines.items():
            chance[kind].append(_best(shuffled_LL, *line)[0])
    for kind, line in lines.items():
        found += _runs(kind, scores_LL.copy(), line, np.array(chance[kind]), even_LL, median_LL)  # type: ignore[arg-type]
    return found


def _classes(distance_P: np.ndarray, length: int) -> list[np.ndarray]:
    """Cells of about the same distance: neighbouring distances together, until they are 64 and two a base."""
    order = np.argsort(distance_P, kind="stable")
    edges = np.flatnonzero(np.diff(distance_P[order])) + 1
    groups: list[np.ndarray] = []
    for part in np.split(order, edges):
        if groups and len(groups[-1]) < max(64, 2 * length):
            groups[-1] = np.concatenate([groups[-1], part])
        else:
            groups.append(part)
    if len(groups) > 1 and len(groups[-1]) < 64:
        last = groups.pop()
        groups[-1] = np.concatenate([groups[-1], last])
    return groups


def _lines(length: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(i [D, T], j [D, T]) of the cells of each line in order; cells outside the map are (0, 0), which never counts."""
    if kind == "stem":  # from the middle outwards
        sums_D1, steps_T = np.arange(2 * length - 1)[:, None], np.arange((length + 1) // 2)
        i_DT = (sums_D1 - 1) // 2 - steps_T
        j_DT = sums_D1 - i_DT
    else:
        i_DT = np.broadcast_to(np.arange(length), (length, length))
        j_DT = i_DT + np.arange(length)[:, None]
    outside = (i_DT < 0) | (j_DT >= length)
    return np.where(outside, 0, i_DT), np.where(outside, 0, j_DT)


def _best(scores_LL: np.ndarray, i_DT: np.ndarray, j_DT: np.ndarray) -> tuple[float, int, int, int]:
    """(score, line, first cell, cell after the last) of the segment with the largest sum of all lines (Kadane)."""
    scores_TD = scores_LL[i_DT, j_DT].T
    running_D, first_D = np.zeros(scores_TD.shape[1]), np.zeros(scores_TD.shape[1], np.int64)
    best = (0.0, 0, 0, 0)
    for at, score_D in enumerate(scores_TD):
        fresh_D = running_D <= 0
        first_D[fresh_D] = at
        running_D = np.where(fresh_D, score_D, running_D + score_D)
        line = int(running_D.argmax())
        if running_D[line] > best[0]:
            best = float(running_D[line]), line, int(first_D[line]), at + 1
    return best


def _runs(
    kind: Kind,
    scores_LL: np.ndarray,
    line: tuple[np.ndarray, np.ndarray],
    chance_S: np.ndarray,
    even_LL: np.ndarray,
    median_LL: np.ndarray,
) -> list[Run]:
    """The runs of one kind, the best first; consumes `scores_LL`."""
    found: list[Run] = []
    while len(found) < MOST_RUNS:
        score, number, first, last = _best(scores_LL, *line)
        p = (1 + int(np.count_nonzero(chance_S >= score))) / (1 + len(chance_S))
        if not score or p > MAX_P:
            break
        i_T, j_T = (cells_DT[number, first:last] for cells_DT in line)
        ends = int(i_T.min()), int(i_T.max()) + 1, int(j_T.min()), int(j_T.max()) + 1
        mean, background = float(even_LL[i_T, j_T].mean()), float(np.median(median_LL[i_T, j_T]))
        found.append(Run(kind, *ends, mean, background, score, p))
        for i, j in zip(i_T.tolist(), j_T.tolist(), strict=True):
            scores_LL[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3] = _NONE
    return found
