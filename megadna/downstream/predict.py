"""A fine-tuned model over sequences, BED regions or a whole genome: tables, BED, or bigWig in genome coordinates.

A model of sequences gives a row a sequence, a region, or a sliding window of a genome; one of nucleotides a row a base.
Columns: where (as in `megadna embed`), strand, label (the most probable class) and a column of probabilities (or
numbers) for each name. Sequences longer than the context: logits are averaged over windows, bases merged as embeddings.
bigWig: a file for each name and strand, OUTPUT.NAME.plus.bw; where windows overlap, each fills the `step` bases in its
middle.
"""

import shutil
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
    input_bases,
    input_stretches,
    run_progress,
    sequence_columns,
)
from megadna.downstream.encoder import load_config, load_model, load_tokenizer
from megadna.downstream.options import PredictOptions
from megadna.downstream.sequences import Stretch, record_lengths, sliding_stretches
from megadna.downstream.tables_out import in_blocks, join_parts, write_parquet, write_parts
from megadna.downstream.windows_run import Runner
from megadna.errors import UserError, require

_STRANDS = {"+": "plus", "-": "minus", ".": "plus"}


def predict(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Predictions for every sequence of `input`, in memory; keyword arguments are the fields of PredictOptions."""
    predictor = Predictor(PredictOptions(model=str(model), input=Path(input), **options))
    return pa.concat_tables(list(map(predictor.table, predictor.blocks()))).to_pandas()


def predict_to_file(options: PredictOptions) -> list[Path]:
    """What `megadna predict` does; the files that it wrote."""
    options.check_files()
    assert options.output is not None
    total = _bases_to_predict(options)
    predictor = Predictor(options)
    require(
        options.output.suffix != ".bed" or not predictor.per_base,
        f"{options.output}: a model of nucleotides writes .parquet or .bw",
    )
    with run_progress("predicting", total, predictor.runner, options.strand) as progress:
        settings = asdict(replace(options, batch_tokens=1)) | {"block": predictor.block_size}
        parts = write_parts(predictor.blocks(), predictor.table, options.output, settings, progress)
    if parts and options.output.suffix == ".bw":
        return _write_bigwigs(parts, predictor, options.output)
    join_parts(parts, options.output, write_parquet if options.output.suffix == ".parquet" else predictor.write_bed)
    return [options.output]


def _bases_to_predict(options: PredictOptions) -> int | None:
    """Bases of all windows or records; a ring may have some windows more."""
    if not options.window:
        return input_bases(options)
    step = options.step or options.window
    sizes = record_lengths(options.input, options.column).values()
    return sum(min(size, options.window) * (1 + -(-max(0, size - options.window) // step)) for size in sizes)


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
        self.problem = config.problem_type or (
            "regression" if config.num_labels == 1 else "single_label_classification"
        )
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
            require(options.bed is None, "--window slides over a whole genome; leave out --bed")
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
            best = values.nan_to_num(-1).argmax(-1).tolist()
            columns["label"] = pa.array([self.names[number] for number in best])
        elif self.problem == "multi_label_classification":
            values = values.sigmoid()
        return pa.table({**columns, **{name: values[:, place].numpy() for place, name in enumerate(self.names)}})

    def write_bed(self, parts: list[Path], path: Path) -> None:
        """contig, start, end, label (of numbers: the value), score (probability x 1000), strand."""
        with path.open("w", encoding="utf-8") as file:
            for part in parts:
                table = parquet.read_table(part).to_pandas()
                best = table[self.names].max(axis=1)
                label = table["label"] if "label" in table else best.map("{:.6g}".format)
                score = (1000 * best).round().clip(0, 1000).astype(int) if self.problem != "regression" else 0
                rows = pd.DataFrame(
                    {"c": table["name"], "s": table["start"], "e": table["end"], "l": label, "v": score}
                )
                rows.assign(strand=table["strand"]).to_csv(file, sep="\t", header=False, index=False)


def _write_bigwigs(parts: list[Path], predictor: Predictor, output: Path) -> list[Path]:
    """A file for each name and strand, written part by part; all of them get their names at the end."""
    import pyBigWig

    sizes = record_lengths(predictor.options.input, predictor.options.column)
    order = {name: number for number, name in enumerate(sizes)}
    files: dict[Path, Any] = {}
    last: dict[str, tuple[int, int]] = {}
    for part in parts:
        table = _places(parquet.read_table(part).to_pandas(), predictor).assign(order=lambda t: t["name"].map(order))
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
            for name in predictor.names:
                place = output.with_name(f".{output.stem}.{name}.{sign}.bw")
                if place not in files:
                    files[place] = pyBigWig.open(str(place), "w")
                    files[place].addHeader(list(sizes.items()))
                known = rows[rows[name].notna() & (rows["end"] > rows["start"])]
                columns = [known[key].tolist() for key in ("name", "start", "end")]
                values = known[name].astype(float).tolist()
                files[place].addEntries(columns[0], columns[1], ends=columns[2], values=values)
    for place, file in files.items():
        file.close()
        place.rename(place.with_name(place.name.removeprefix(".")))
    shutil.rmtree(parts[0].parent)
    return [place.with_name(place.name.removeprefix(".")) for place in files]


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
