"""A fine-tuned model over sequences, BED regions or a whole genome: tables, BED, or bigWig in genome coordinates.

A model of sequences gives a row a sequence, a region, or a sliding window of a genome; one of nucleotides a row a base.
Columns: those of `megadna embed`, label (the most probable class) and a column for each name: p_NAME of probabilities,
value_NAME of numbers. Sequences longer than the context: logits are averaged over windows, bases merged as embeddings.
BED: name of the region (label, where it has none), score, strand, and in column 7 the label or the numbers.
bigWig: a file for each name and strand, OUTPUT.NAME.plus.bw; where windows overlap, each fills the `step` bases in its
middle.
"""

import csv
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from megadna.downstream.embed import (
    MAX_BLOCK_LETTERS,
    base_columns,
    block_size,
    both_strands,
    in_precision,
    input_stretches,
    run_progress,
    sequence_columns,
)
from megadna.downstream.encoder import load_config, load_model, load_tokenizer
from megadna.downstream.inputs import check_input, file_names, require_names, value_columns
from megadna.downstream.options import PredictOptions
from megadna.downstream.tables_out import held_parts, in_blocks, write_output, write_parquet
from megadna.downstream.windows_run import Runner
from megadna.errors import UserError, require
from megadna.genome.records import Stretch, record_lengths, sliding_stretches

_STRANDS = {"+": "plus", "-": "minus", ".": "plus"}


def predict(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Predictions for every sequence of `input`, in memory; keyword arguments are the fields of PredictOptions."""
    chosen = PredictOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    predictor = Predictor(chosen)
    return pa.concat_tables(list(map(predictor.table, predictor.blocks()))).to_pandas()


def predict_to_file(options: PredictOptions, bases: int | None = None) -> list[Path]:
    """What `megadna predict` does after check_files; the files that it wrote. `bases`: what check_input counts."""
    assert options.output is not None
    predictor = Predictor(options)
    require(
        options.output.suffix != ".bed" or not predictor.per_base,
        f"{options.output}: a model of nucleotides writes .parquet or .bw",
    )
    output, files = options.output, [options.output]
    if output.suffix == ".bw":
        files = list(bigwig_files(predictor.names, output).values())

    def write(paths: list[Path], folder: Path) -> None:
        if output.suffix == ".bw":
            _write_bigwigs(paths, predictor, folder)
        elif output.suffix == ".bed":
            predictor.write_bed(paths, folder / output.name)
        else:
            write_parquet(paths, folder / output.name)

    settings = asdict(replace(options, batch_tokens=1)) | {"block": predictor.block_size}
    with (
        held_parts(output, settings, files) as parts,
        run_progress("predicting", bases, predictor.runner, options.strand) as progress,
    ):
        return write_output(predictor.blocks, predictor.table, parts, write, progress)


class Predictor:
    """A fine-tuned model and the options, loaded once."""

    def __init__(self, options: PredictOptions) -> None:
        self.options = options
        trust: Any = {"trust_remote_code": options.trust_remote_code}
        config = load_config(options.model, **trust)
        architecture = " ".join([*(config.architectures or []), *(getattr(config, "auto_map", None) or {})])
        self.per_base = "TokenClassification" in architecture
        if not self.per_base and "SequenceClassification" not in architecture:
            raise UserError(
                f"{options.model}: no fine-tuned model of sequences or nucleotides (megadna finetune makes one), but "
                f"{architecture}"
            )
        tokenizer = load_tokenizer(options.model, config, max_tokens=options.max_tokens, **trust)
        auto_class = f"AutoModelFor{'Token' if self.per_base else 'Sequence'}Classification"
        self.model, device = in_precision(load_model(options.model, auto_class, **trust), options.precision)
        self.names = [str(config.id2label[number]) for number in range(config.num_labels)]
        require_names(self.names, f"{options.model}: id2label of its config.json")
        self.problem = config.problem_type or (
            "regression" if config.num_labels == 1 else "single_label_classification"
        )
        self.columns = value_columns(self.names, is_regression=self.problem == "regression")
        self.tokenizer = tokenizer
        reduce: Any = "nucleotide" if self.per_base else "window"
        self.runner = Runner(tokenizer, self._forward, reduce, device=device, batch_tokens=options.batch_tokens)
        # per base: 4 B a name, and 60 of what stands beside it (position, name, label) while it is made
        self.block_size = block_size(15 + len(self.names)) if self.per_base else MAX_BLOCK_LETTERS

    def _forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        return self.model(input_ids=ids_BS, attention_mask=mask_BS).logits

    def blocks(self) -> Iterator[list[Stretch]]:
        """The input in blocks that fit memory."""
        options = self.options
        if options.window:
            require(not self.per_base, "--window is for models of sequences; this one predicts every nucleotide")
            step, circular = options.step or options.window, tuple(options.circular)
            return in_blocks(sliding_stretches(options.input, options.window, step, circular), self.block_size)
        # the rows of a minus-strand region go down; within one part they are sorted for a bigWig
        sorted_parts = options.bed is not None and options.output is not None and options.output.suffix == ".bw"
        longest = self.block_size if self.per_base and not sorted_parts else 0
        return in_blocks(input_stretches(options, self.tokenizer, longest=longest), self.block_size)

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The rows of some stretches."""
        if self.options.strand == "apart":
            forward = [replace(s, strand="+") if s.strand == "." else s for s in stretches]
            return pa.concat_tables([self._table(forward, "forward"), self._table(forward, "reverse")])
        return self._table(stretches, self.options.strand)

    def _table(self, stretches: list[Stretch], strand: str) -> pa.Table:
        logits = both_strands(self.runner, stretches, strand)
        logits_NC = np.concatenate(logits) if self.per_base else np.stack(logits)
        columns = base_columns(stretches) if self.per_base else sequence_columns(stretches)
        if strand == "reverse":
            turned = {"+": "-", "-": "+", ".": "-"}
            columns["strand"] = pa.array([turned[str(sign)] for sign in columns["strand"]])
        values = torch.from_numpy(logits_NC)
        if self.problem == "single_label_classification":
            values = values.softmax(-1)
            best = torch.where(values.isnan().any(-1), -1, values.argmax(-1)).tolist()
            columns["label"] = pa.array([self.names[number] if number >= 0 else None for number in best], pa.string())
        elif self.problem == "multi_label_classification":
            values = values.sigmoid()
        return pa.table({**columns, **{key: values[:, place].numpy() for place, key in enumerate(self.columns)}})

    def write_bed(self, parts: list[Path], path: Path) -> None:
        """contig, start, end, name, score (probability of the label x 1000; of numbers 0), strand, label.

        name: the region's, the label where it has none. label: the most probable class or label, or the numbers with
        commas between.
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


def bigwig_files(names: list[str], output: Path) -> dict[tuple[str, str], Path]:
    """The file of each name and strand (plus, minus)."""
    signs = sorted(set(_STRANDS.values()))
    parts = file_names(names, f"{output.stem}.{{}}.minus.bw")
    return {
        (name, sign): output.with_name(f"{output.stem}.{parts[name]}.{sign}.bw") for name in names for sign in signs
    }


def _write_bigwigs(parts: list[Path], predictor: Predictor, folder: Path) -> None:
    """A file for each name and strand, written part by part."""
    import pyBigWig

    output = predictor.options.output
    assert output is not None
    sizes = record_lengths(predictor.options.input, predictor.options.column)
    order = {name: number for number, name in enumerate(sizes)}
    paths = bigwig_files(predictor.names, output)
    files: dict[Path, Any] = {}
    last: dict[str, tuple[int, int]] = {}
    for part in parts:
        table = _places(parquet.read_table(part).to_pandas(), predictor).assign(order=lambda t: t["contig"].map(order))
        for sign, rows in table.sort_values(["order", "start"]).groupby(table["strand"].map(_STRANDS)):
            orders, starts, ends = (rows[key].to_numpy() for key in ("order", "start", "end"))
            before = last.get(sign, (0, 0))
            same = np.append(before[0], orders[:-1]) == orders
            behind = np.where(same, np.append(before[1], ends[:-1]), 0)
            if not predictor.options.window:
                clear = (starts >= behind).all() and orders[0] >= before[0]
                require(clear, f"{output}: a bigWig needs regions that are sorted and do not overlap; use .parquet")
            last[sign] = int(orders[-1]), int(ends[-1])
            rows = rows.assign(start=np.maximum(starts, behind))
            for name, key in zip(predictor.names, predictor.columns, strict=True):
                path = folder / paths[name, str(sign)].name
                if path not in files:
                    files[path] = pyBigWig.open(str(path), "w")
                    files[path].addHeader(list(sizes.items()))
                known = rows[rows[key].notna() & (rows["end"] > rows["start"])]
                columns = [known[column].tolist() for column in ("contig", "start", "end")]
                values = known[key].astype(float).tolist()
                files[path].addEntries(columns[0], columns[1], ends=columns[2], values=values)
    for file in files.values():
        file.close()


def _places(table: pd.DataFrame, predictor: Predictor) -> pd.DataFrame:
    """start and end of what each row's value fills."""
    if predictor.per_base:
        return table.assign(start=table["position"], end=table["position"] + 1)
    options = predictor.options
    if not options.window:
        return table
    step = options.step or options.window
    middle = table["start"] + (options.window - step) // 2
    return table.assign(start=middle, end=np.minimum(middle + step, table["end"]))
