"""Dependency maps: how much the prediction at base j changes when base i is mutated, nothing hidden.

In:  RegionOptions' input and a masked language model; each region, with its flanks, fits the context.
Out: by the extension of each output
     .npy      map [L, L] of a region; OUTPUT.json says what it is (model, epsilon, base of logarithms, region)
     .parquet  a row a pair: contig, start, end, name, strand, i, j (0-based positions on the contig), value
     .tsv      the runs that the summary finds (megadna/downstream/dependency_runs.py), those of all regions
     .png, .html  a picture or an interactive page of each region

e(i, j) = max over the three other bases at i, and over the four bases b at j, of |log2 odds_mutant(b) - log2
odds_reference(b)|; odds = p / (1 - p), p the softmax over A, C, G, T with epsilon added, renormalised; e(i, i) = 0.
Rows are mutated, columns affected; the map is not symmetric. 3 L + 1 forward passes. In nats: times ln 2 = 0.6931.
(Tomaz da Silva et al., "Nucleotide dependency analysis of DNA language models reveals genomic functional elements"; of
their code, one notebook uses log2, another natural logarithms.) N has no row and no column: NaN.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna import __version__
from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.dependency_runs import Run, find_runs
from megadna.downstream.inputs import REGION, check_input, read_input
from megadna.downstream.interpretation_options import DependencyOptions
from megadna.downstream.options import refuse_outputs
from megadna.downstream.outputs import write_output
from megadna.downstream.region_files import WHOLE, Region, checked_regions, files_of, pieces, sidecar
from megadna.downstream.stated import most_bases, read_config, require_context
from megadna.files import write_json
from megadna.genome.records import Stretch, reverse_complement
from megadna.progress import Progress, tracked

if TYPE_CHECKING:
    from megadna.downstream.masked_bases import MaskedBases

# Shapes: L bases of a region, S bases that the model sees (with flanks), R mutated bases of a piece, 4 the bases.

MAX_PART_TOKENS = 1 << 20
"""Tokens that a model reads for a saved part."""
_MAX_GROUP_TOKENS = 1 << 21  # of mutants whose predictions, 16 bytes a base, are in memory at once


def dependencies(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """The maps of every sequence of `input`, in memory, a row a pair (contig, start, end, name, strand, i, j, value);
    keyword arguments are the fields of DependencyOptions. `dependency_map` gives one map as an array."""
    chosen = DependencyOptions(model=str(model), input=Path(input), **options)
    check_input(chosen.as_input())
    work = Dependencies(chosen)
    work.load()
    maps = work.maps(pa.concat_tables(list(map(work.table, work.blocks()))))
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


class Dependencies:
    """The options, the regions and a model."""

    def __init__(self, options: DependencyOptions) -> None:
        """UserError for what can be wrong before the model is loaded."""
        self.options = options
        self.found: pd.DataFrame | None = None
        """The summary, once it is written."""
        self.regions = checked_regions(options, "row and no column")
        self._before: list[int] = []
        """Bases of flank before each region."""
        self._seen: list[int] = []
        """Bases of each region with its flanks."""
        for stretch in read_input(options, context=options.flank):
            self._before.append(stretch.before)
            self._seen.append(len(stretch.bases))
        self._require_context(most_bases(read_config(options.model), options.model, options.max_tokens))
        if options.output:
            refuse_outputs(options.output[0], self.files())

    def load(self) -> None:
        """Load the model; UserError if a region does not fit its context."""
        from megadna.downstream.masked_bases import load_masked_bases

        with Progress(f"loading {self.options.model}"):
            self.model = load_masked_bases(self.options)
        self._require_context(self.model.max_bases)

    def _require_context(self, most: int | None) -> None:
        flank = f", --flank {self.options.flank}" if self.options.flank else ""
        for region, seen in zip(self.regions, self._seen, strict=True):
            require_context(region.title + flank, seen, most, self.options.model)

    def blocks(self) -> Iterator[list[Stretch]]:
        """Mutated bases, those of a saved part together."""
        for stretch in read_input(self.options, context=self.options.flank):
            for piece in pieces(stretch, max(1, MAX_PART_TOKENS // (3 * len(stretch.bases))), WHOLE):
                yield [piece]

    def table(self, block: list[Stretch], progress: Progress | None = None) -> pa.Table:
        """A row a mutated base: its values for every base that the model saw, flanks included."""
        rows: list[np.ndarray] = []
        for piece in block:
            rows += list(mutated_rows(self.model, piece, self.options.epsilon))
            if progress:
                progress.advance(piece.end - piece.start)
        return pa.table({"values": pa.array(rows, pa.list_(pa.float32()))})

    def maps(self, table: pa.Table) -> list[np.ndarray]:
        """The map [L, L] of each region."""
        rows, found = table["values"], []
        start = 0
        for region, before in zip(self.regions, self._before, strict=True):
            part = rows.slice(start, len(region)).combine_chunks()
            map_LS = part.flatten().to_numpy().reshape(len(region), -1)
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

    def write(self, bases: int | None) -> list[Path]:
        """Write all outputs and return their files ([] above rank 0); `bases`: those of the input, if known."""
        self.load()
        settings = asdict(replace(self.options, batch_tokens=1)) | {"tokens": MAX_PART_TOKENS}
        first = self.options.output[0]
        progress = Progress("mapping", bases, "bases")
        work: Any = {"blocks": self.blocks, "join": self.join, "progress": progress}
        return write_output(first, settings, self.files(), compute=lambda block: self.table(block, progress), **work)

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
        options = self.options
        return {
            "program": f"megadna {__version__} dependencies",
            "model": options.model,
            "epsilon": options.epsilon,
            "log_base": 2,
            "rows": "mutated base i",
            "columns": "affected base j",
            "contig": region.contig,
            "start": region.start,
            "end": region.end,
            "strand": region.strand,
            "name": region.name,
            "bases": region.bases,
            "flank": options.flank,
        }


def run_row(region: Region, run: Run) -> dict[str, Any]:
    """contig, name, kind; the two arms as 0-based, half-open intervals of the contig and their bases as read; length;
    matching: share of complementary pairs (stem) or of equal bases (repeat); mean and background in log2; score; p."""
    pairs = [(region.bases[i], region.bases[j]) for i, j in run.pairs()]
    if run.kind == "stem":
        pairs = [(one, reverse_complement(other)) for one, other in pairs]
    ends = [sorted((region.position(a), region.position(b - 1))) for a, b in _arms(run)]
    (i_start, i_last), (j_start, j_last) = ends
    i_bases, j_bases = (region.bases[a:b] for a, b in _arms(run))
    return {
        "contig": region.contig, "name": region.name, "kind": run.kind, "i_start": i_start, "i_end": i_last + 1,
        "j_start": j_start, "j_end": j_last + 1, "length": len(run), "i_bases": i_bases, "j_bases": j_bases,
        "matching": sum(one == other for one, other in pairs) / len(pairs), "mean": run.mean,
        "background": run.background, "score": run.score, "p": run.p,
    }  # fmt: skip


def _arms(run: Run) -> tuple[tuple[int, int], tuple[int, int]]:
    return (run.i_start, run.i_end), (run.j_start, run.j_end)


def _pairs(region: Region, map_LL: np.ndarray) -> pa.Table:
    """A row a pair of bases."""
    rows, columns = map_LL.shape
    positions = np.array([region.position(index) for index in range(max(rows, columns))])
    texts = (region.contig, region.start, region.end, region.name, region.strand)
    types = (pa.string(), pa.int64(), pa.int64(), pa.string(), pa.string())
    facts = [pa.repeat(pa.scalar(value, kind), rows * columns) for value, kind in zip(texts, types, strict=True)]
    pairs = {
        "i": np.repeat(positions[:rows], columns),
        "j": np.tile(positions[:columns], rows),
        "value": map_LL.ravel(),
    }
    return pa.table({**dict(zip(REGION, facts, strict=True)), **pairs})
