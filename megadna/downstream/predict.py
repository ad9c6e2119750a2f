"""A fine-tuned model over sequences, BED regions or a whole genome: tables, BED, or bigWig in genome coordinates.

A sequence model gives one row per sequence, region, or sliding window of a genome; a nucleotide model one per base.
Columns: those of `megadna embed`, label (the most probable class) and a column for each name: p_NAME of probabilities,
value_NAME of numbers. Sequences longer than the context: logits are averaged over windows, bases merged as embeddings.
BED: name of the region (else the label), score, strand, and in column 7 the label or the numbers.
bigWig: one file for each name and strand, OUTPUT.NAME.plus.bw; if windows overlap, each fills the `step` bases in its
middle.
"""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from megadna.downstream.encoder import load_config, load_model
from megadna.downstream.inference import Inference
from megadna.downstream.inputs import bigwig_files, check_input, value_columns
from megadna.downstream.options import PredictOptions
from megadna.downstream.outputs import write_parquet, write_tracks
from megadna.downstream.stated import head_of, read_config
from megadna.errors import require
from megadna.genome.records import Stretch, sliding_stretches

_OPPOSITE = {"+": "-", "-": "+", ".": "-"}
_ROW_NUMBERS = 15  # position, name, label and so on of a base take 60 bytes while its row is made


def predict(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Predictions for every sequence of `input`, in memory; keyword arguments are the fields of PredictOptions."""
    chosen = PredictOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    return Predictor(chosen).frame()


class Predictor(Inference):
    """A fine-tuned model and the options, loaded once."""

    what = "predicting"
    options: PredictOptions

    def __init__(self, options: PredictOptions) -> None:
        trust: Any = {"trust_remote_code": options.trust_remote_code}
        load_config(options.model, **trust)  # refuses a folder that leads to other files
        head = head_of(read_config(options.model), options.model)
        self.names, self.problem, per_base = head.names, head.problem, head.per_base
        self.columns = value_columns(self.names, is_regression=self.problem == "regression")
        model = load_model(options.model, head.auto_class, **trust)
        reduce: Any = "nucleotide" if per_base else "window"
        super().__init__(options, model, reduce, _ROW_NUMBERS + len(self.names))
        if options.bed is not None and options.written(".bw"):
            self.longest = 0  # positions of a minus-strand region descend, and only one part is sorted for a bigWig

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """The logits."""
        return self.model(input_ids=ids_BS, attention_mask=mask_BS).logits

    def stretches(self) -> Iterator[Stretch]:
        """Sliding windows, or as for embeddings."""
        options = self.options
        if options.window:
            require(not self.per_base, "--window is for models of sequences; this one predicts every nucleotide")
            step, circular = options.step or options.window, tuple(options.circular)
            return sliding_stretches(options.input, options.window, step, circular)
        return super().stretches()

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The rows of some stretches; `apart`: those of the forward strand, then those of the reverse."""
        if self.options.strand != "apart":
            return super().table(stretches)
        forward = [replace(s, strand="+") if s.strand == "." else s for s in stretches]
        return pa.concat_tables([self.rows(forward, "forward"), self.rows(forward, "reverse")])

    def rows(self, stretches: list[Stretch], strand: str) -> pa.Table:
        """Rows whose column strand is the strand that was read."""
        table = super().rows(stretches, strand)
        if strand != "reverse":
            return table
        read = pa.array([_OPPOSITE[sign] for sign in table["strand"].to_pylist()])
        return table.set_column(table.column_names.index("strand"), "strand", read)

    def values(self, features_NF: np.ndarray) -> dict[str, Any]:
        """label (of classes: the most probable, null if there is no prediction), and a column for each name."""
        columns: dict[str, Any] = {}
        values_NC = torch.from_numpy(features_NF)
        if self.problem == "single_label_classification":
            values_NC = values_NC.softmax(-1)
            best = torch.where(values_NC.isnan().any(-1), -1, values_NC.argmax(-1)).tolist()
            columns["label"] = pa.array([self.names[number] if number >= 0 else None for number in best], pa.string())
        elif self.problem == "multi_label_classification":
            values_NC = values_NC.sigmoid()
        return {**columns, **dict(zip(self.columns, values_NC.numpy().T, strict=True))}

    def files(self) -> list[Path]:
        """The output, or a bigWig file for each name and strand."""
        output = self.options.output
        assert output is not None
        table_only = output.suffix == ".bed" and self.per_base
        require(not table_only, f"{output}: a nucleotide model writes .parquet or .bw")
        return list(bigwig_files(self.names, output).values()) if output.suffix == ".bw" else [output]

    def join(self, parts: list[Path], path: Path) -> None:
        """In the format of the file's extension."""
        {".parquet": write_parquet, ".bed": self._write_bed, ".bw": self._write_bigwigs}[path.suffix](parts, path)

    def _write_bed(self, parts: list[Path], path: Path) -> None:
        """contig, start, end, name, score (probability of the label x 1000; of numbers 0), strand, label.

        name: that of the region, else the label. label: the most probable class or label, or the numbers separated by
        commas.
        """
        with path.open("w", encoding="utf-8", newline="") as file:
            for part in parts:
                table = parquet.read_table(part).to_pandas()
                values = table[self.columns]
                if self.problem == "regression":
                    label, score = values.map("{:.6g}".format).agg(",".join, axis=1), 0
                else:
                    best = values.fillna(-1).to_numpy().argmax(axis=1)
                    label = pd.Series(np.array(self.names, object)[best], table.index)
                    label = label.where(values.notna().all(axis=1), ".")
                    score = (1000 * values.max(axis=1).fillna(0)).round().clip(0, 1000).astype(int)
                name = table["name"].where(table["name"] != "", label)
                rows = table[["contig", "start", "end"]].assign(name=name, score=score)
                rows = rows.assign(strand=table["strand"], label=label)
                rows.to_csv(file, sep="\t", header=False, index=False, quoting=csv.QUOTE_NONE, lineterminator="\n")

    def _write_bigwigs(self, parts: list[Path], path: Path) -> None:
        """A file for each name and strand."""
        tables = (self._middles(parquet.read_table(part).to_pandas()) for part in parts)
        write_tracks(tables, dict(zip(self.names, self.columns, strict=True)), path, self.options)

    def _middles(self, table: pd.DataFrame) -> pd.DataFrame:
        """With the start and end of the `step` bases in the middle of each window; as it is without windows."""
        options = self.options
        if not options.window:
            return table
        step = options.step or options.window
        middle = table["start"] + (options.window - step) // 2
        return table.assign(start=middle, end=np.minimum(middle + step, table["end"]))
