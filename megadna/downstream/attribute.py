"""Importance of every base for a model: tables, bigWig in genome coordinates, logos, and how far the methods agree.

In:  records of a sequence file or BED regions, none longer than the context; AttributeOptions.
Out: a row for each base: contig, position, name, strand, region (number of its sequence), base (as the model reads
     it), importance (or importance_METHOD of several), and hypothetical_A to _T if asked for. OUTPUT.sequences.tsv has
     a row for each sequence: its score, the completeness of its gradients, and the rank correlation of every two
     methods over its bases.
bigWig: one file for each method and strand, OUTPUT.METHOD.plus.bw.
Methods, and what is explained: explained.py.
"""

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from torch import Tensor

from megadna.downstream.encoder import load_model
from megadna.downstream.explained import (
    Explained,
    ExplainedBases,
    ExplainedHead,
    cls_attention,
    integrated_gradients,
    masked_log_odds,
    mutagenesis,
    normalised,
    of_true_bases,
    require_first_token,
    use_eager_attention,
)
from megadna.downstream.inference import Inference, Runner
from megadna.downstream.interpretation_options import HYPOTHETICAL, AttributeOptions
from megadna.downstream.masked_bases import MaskedBases, load_masked_bases
from megadna.downstream.outputs import base_columns, sequence_columns, write_parquet, write_tracks
from megadna.downstream.stated import (
    check_attribution,
    head_of,
    is_language_model,
    read_config,
    require_context,
    where_of,
)
from megadna.genome.records import Stretch
from megadna.log import get_logger

log = get_logger(__name__)

_ROW_NUMBERS = 20  # position, names and so on of a base take 80 bytes while its row is made
_REGIONS = b"regions"


def attribute(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Importance of every base of `input`, in memory; keyword arguments are the fields of AttributeOptions.

    Columns: contig, position, name, strand, region, base, importance (importance_METHOD of several methods).
    `attrs["sequences"]`: the rows of the table of sequences, a list of dicts.
    """
    chosen = AttributeOptions(model=str(model), input=Path(input), **options)
    check_attribution(chosen)
    return Attributor(chosen).frame()


class Attributor(Inference):
    """A model and the options, loaded once."""

    what = "attributing"
    options: AttributeOptions

    def __init__(self, options: AttributeOptions) -> None:
        stated = read_config(options.model)
        if is_language_model(stated):
            masked = load_masked_bases(options, options.precision)
            model = masked.model
        else:
            head = head_of(stated, options.model)
            model = load_model(options.model, head.auto_class, trust_remote_code=options.trust_remote_code)
        super().__init__(options, model, "nucleotide", _ROW_NUMBERS + len(options.methods))
        self.longest = 0  # no sequence is divided
        self._first = 0
        self._contributions: list[np.ndarray] = []
        device: Any = {"device": next(self.model.parameters()).device, "batch_tokens": options.batch_tokens}
        parts = self.model, self.tokenizer, options.target
        self.explained: Explained
        self._masked: MaskedBases | None = None
        if is_language_model(stated):
            self.explained = ExplainedBases(masked.tokenizer, *parts, **device)
            self._masked = None if options.target else masked
        else:
            self.explained = ExplainedHead(head, options.label, *parts, **device)
        if "attention" in options.methods:
            require_first_token(self.tokenizer.prefix)
            self._encoder = use_eager_attention(self.model)
        several = len(options.methods) > 1  # then the other methods, which take far longer, report progress
        self._reader = Runner(self.tokenizer, self.forward, "nucleotide", **device) if several else self.runner
        for stretch in self.stretches():
            most = self.tokenizer.window_bases(stretch.bases)
            require_context(where_of(stretch), len(stretch.bases), most, options.model)

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Attention from [CLS], [B, S, 1]."""
        return cls_attention(self._encoder, ids_BS, mask_BS)

    def blocks(self) -> Iterator[list[Stretch]]:
        """As Inference; counts the sequences before a block."""
        done = 0
        for block in super().blocks():
            self._first = done
            yield block
            done += len(block)

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The rows of some sequences; their rows of the table of sequences are in its metadata."""
        facts = pd.DataFrame(sequence_columns(stretches))
        found = {method: getattr(self, f"_{method}")(stretches, facts) for method in self.options.methods}
        for one, other in combinations(self.options.methods, 2):
            pairs = zip(found[one], found[other], strict=True)
            signed = "attention" not in (one, other)
            facts[f"spearman_{one}_{other}"] = [rank_correlation(a, b, signed=signed) for a, b in pairs]
        sizes = [stretch.end - stretch.start for stretch in stretches]
        columns = base_columns(stretches)
        columns["region"] = np.repeat(np.arange(self._first, self._first + len(stretches), dtype=np.int64), sizes)
        columns["base"] = list("".join(stretch.own for stretch in stretches))
        for name, method in zip(self.options.columns, self.options.methods, strict=True):
            columns[name] = np.concatenate(found[method]).astype(np.float32)
        if self.options.hypothetical:
            columns |= dict(zip(HYPOTHETICAL, np.concatenate(self._contributions).astype(np.float32).T, strict=True))
        return pa.table(columns).replace_schema_metadata(
            {_REGIONS: facts.to_json(orient="records", double_precision=15)}
        )

    def _attention(self, stretches: list[Stretch], facts: pd.DataFrame) -> list[np.ndarray]:
        return [normalised(attention_L1[:, 0]) for attention_L1 in self._reader(stretches)]

    def _gradient(self, stretches: list[Stretch], facts: pd.DataFrame) -> list[np.ndarray]:
        found = []
        for stretch in stretches:
            found.append(
                integrated_gradients(self.explained, stretch.bases, steps=self.options.steps, shift=stretch.before)
            )
            self._report(stretch)
        facts["score"] = [one.score for one in found]
        facts["baseline"], facts["delta"] = ([getattr(one, key) for one in found] for key in ("baseline", "delta"))
        return [one.importance[s.before : len(s.bases) - s.after] for one, s in zip(found, stretches, strict=True)]

    def _mutagenesis(self, stretches: list[Stretch], facts: pd.DataFrame) -> list[np.ndarray]:
        self._contributions, scores = [], []
        for stretch in stretches:
            own = range(stretch.before, len(stretch.bases) - stretch.after)
            if self._masked is not None:
                contributions_L4 = masked_log_odds(self._masked, stretch.bases, own)
            else:
                contributions_L4, score = mutagenesis(self.explained, stretch.bases, own, shift=stretch.before)
                scores.append(score)
            self._contributions.append(contributions_L4[own.start : own.stop])
            self._report(stretch)
        if scores:
            facts["score"] = scores
        pairs = zip(self._contributions, stretches, strict=True)
        return [of_true_bases(each_L4, stretch.own) for each_L4, stretch in pairs]

    def _report(self, stretch: Stretch) -> None:
        slow = [method for method in self.options.methods if method != "attention"]
        self.runner.report((stretch.end - stretch.start) / len(slow))

    def frame(self) -> pd.DataFrame:
        """The rows of the whole input, in memory."""
        tables = self.tables()
        found = pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).to_pandas()
        found.attrs["sequences"] = [row for table in tables for row in json.loads(table.schema.metadata[_REGIONS])]
        return found

    def join(self, parts: list[Path], path: Path) -> None:
        """The bases in the format of the file's extension, the table of sequences, and the logos."""
        options = self.options
        columns = dict(zip(options.methods, options.columns, strict=True))
        if path.suffix == ".bw":
            write_tracks((parquet.read_table(part).to_pandas() for part in parts), columns, path, options)
        else:
            write_parquet(parts, path)
        texts = [parquet.read_schema(part).metadata[_REGIONS] for part in parts]
        facts = pd.DataFrame([row for text in texts for row in json.loads(text)])
        facts.to_csv(path.with_suffix(".sequences.tsv"), sep="\t", index=False)
        if options.logo:
            from megadna.downstream.logos import draw_sequences

            bases = pd.concat([parquet.read_table(part).to_pandas() for part in parts], ignore_index=True)
            title = f"{Path(options.model).name}: what each base contributes to {self.explained.what}"
            content = draw_sequences(bases, columns, title, self.explained.unit)
            path.with_suffix(".png").write_bytes(content)


def rank_correlation(one_L: np.ndarray, other_L: np.ndarray, *, signed: bool) -> float:
    """Spearman's correlation over the bases where both are known; of magnitudes unless `signed`. NaN below three bases,
    or if all are equal."""
    from scipy.stats import spearmanr

    known = ~(np.isnan(one_L) | np.isnan(other_L))
    one, other = (array[known] if signed else np.abs(array[known]) for array in (one_L, other_L))
    if known.sum() < 3 or not (np.ptp(one) and np.ptp(other)):
        return float("nan")
    return float(spearmanr(one, other).statistic)
