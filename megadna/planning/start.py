"""A folder of genomes, processors and hours -> what to train: species, split, model size, length of the run.

The model is the largest of SIZES that fits the memory and reads at least TOKENS_PER_PARAMETER tokens a parameter in the
time and in MOST_PASSES passes over the training bases; the run is as long as both allow.

- 20 tokens a parameter: the best use of a given amount of computing by decoders of text (arXiv:2203.15556). Nobody has
  published the figure for encoders of DNA.
- 40 passes: DNABERT read the human genome about 30 times (120,000 steps of 2,000 sequences of 384 tokens on average),
  AIDO.DNA-7B its 10.6 billion bases 39 times (100,000 steps of 1,024 x 4,000).
- Above 4 passes, where repeated text begins to be worth less than new text (arXiv:2305.16264), there is a warning. Each
  pass hides other bases, so DNA encoders may bear more.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megadna.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    ModelConfig,
    TrainConfig,
    ValidationConfig,
)
from megadna.data.inputs import SourceFile, find_sources, table_format
from megadna.data.options import PreprocessOptions
from megadna.data.pieces import Recipe, stream_pieces
from megadna.errors import require
from megadna.genome.contigs import contig_filter
from megadna.genome.letters import storage_table
from megadna.model.flops import num_parameters, training_flops
from megadna.planning.hardware import GPUS_PER_NODE, Gpu
from megadna.planning.layouts import Layout, rank_layouts
from megadna.progress import tracked

TOKENS_PER_PARAMETER, MOST_PASSES, FEW_PASSES = 20, 40, 4
SHARE = 0.8
"""Of the hours, for the steps: ours, for validation, checkpoints, the start, and a planner that errs by up to 20 %."""
LEAST_STEPS = 5000
"""The batch shrinks until the run has so many steps: ours."""
CORE_FLOPS = 80e9
"""FLOPs a second of a CPU core in fp32: 2,077 tokens of 38 MFLOPs (docs/benchmarks.md, training on a CPU)."""
ROWS, GPU_TOKENS, CPU_TOKENS = 16, 4000, 502
"""Rows of the vocabulary; tokens of a sequence. 500 bases divide a chunk; attention over 4,000 takes a CPU long."""
HELD_OUT_BASES = 200 * 4000
"""Of each split, so that bits per base have a standard error below 0.004 (data/finish.py)."""
SIZES = {
    "demo": (4, 128, 2, 352, 2e-3, 512_000),
    "megadna-5m": (6, 256, 4, 704, 1.5e-3, 512_000),
    "megadna-25m": (8, 512, 8, 1376, 1e-3, 512_000),
    "megadna-86m": (12, 768, 12, 2048, 6e-4, 512_000),
    "aido-dna-300m": (24, 1024, 16, 2688, 5e-5, 4_096_000),
    "aido-dna-7b": (32, 4352, 32, 11584, 5e-5, 4_096_000),
}
"""SHAPE, peak learning rate, most tokens a step: those of configs/, and between them 5m and 25m."""
SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")

_BINOMIAL = re.compile(rb"\S+ ([A-Z][a-z]{2,} [a-z]{3,})\b")
_ENSEMBL = re.compile(r"([A-Z][a-z]{2,})_([a-z]{3,})[._]")
_TRANSCRIPTS = re.compile(r"(^|[._])(cds|cdna|ncrna|rna|transcripts?)([._]|$)", re.I)


@dataclass(frozen=True)
class Genomes:
    """What a folder holds."""

    rows: list[tuple[str, str, str]]
    """Absolute path, name and species ("" unknown) of each file."""
    bases: Counter[str]
    """Bases `kept`, and left out by reason; `n` and `soft_masked` among both; number of `contigs`."""
    transcripts: list[str]
    """Files left out because their names say that they hold transcripts."""

    @property
    def held_out(self) -> float:
        """Share for validation, and again for testing: HELD_OUT_BASES, from 1 % to a tenth."""
        return min(0.1, max(0.01, math.ceil(100 * HELD_OUT_BASES / self.bases["kept"]) / 100))

    @property
    def train_bases(self) -> float:
        """Bases that are neither held out nor N."""
        return max(1, self.bases["kept"] - self.bases["n"]) * (1 - 2 * self.held_out)

    @property
    def are_related(self) -> bool:
        """Whether two files are of one species, so that a region held out of one may stand in the other."""
        species = [species for *_, species in self.rows if species]
        return len(set(species)) < len(species)


def survey(folder: Path) -> Genomes:
    """Read every FASTA file of `folder` as `megadna preprocess` will; UserError where there is nothing to train on."""
    require(not folder.is_file(), f"{folder}: is a file; name the folder that holds it")
    require(folder.is_dir(), f"{folder}: no such folder; name the one that holds the FASTA files")
    options = PreprocessOptions(input=[folder], output=folder)
    found, _ = find_sources(options)
    transcripts = [source.path.name for source in found if _TRANSCRIPTS.search(source.name)]
    sources = [source for source in found if source.path.name not in transcripts]
    require(bool(sources), f"{folder}: no genome, only transcripts by their names ({', '.join(transcripts[:3])})")
    bases: Counter[str] = Counter()
    rows = [_read(source, options, bases) for source in tracked(sources, "reading", len(sources), "files")]
    require(bases["kept"] > 0, f"{folder}: no base is left to train on; every contig is empty or left out")
    return Genomes(rows, bases, transcripts)


def _read(source: SourceFile, options: PreprocessOptions, bases: Counter[str]) -> tuple[str, str, str]:
    """Count the bases of one file; its row of the sample sheet.

    Species: of a file name as Ensembl's, or the two words behind the accession, as NCBI and ENA write them.
    """
    recipe = Recipe(table_format(options), storage_table(ambiguous=options.ambiguous, uracil=options.uracil))
    select, header, reason = contig_filter(options.contigs, source.path), b"", None
    for piece, _ in stream_pieces(source, recipe, recipe.scanner()):
        header = header or next(iter(piece.headers), b"")
        reasons = [reason, *select.reasons(piece.headers)]
        for reason, size in zip(reasons, np.diff([0, *piece.positions, piece.size]), strict=True):
            bases[reason or "kept"] += int(size)
        bases.update(n=piece.counts.n, soft_masked=piece.counts.soft_masked, contigs=len(piece.headers))
    named, told = _ENSEMBL.match(source.path.name), _BINOMIAL.match(header)
    species = " ".join(named.groups()) if named else told.group(1).decode() if told else ""
    return str(source.path.absolute()), source.name, species


@dataclass(frozen=True)
class Start:
    """The run that fits."""

    size: str
    config: Config
    parameters: int
    step_tokens: int
    ratio: float
    """Tokens a parameter."""
    passes: float
    """Over the training bases."""
    hours: float
    """Predicted for the steps alone."""
    layout: Layout | None
    """None on a CPU."""


def choose(genomes: Genomes, num_ranks: int, hours: float, gpu: Gpu | None) -> Start:
    """The largest model that gets its tokens, else the smallest; gpu None: on `num_ranks` CPU cores."""
    starts = [start for name in SIZES if (start := _start(name, genomes, num_ranks, hours, gpu))]
    require(bool(starts), f"--hours {hours:g} --gpus {num_ranks}: too little for one step of the smallest model")
    return next((start for start in reversed(starts) if start.ratio >= TOKENS_PER_PARAMETER), starts[0])


def _start(name: str, genomes: Genomes, num_ranks: int, hours: float, gpu: Gpu | None) -> Start | None:
    """The run of one size; None where it cannot be."""
    layers, hidden, heads, ffn, *_ = map(int, SIZES[name])
    model = ModelConfig(num_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn)
    parameters, layout = num_parameters(model, ROWS), None
    tokens = most = MOST_PASSES * genomes.train_bases
    if name != "demo" and most < TOKENS_PER_PARAMETER * parameters:
        return None
    for _ in range(2):  # the batch depends on the number of steps, and their time on the batch
        config = _config(name, model, genomes, num_ranks, tokens, gpu)
        length, batch = int(config.data.sequence_length), config.train.global_batch_size
        flops = training_flops(model, ROWS, length, predicted=config.data.masking.fraction)
        seconds = flops * batch / num_ranks / CORE_FLOPS
        if gpu:
            layout = rank_layouts(config, ROWS, length, num_ranks, gpu)[0]
            config, seconds = layout.config, layout.time.seconds
            if config.parallel.model_size == num_ranks:  # nothing to overlap
                alone = replace(config.parallel, overlap_grad_reduce=False, overlap_param_gather=False)
                config = replace(config, parallel=alone)
        steps = int(min(hours * 3600 * SHARE / seconds, most / (batch * length)))
        tokens = steps * batch * length
    if steps < 1 or (layout and not layout.fits):
        return None
    interval, micro = max(1, min(1000, steps // 20)), config.train.micro_batch_size
    samples = max(16, min(512, int(0.15 * interval * batch)))  # forward alone: a twentieth of the time
    config = replace(
        config,
        train=replace(config.train, steps=steps, warmup_steps=min(2000, steps // 50)),
        checkpoint=CheckpointConfig(interval=interval),
        validation=ValidationConfig(interval=interval, samples=samples, micro_batch_size=micro),
    )
    passes, ratio = tokens / genomes.train_bases, tokens / parameters
    return Start(name, config, parameters, batch * length, ratio, passes, seconds * steps / 3600, layout)


def _config(name: str, model: ModelConfig, genomes: Genomes, num_ranks: int, tokens: float, gpu: Gpu | None) -> Config:
    """The run of one size without its steps; `tokens` are those that it may read."""
    *_, lr, most = SIZES[name]
    bases, length, batch = genomes.bases, GPU_TOKENS if gpu else CPU_TOKENS, num_ranks
    while 2 * batch * length <= min(most, tokens / LEAST_STEPS):
        batch *= 2
    is_repeats = bases["soft_masked"] > 0.25 * bases["kept"]
    data = DataConfig(
        sequence_length=length,
        num_workers=4 if gpu else 1,
        packing=bases["kept"] / bases["contigs"] < 0.75 * length,  # short contigs: several in a row
        lower_case_weight=0.1 if is_repeats else 1.0,  # as configs/megadna-86m-soft-masked.yaml
    )
    here = 1 if gpu and num_ranks > GPUS_PER_NODE else num_ranks
    engine = EngineConfig(device="cuda", num_processes=here)
    if not gpu:
        engine = EngineConfig(device="cpu", num_processes=here, precision="fp32")
    train = TrainConfig(global_batch_size=batch, micro_batch_size=min(8, batch // num_ranks), lr=lr, min_lr=lr / 10)
    return Config(data=data, model=model, engine=engine, train=train)
