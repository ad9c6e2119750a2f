"""Embeddings of DNA sequences, or of the windows of a genome, by any Hugging Face encoder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from megadna.downstream.encoder import load_model
from megadna.downstream.inference import Inference, Reduce
from megadna.downstream.inputs import check_input, windows_of
from megadna.downstream.interpretation_options import GenomeWindowOptions
from megadna.downstream.options import EmbedOptions
from megadna.downstream.outputs import WRITERS, fixed_vectors
from megadna.errors import require
from megadna.genome.records import Stretch


def embed(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Embeddings of every sequence of `input`, in memory; keyword arguments are the fields of EmbedOptions.

    Columns: contig, start, end, name, strand (per nucleotide: contig, position, name, strand), and `embedding`, or
    layer_N for each of several layers. contig is the record; name that of the BED region, else empty. The file `plot`
    is written, and replaced.
    """
    chosen = EmbedOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    embedder = Embedder(chosen)
    tables = embedder.tables()
    if embedder.picture is not None and chosen.plot is not None:
        embedder.picture.write(lambda: iter(tables), chosen.plot)
    return pa.concat_tables(tables).to_pandas()


class Embedder(Inference):
    """An encoder and the options, loaded once."""

    what = "embedding"

    def __init__(self, options: EmbedOptions | GenomeWindowOptions) -> None:
        self.picture = None
        if isinstance(options, EmbedOptions) and options.plot is not None:
            from megadna.downstream.projection import Picture  # imports scikit-learn

            self.picture = Picture(options)
        model = load_model(options.model, trust_remote_code=options.trust_remote_code)
        self.layers, num_states = options.layers or [-1], model.config.num_hidden_layers + 1
        for layer in self.layers:
            known = -num_states <= layer < num_states
            require(known, f"--layers {layer}: {options.model} has hidden states 0 to {num_states - 1}")
        reduce: Reduce = "window" if options.pooling == "cls" else options.pooling
        super().__init__(options, model, reduce, model.config.hidden_size * len(self.layers))

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Hidden states of the chosen layers, concatenated."""
        output = self.model(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=self.layers != [-1])
        if self.layers == [-1]:
            hidden_BSF = output.last_hidden_state
        else:
            hidden_BSF = torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
        return hidden_BSF[:, 0] if self.runner.reduce == "window" else hidden_BSF

    def values(self, features_NF: np.ndarray) -> dict[str, Any]:
        """A column of vectors per layer."""
        names = ["embedding"] if len(self.layers) == 1 else [f"layer_{layer}" for layer in self.layers]
        return {
            name: fixed_vectors(vectors_NH)
            for name, vectors_NH in zip(names, np.split(features_NF, len(self.layers), axis=1), strict=True)
        }

    def join(self, parts: list[Path], path: Path) -> None:
        """In the format of the file's extension; the picture beside it."""
        WRITERS[path.suffix](parts, path)
        if self.picture is not None:
            self.picture.write(lambda: map(parquet.read_table, parts), path.with_name(self.options.plot.name))


class WindowEmbedder(Embedder):
    """An encoder over the windows of a genome: the mean over the tokens of their bases, and over both strands."""

    def __init__(self, options: GenomeWindowOptions, window: int, step: int) -> None:
        super().__init__(options)
        self.window, self.step = window, step

    def settings(self) -> dict[str, Any]:
        """The options, and the windows."""
        return super().settings() | {"window": self.window, "step": self.step}

    def stretches(self) -> Iterator[Stretch]:
        """The windows that are not mostly N."""
        return windows_of(self.options, self.window, self.step)
