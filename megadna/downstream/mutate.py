"""Saturation mutagenesis: the effect of each of the three substitutions of every base of records or BED regions.

In:  RegionOptions' input, and a masked language model or a fine-tuned model of sequences (megadna/downstream/effects.py
     says what an effect is).
Out: by the extension of each output
     .parquet, .tsv  a row a substitution: contig, position (0-based), name, strand, ref, alt, and llr or change_NAME;
                     rows of N are left out and counted
     .npy            effects [bases, 4] (columns A C G T; [bases, 4 K] of K outputs), and OUTPUT.index.tsv with a row a
                     base: contig, position, name, strand, ref
     .bw             OUTPUT.max_abs.bw, the largest |effect| of a base, and OUTPUT.entropy.bw, bits; of a fine-tuned
                     model OUTPUT.max_abs.NAME.bw of each output
     .png, .html     a picture or page of each region
A region of the minus strand is read 5' to 3' of it: ref and alt are its bases, and positions descend.
Parts are saved, and the same command, started again, goes on from there.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.alphabet import BASES
from megadna.downstream.effects import effects_of
from megadna.downstream.inputs import BASE, check_input, file_names, read_input
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.options import refuse_outputs
from megadna.downstream.outputs import base_columns, fixed_vectors, grouped, index_of, write_npy, write_output
from megadna.downstream.region_files import checked_regions, files_of, pieces
from megadna.genome.records import Stretch, record_lengths
from megadna.progress import Progress

# Shapes: L bases of one region, N of all, 4 the bases A C G T, K outputs of a head (a language model has one).

MAX_PART_TOKENS = 1 << 20
"""Tokens that a model reads for a saved part: 10 to 60 s of a small model on a CPU."""


def mutate(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Effects of every substitution in every sequence of `input`, in memory, a row a substitution; keyword arguments
    are the fields of MutateOptions. llr: ln p(alt) - ln p(ref), nats; change_NAME: output for alt minus for ref."""
    chosen = MutateOptions(model=str(model), input=Path(input), **options)
    check_input(chosen.as_input())
    mutagenesis = Mutagenesis(chosen)
    mutagenesis.load()
    tables = list(map(mutagenesis.table, mutagenesis.blocks()))
    return mutagenesis.substitutions(pa.concat_tables(tables)).to_pandas()


class Mutagenesis:
    """The options, the regions and a model."""

    def __init__(self, options: MutateOptions) -> None:
        """UserError for what can be wrong before the model is loaded."""
        self.progress: Progress | None = None
        self.options, self.regions = options, checked_regions(options, "effects")
        self.effects = effects_of(options, self.regions)
        self.pictures: Any = None
        if options.written(".png", ".html"):
            from megadna.downstream.region_pages import Pictures  # which imports matplotlib

            self.pictures = Pictures(options, self.regions)
        if options.output:
            refuse_outputs(options.output[0], self.files())

    def load(self) -> None:
        """Load the model; UserError where its tokenizer shows that something does not fit."""
        with Progress(f"loading {self.options.model}"):
            self.effects.load(self.regions)

    def blocks(self) -> Iterator[list[Stretch]]:
        """The input in pieces, those of a saved part together."""
        parts = (
            piece
            for stretch in read_input(self.options, context=self.effects.context)
            for piece in pieces(stretch, max(1, MAX_PART_TOKENS // self.effects.cost(stretch)), self.effects.around)
        )
        return grouped(parts, (lambda piece: self.effects.cost(piece) * (piece.end - piece.start), MAX_PART_TOKENS))

    def table(self, block: list[Stretch]) -> pa.Table:
        """A row a base: contig, position, name, strand, ref, and a vector of 4 for each column of the effects."""
        found = []
        for piece in block:
            found.append(self.effects(piece))
            if self.progress:
                self.progress.advance(len(found[-1]))
        refs = "".join(piece.own for piece in block)
        vectors = np.split(np.concatenate(found), len(self.effects.columns), axis=1)
        columns = dict(zip(self.effects.columns, map(fixed_vectors, vectors), strict=True))
        return pa.table({**base_columns(block), "ref": pa.array(list(refs), pa.string()), **columns})

    def substitutions(self, table: pa.Table) -> pa.Table:
        """A row a substitution from a row a base."""
        refs, bases = np.array(table["ref"])[:, None], np.array(list(BASES))
        row, column = np.nonzero((refs != bases) & (refs != "N"))
        found = table.select([*BASE, "ref"]).take(row).append_column("alt", pa.array(bases[column]))
        effects_NK4 = self.arrays(table)
        for number, name in enumerate(self.effects.columns):
            found = found.append_column(name, pa.array(effects_NK4[row, number, column]))
        return found

    def arrays(self, table: pa.Table) -> np.ndarray:
        """Effects [N, K, 4] of a table of bases."""
        vectors = [table[name].combine_chunks().flatten().to_numpy() for name in self.effects.columns]
        return np.stack([flat.reshape(-1, 4) for flat in vectors], axis=1)

    def write(self, bases: int | None) -> list[Path]:
        """Write all outputs and return their files ([] above rank 0); `bases`: those of the input, if known."""
        self.load()
        settings = asdict(replace(self.options, batch_tokens=1)) | {"tokens": MAX_PART_TOKENS}
        self.progress = Progress("mutating", bases, "bases")
        return write_output(self, self.options.output[0], settings, self.files(), self.progress)

    def files(self) -> list[Path]:
        """All files that may be written."""
        found: list[Path] = []
        for output in self.options.output:
            if output.suffix == ".npy":
                found += [output, index_of(output)]
            elif output.suffix == ".bw":
                found += self.bigwigs(output).values()
            else:
                found += files_of(output, self.regions) if output.suffix in (".png", ".html") else [output]
        return found

    def bigwigs(self, output: Path) -> dict[str, Path]:
        """The file of each track by its name: `entropy`, or a column of the effects."""
        if self.effects.is_language_model:
            return {track: output.with_name(f"{output.stem}.{track}.bw") for track in ("max_abs", "entropy")}
        parts = file_names(self.effects.columns, f"{output.stem}.max_abs.{{}}.bw")
        names = {column: parts[column].removeprefix("change_") for column in self.effects.columns}
        return {column: output.with_name(f"{output.stem}.max_abs.{name}.bw") for column, name in names.items()}

    def join(self, parts: list[Path], path: Path) -> None:
        """Write all outputs from the parts into the folder of `path`."""
        for output in self.options.output:
            target = path.with_name(output.name)
            if output.suffix == ".npy":
                write_npy(parts, target)
            elif output.suffix in (".parquet", ".tsv"):
                self._write_table(parts, target)
            elif output.suffix == ".bw":
                self._write_bigwigs(_whole(parts), target)
        if self.pictures:
            self.pictures.write(self.effects, self.arrays(_whole(parts)), path.parent)

    def _write_table(self, parts: list[Path], path: Path) -> None:
        """The substitutions of one part after the other: all of a genome need not fit memory."""
        with ExitStack() as stack:
            writer: parquet.ParquetWriter | None = None
            for number, part in enumerate(parts):
                rows = self.substitutions(parquet.read_table(part))
                if path.suffix == ".parquet":
                    writer = writer or stack.enter_context(parquet.ParquetWriter(path, rows.schema))
                    writer.write_table(rows)
                else:
                    settings: Any = {"sep": "\t", "index": False, "na_rep": "nan", "float_format": "%.7g"}
                    rows.to_pandas().to_csv(path, mode="a" if number else "w", header=number == 0, **settings)

    def _write_bigwigs(self, table: pa.Table, output: Path) -> None:
        from megadna.downstream.pictures import entropy_bits, probabilities
        from megadna.genome.bigwig import write_bigwigs

        effects_NK4, frame = self.arrays(table), table.select(["contig", "position"]).to_pandas()
        tracks = dict(zip(self.effects.columns, np.nanmax(np.abs(effects_NK4), axis=2, initial=-1).T, strict=True))
        if self.effects.is_language_model:
            tracks = {"max_abs": tracks["llr"], "entropy": entropy_bits(probabilities(effects_NK4[:, 0]))}
        values = {track: np.where(value < 0, np.nan, value) for track, value in tracks.items()}
        frame = frame.assign(start=frame["position"], end=frame["position"] + 1, group="", **values)
        paths = {(track, ""): path for track, path in self.bigwigs(output).items()}
        write_bigwigs([frame], paths, record_lengths(self.options.input, self.options.column))


def _whole(parts: list[Path]) -> pa.Table:
    return pa.concat_tables(list(map(parquet.read_table, parts)))
