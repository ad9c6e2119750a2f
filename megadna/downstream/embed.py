"""Embeddings of DNA sequences by any Hugging Face encoder, as a DataFrame or a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from megadna.downstream.encoder import SequenceTokenizer, load_model, load_tokenizer, pick_device
from megadna.downstream.inputs import BASE, REGION, check_input
from megadna.downstream.options import EmbedOptions, InputOptions
from megadna.downstream.tables_out import WRITERS, fixed_vectors, held_parts, in_blocks, index_of, write_output
from megadna.downstream.windows_run import Runner
from megadna.errors import UserError
from megadna.genome.records import Stretch, divided, read_regions, read_stretches, record_lengths
from megadna.progress import Progress

MAX_BLOCK_BYTES = 1 << 23  # of outputs per nucleotide that wait to be written; the table is there up to five times
MAX_BLOCK_LETTERS = 1 << 19  # a saved part: 10 to 60 s of a small model on a CPU


def embed(model: Path | str, input: Path | str, **options: Any) -> pd.DataFrame:
    """Embeddings of every sequence of `input`, in memory; keyword arguments are the fields of EmbedOptions.

    Columns: contig, start, end, name, strand (per nucleotide: contig, position, name, strand), and `embedding`, or
    layer_N where several layers are asked for. contig is the record; name the region's of --bed, empty elsewhere.
    """
    chosen = EmbedOptions(model=str(model), input=Path(input), **options)
    check_input(chosen)
    embedder = Embedder(chosen)
    return pa.concat_tables(list(map(embedder.table, embedder.blocks()))).to_pandas()


def embed_to_file(options: EmbedOptions, bases: int | None = None) -> None:
    """What `megadna embed` does after check_files; `bases`: what check_input counts."""
    assert options.output is not None
    embedder = Embedder(options)
    name, write = options.output.name, WRITERS[options.output.suffix]
    files = [options.output, index_of(options.output)][: 2 if options.output.suffix == ".npy" else 1]
    settings = asdict(replace(options, batch_tokens=1)) | {"block": embedder.block_size}
    with (
        held_parts(options.output, settings, files) as parts,
        run_progress("embedding", bases, embedder.runner, options.strand) as progress,
    ):
        write_output(
            embedder.blocks, embedder.table, parts, lambda paths, folder: write(paths, folder / name), progress
        )


@contextmanager
def run_progress(what: str, total: int | None, runner: Runner, strand: str) -> Iterator[Progress]:
    """Progress in bases of the input, told by the runner; both strands together count as one."""
    with Progress(what, total, "bases") as progress:
        passes = 2 if strand in ("both", "apart") else 1
        runner.report = lambda bases: progress.advance(bases / passes)
        yield progress


def input_stretches(options: InputOptions, tokenizer: SequenceTokenizer, *, longest: int) -> Iterator[Stretch]:
    """The stretches that the options name; `longest`: above so many bases one is divided (0: never)."""
    if options.bed is not None:
        found = read_regions(options.input, options.bed, record_lengths(options.input))
    else:
        context, circular = tokenizer.max_bases() // 8, tuple(options.circular)
        found = read_stretches(options.input, column=options.column, circular=circular, context=context)
    return divided(found, longest=longest, window=tokenizer.window_bases, stride=tokenizer.stride)


def in_precision(model: torch.nn.Module, precision: str) -> tuple[torch.nn.Module, torch.device]:
    """The model on this rank's device in the precision asked for."""
    device = pick_device()
    bf16 = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return model.to(device=device, dtype=torch.bfloat16 if bf16 else torch.float32), device


def block_size(features: int) -> int:
    """Letters of a part, about: where each has `features` fp32 numbers, so many as MAX_BLOCK_BYTES hold."""
    return max(1, MAX_BLOCK_BYTES // (4 * features)) if features else MAX_BLOCK_LETTERS


class Embedder:
    """An encoder and the options, loaded once."""

    def __init__(self, options: EmbedOptions) -> None:
        self.options = options
        trust: Any = {"trust_remote_code": options.trust_remote_code}
        self.model, device = in_precision(load_model(options.model, **trust), options.precision)
        config: Any = self.model.config
        self.tokenizer = load_tokenizer(options.model, config, max_tokens=options.max_tokens, **trust)
        self.layers = options.layers or [-1]
        num_states = config.num_hidden_layers + 1
        for layer in self.layers:
            if not -num_states <= layer < num_states:
                raise UserError(f"--layers {layer}: {options.model} has hidden states 0 to {num_states - 1}")
        reduce: Any = {"cls": "window"}.get(options.pooling, options.pooling)
        self.width = config.hidden_size
        batch_tokens = options.batch_tokens
        self.runner = Runner(self.tokenizer, self._forward, reduce, device=device, batch_tokens=batch_tokens)
        self.block_size = block_size(self.width * len(self.layers) if options.pooling == "nucleotide" else 0)
        """Letters of a part, about."""

    def blocks(self) -> Iterator[list[Stretch]]:
        """The input in blocks that fit memory."""
        per_base = self.options.pooling == "nucleotide"
        stretches = input_stretches(self.options, self.tokenizer, longest=self.block_size if per_base else 0)
        return in_blocks(stretches, self.block_size)

    def _forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        output = self.model(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=self.layers != [-1])
        if self.layers == [-1]:
            hidden_BSF = output.last_hidden_state
        else:
            hidden_BSF = torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)
        return hidden_BSF[:, 0] if self.options.pooling == "cls" else hidden_BSF

    def table(self, stretches: list[Stretch]) -> pa.Table:
        """The rows of some stretches."""
        arrays = both_strands(self.runner, stretches, self.options.strand)
        per_base = self.options.pooling == "nucleotide"
        features = np.concatenate(arrays) if per_base else np.stack(arrays)
        columns = base_columns(stretches) if per_base else sequence_columns(stretches)
        names = ["embedding"] if len(self.layers) == 1 else [f"layer_{layer}" for layer in self.layers]
        blocks = np.split(features, len(self.layers), axis=1)
        return pa.table({**columns, **{n: fixed_vectors(b) for n, b in zip(names, blocks, strict=True)}})


def both_strands(runner: Runner, stretches: list[Stretch], strand: str) -> list[np.ndarray]:
    """Outputs in the order of the stretches' letters, for the strand asked for or the mean of both."""
    flip = slice(None, None, -1) if runner.reduce == "nucleotide" else slice(None)
    forward = runner(stretches) if strand != "reverse" else []
    backward = [array[flip] for array in runner([s.reversed() for s in stretches])] if strand != "forward" else []
    if strand == "both":
        return [(one + other) / 2 for one, other in zip(forward, backward, strict=True)]
    return forward or backward


def sequence_columns(stretches: list[Stretch]) -> dict[str, Any]:
    """contig, start, end, name (of a BED region; "" elsewhere), strand."""
    contigs, regions = names_columns(stretches)
    starts, ends = ([getattr(stretch, key) for stretch in stretches] for key in ("start", "end"))
    strands = [stretch.strand for stretch in stretches]
    return dict(zip(REGION, (contigs, starts, ends, regions, strands), strict=True))


def base_columns(stretches: list[Stretch]) -> dict[str, Any]:
    """contig, position (0-based, on the record), name, strand: a row a base, in the order of the stretch's letters."""
    sizes = [stretch.end - stretch.start for stretch in stretches]
    ways = [np.arange(s.start, s.end) if s.strand != "-" else np.arange(s.end - 1, s.start - 1, -1) for s in stretches]
    repeat = pa.array(np.repeat(np.arange(len(stretches)), sizes))
    contigs, regions = (names.take(repeat) for names in names_columns(stretches))
    strands = pa.array([s.strand for s in stretches]).take(repeat)
    return dict(zip(BASE, (contigs, np.concatenate(ways), regions, strands), strict=True))


def names_columns(stretches: list[Stretch]) -> tuple[pa.Array, pa.Array]:
    """Record and region of each stretch; "." is BED's way to say that a region has no name."""
    regions = ["" if stretch.region == "." else stretch.region for stretch in stretches]
    return pa.array([stretch.name for stretch in stretches], pa.string()), pa.array(regions, pa.string())
