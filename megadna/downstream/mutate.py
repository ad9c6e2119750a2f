"""Saturation mutagenesis: the effect of each of the three substitutions of every base of records or BED regions.

In:  RegionOptions' input, and a masked language model or a fine-tuned model of sequences.
Effects: of a language model ln p(base) - ln p(base that is there), both at the base hidden in the middle of a window
     (at the ends of a contig the window is moved inwards, records.centred_starts); both strands: the mean of the two
     ln p. Of a fine-tuned model: its output for the changed sequence minus that for the sequence. Columns A, C, G, T
     ([L, 4 K] of K outputs, output by output); 0 for the base that is there, NaN at N, and where no token of A, C, G
     and T alone covers a base.
Out: by the extension of each output
     .parquet, .tsv  a row a substitution: contig, position (0-based), name, strand, ref, alt, and llr or change_NAME;
                     rows of N are left out and counted
     .npy            effects [bases, 4 K], and OUTPUT.index.tsv with a row a base: contig, position, name, strand, ref
     .bw             OUTPUT.max_abs.bw, the largest |effect| of a base, and OUTPUT.entropy.bw, bits; of a fine-tuned
                     model OUTPUT.max_abs.NAME.bw of each output
     .png, .html     a picture or page of each region
A region of the minus strand is read 5' to 3' of it: ref and alt are its bases, and positions descend.
Parts are saved, and the same command, started again, goes on from there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from megadna.alphabet import BASES, base_codes, dna_of
from megadna.downstream.inputs import BASE, check_input, file_names, read_input
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.options import PredictOptions, index_of
from megadna.downstream.outputs import Work, base_columns, fixed_vectors, grouped, write_npy, write_parquet, write_tsv
from megadna.downstream.region_files import WHOLE, Region, checked_regions, files_of, pieces
from megadna.downstream.stated import (
    head_of,
    is_language_model,
    most_bases,
    read_config,
    require_context,
    require_window,
)
from megadna.errors import UserError, require
from megadna.genome.records import Stretch, centred_starts, record_lengths, reverse_complement
from megadna.progress import Progress

# Shapes: L bases of one region, N of all, 4 the bases A C G T, K outputs of a head (a language model has one).

MAX_PART_TOKENS = 1 << 20
"""Tokens that a model reads for a saved part: 10 to 60 s of a small model on a CPU."""


def mutate(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Effects of every substitution in every sequence of `input`, in memory, a row a substitution; keyword arguments
    are the fields of MutateOptions. llr: ln p(alt) - ln p(ref), nats; change_NAME: output for alt minus for ref."""
    chosen = MutateOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    mutagenesis = Mutagenesis(chosen)
    mutagenesis.load()
    return mutagenesis.substitutions(pa.concat_tables(mutagenesis.tables())).to_pandas()


class MaskedEffects:
    """Of a masked language model: one masked pass a base and strand."""

    columns = ("llr",)
    unit = "ln p(base) - ln p(base that is there)"
    is_language_model = True
    context: int
    """Bases of its contig that a region needs on either side; `around`: that a piece of a region needs."""
    around: int

    def __init__(self, options: MutateOptions, config: dict[str, Any]) -> None:
        self.options, self.is_both = options, options.strand == "both"
        require(options.scale == "probability", f"--scale {options.scale} is for fine-tuned classifiers")
        require_window(options.window, most_bases(config, options.model), options.model)

    def load(self) -> None:
        """Load the model; UserError if the window does not fit."""
        from megadna.downstream.masked_bases import load_masked_bases

        options = self.options
        self.model = load_masked_bases(options)
        most, k = self.model.max_bases, self.model.tokenizer.bases_per_token
        require_window(options.window, most, options.model)
        self.window = options.window or most - (most + 1) % 2
        require(self.window >= k, f"--window {self.window}: a token of {options.model} covers {k} bases; raise it")
        self.context = self.around = self.window - 1

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return self.window * (1 + self.is_both)

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self.is_both else "one strand"
        return f"each base hidden in the middle of up to {self.window:,} bases, {strands}"

    def __call__(self, stretch: Stretch) -> np.ndarray:
        """ln p(base) - ln p(base that is there), fp32 [L, 4]."""
        codes_L = base_codes(dna_of(stretch.own))
        known = np.flatnonzero(codes_L < 4)
        log_p_L4 = np.full((len(codes_L), 4), np.nan, np.float32)
        if not len(known):
            return log_p_L4
        at = stretch.before + known
        starts = centred_starts(at, self.window, len(stretch.bases))
        windows = [stretch.bases[start : start + self.window] for start in starts.tolist()]
        hidden = (at - starts).tolist()
        log_p_L4[known] = np.concatenate(self.model.hidden(windows, [[at] for at in hidden]))
        if self.is_both:
            others = [[len(bases) - 1 - at] for bases, at in zip(windows, hidden, strict=True)]
            found = self.model.hidden(list(map(reverse_complement, windows)), others)
            log_p_L4[known] = (log_p_L4[known] + np.concatenate(found)[:, ::-1]) / 2  # A C G T are T G C A there
        log_p_L4[known] -= log_p_L4[known, codes_L[known]][:, None]
        return log_p_L4


class HeadEffects:
    """Of a fine-tuned model of sequences: three passes a base, and one for the sequence as it is."""

    is_language_model = False
    context = 0
    """Of the contig: none; the head reads the region as `megadna predict` reads it."""
    around = WHOLE

    def __init__(self, options: MutateOptions, config: dict[str, Any], regions: Sequence[Region]) -> None:
        self.options, self._head, self._regions = options, head_of(config, options.model), regions
        whole = f"--window {options.window}: a fine-tuned model reads the whole region; leave it out"
        require(options.window == 0, whole)
        if self._head.per_base:
            raise UserError(
                f"{options.model}: predicts every nucleotide; mutate reads a language model or a fine-tuned model of "
                "sequences, which has one output to compare"
            )
        fits = options.scale == "probability" or self._head.problem != "regression"
        require(fits, f"--scale {options.scale} is for classifiers; {options.model} predicts numbers")
        self.columns = tuple(f"change_{name}" for name in self._head.names)
        most = most_bases(config, options.model)
        for region in regions:
            require_context(region.title, len(region), most, options.model)

    def load(self) -> None:
        """Load the model; UserError if it cannot read one of the regions at once."""
        from megadna.downstream.predict import Predictor

        options = self.options
        names = ("model", "input", "trust_remote_code", "batch_tokens")
        shared: dict[str, Any] = {name: getattr(options, name) for name in names}
        self.predictor = Predictor(PredictOptions(precision="fp32", **shared))
        for region in self._regions:
            most = self.predictor.tokenizer.window_bases(region.bases)
            require_context(region.title, len(region), most, options.model)

    @property
    def unit(self) -> str:
        """What an effect is."""
        if self._head.problem == "regression":
            return "change of the number"
        return f"change of {'ln p/(1-p)' if self.options.scale == 'log_odds' else 'p'}"

    def describe(self) -> str:
        """How the effects were computed, for captions."""
        strands = "mean of both strands" if self.options.strand == "both" else "one strand"
        return f"{self.unit} by each substitution, {strands}"

    def cost(self, stretch: Stretch) -> int:
        """Tokens that the model reads for one base."""
        return 3 * len(stretch.bases) * (1 + (self.options.strand == "both"))

    def __call__(self, stretch: Stretch) -> np.ndarray:
        """Output of the changed sequence minus output of the sequence, fp32 [L, 4 K]."""
        codes_L = base_codes(dna_of(stretch.own))
        indices = [(i, b) for i, code in enumerate(codes_L.tolist()) if code < 4 for b in range(4) if b != code]
        whole, first = stretch.bases, stretch.before
        changed = [whole[: first + i] + BASES[b] + whole[first + i + 1 :] for i, b in indices]
        outputs_NK = self.outputs([whole, *changed])
        effects_LK4 = np.full((len(codes_L), len(self.columns), 4), np.nan, np.float32)
        known = np.flatnonzero(codes_L < 4)
        effects_LK4[known, :, codes_L[known]] = 0.0
        for (i, b), output_K in zip(indices, outputs_NK[1:], strict=True):
            effects_LK4[i, :, b] = output_K - outputs_NK[0]
        return effects_LK4.reshape(len(codes_L), -1)

    def outputs(self, sequences: Sequence[str]) -> np.ndarray:
        """The outputs [N, K] of sequences: numbers; of classes and labels p, or ln p/(1-p)."""
        import torch

        run = [Stretch("", 0, len(bases), "+", bases) for bases in sequences]
        logits_NK = torch.from_numpy(np.stack(self.predictor.runner.strands(run, self.options.strand)))
        if self._head.problem == "regression":
            return logits_NK.numpy()
        if self._head.problem == "single_label_classification":
            log_p_NK = logits_NK.double().log_softmax(-1)
            logits_NK = log_p_NK - torch.log(-torch.expm1(log_p_NK.clamp(max=-1e-12)))
        return (logits_NK.sigmoid() if self.options.scale == "probability" else logits_NK).float().numpy()


Effects = MaskedEffects | HeadEffects


class Mutagenesis(Work):
    """The options, the regions and a model."""

    what = "mutating"
    options: MutateOptions

    def __init__(self, options: MutateOptions) -> None:
        """UserError for what can be wrong before the model is loaded."""
        super().__init__(options)
        self.regions = checked_regions(options, "effects")
        config = read_config(options.model)
        self.effects: Effects
        if is_language_model(config):
            self.effects = MaskedEffects(options, config)
        else:
            self.effects = HeadEffects(options, config, self.regions)
        self.pictures: Any = None
        if options.written(".png", ".html"):
            from megadna.downstream.region_pages import Pictures  # which imports matplotlib

            self.pictures = Pictures(options, self.regions)

    def load(self) -> None:
        """UserError where the model's tokenizer shows that something does not fit."""
        with Progress(f"loading {self.options.model}"):
            self.effects.load()

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
            self.progress.advance(piece.end - piece.start)
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

    def settings(self) -> dict[str, Any]:
        """The options, and the size of a part."""
        return super().settings() | {"tokens": MAX_PART_TOKENS}

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
            elif output.suffix == ".parquet":
                write_parquet(parts, target, self.substitutions)
            elif output.suffix == ".tsv":
                write_tsv(parts, target, self.substitutions, na_rep="nan", float_format="%.7g")
            elif output.suffix == ".bw":
                self._write_bigwigs(_whole(parts), target)
        if self.pictures:
            self.pictures.write(self.effects, self.arrays(_whole(parts)), path.parent)

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
