"""A folder of genomes, processors and hours -> what to train: model size, batch, learning rate, length of the run.

In:  Genomes (megadna/planning/survey.py), the number of GPUs or CPU cores, hours.
Out: Start, with the config of the run. The model is the largest of SIZES that fits the memory and reads at least
     TOKENS_PER_PARAMETER tokens a parameter in the time and in MOST_PASSES passes over the training bases; the run is
     as long as both allow.

- 20 tokens a parameter: the best use of a given amount of computing by decoders of text (arXiv:2203.15556). Nobody has
  published the figure for encoders of DNA.
- 40 passes: DNABERT read the human genome about 30 times (120,000 steps of 2,000 sequences of 384 tokens on average),
  AIDO.DNA-7B its 10.6 billion bases 39 times (100,000 steps of 1,024 x 4,000).
- Above 4 passes, where repeated text begins to be worth less than new text (arXiv:2305.16264), there is a warning. Each
  pass hides other bases, so DNA encoders may profit from more.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from megadna.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    MaskingConfig,
    ModelConfig,
    TrainConfig,
    ValidationConfig,
)
from megadna.errors import require
from megadna.model.shapes import num_parameters, training_flops
from megadna.planning.layouts import Layout, rank_layouts
from megadna.planning.step_time import GPUS_PER_NODE, Gpu
from megadna.planning.survey import Genomes
from megadna.processes import has_bf16_instructions

TOKENS_PER_PARAMETER, MOST_PASSES, FEW_PASSES = 20, 40, 4
SHARE = 0.8
"""Share of the hours for the steps; the rest is for validation, checkpoints, the start and an error of the plan of up
to 20 %: our choice."""
LEAST_STEPS, LEAST_BATCH, LEAST_TOKENS = 5000, 8, 4000
"""The batch shrinks until the run has LEAST_STEPS steps, but never below LEAST_BATCH sequences or LEAST_TOKENS tokens:
our choice."""
FEW_STEPS = 297
"""With fewer steps there is a warning: the shortest run that was measured (docs/pretrain_your_genomes.md)."""
CORE_FLOPS = 80e9
"""FLOPs a second of a CPU core: 2,077 tokens of 38 MFLOPs in fp32 (docs/benchmarks.md, training on a CPU)."""
BF16_WIDTH = 128
"""From this width on bf16 is the faster precision on a CPU with instructions for it (docs/benchmarks.md)."""
STEP_SECONDS = 0.05
"""Overhead of a step on a CPU: tiny reaches 42,000 tokens a second on a core, where its FLOPs alone allow 80,000."""
ROWS, GPU_TOKENS, CPU_TOKENS, SHORT_TOKENS = 16, 4000, 502, 252
"""Rows of the vocabulary; tokens of a sequence on a GPU, a CPU, and there for tiny and demo. 250 and 500 bases divide a
chunk; attention over 4,000 takes a CPU long. With as many tokens a step, more and shorter sequences teach a small model
more in its first hundreds of steps (docs/pretrain_your_genomes.md)."""
SIZES = {
    "tiny": (2, 64, 2, 176, 3e-3, 4_032, 512_000),
    "demo": (4, 128, 2, 352, 2e-3, 6_048, 512_000),
    "megadna-5m": (6, 256, 4, 704, 1.5e-3, 26_000, 512_000),
    "megadna-25m": (8, 512, 8, 1376, 1e-3, 116_000, 512_000),
    "megadna-86m": (12, 768, 12, 2048, 6e-4, 512_000, 512_000),
    "aido-dna-300m": (24, 1024, 16, 2688, 5e-5, 4_096_000, 4_096_000),
    "aido-dna-7b": (32, 4352, 32, 11584, 5e-5, 4_096_000, 4_096_000),
}
"""SHAPE; peak learning rate and the tokens a step that it is for; most tokens a step. Those of configs/, in equal
ratios between them 5m and 25m, and for minutes of a CPU tiny."""
SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
LOCAL_CONTEXT: dict[str, Literal["none", "convolution", "both"]] = {
    **dict.fromkeys(("tiny", "demo"), "both"),
    **dict.fromkeys(("megadna-5m", "megadna-25m", "megadna-86m"), "convolution"),
    **dict.fromkeys(("aido-dna-300m", "aido-dna-7b"), "none"),
}
"""model.local_context of each size (docs/results.md): context tables pay in short runs."""
MUON_LR = 0.01
"""Peak rate of Muon with a size's own tokens a step, whatever the width (docs/results.md). What Muon adds to a step, a
tenth of its FLOPs for demo on one core and less for the others, fits in the room of SHARE."""
HIDDEN, WARMUP = 0.3, 0.1
"""Shares of the bases that are hidden, and of the steps in which the rate rises (docs/results.md). AIDO.DNA's sizes,
without local context, keep its 15 %, AdamW and a cosine; the warm-up is our choice for them."""


@dataclass(frozen=True)
class Start:
    """The run that fits."""

    size: str
    config: Config
    parameters: int
    """Without those of local context."""
    context_parameters: int
    """Those of local context: of its tables a base reads three rows."""
    step_tokens: int
    ratio: float
    """Tokens a parameter, local context not counted."""
    passes: float
    """Over the training bases."""
    hours: float
    """Predicted for the steps alone."""
    layout: Layout | None
    """None on a CPU."""


def choose(genomes: Genomes, num_ranks: int, hours: float, gpu: Gpu | None) -> Start:
    """The largest model that reads enough tokens, else the smallest; gpu None: on `num_ranks` CPU cores."""
    starts = [start for name in SIZES if (start := _start(name, genomes, num_ranks, hours, gpu))]
    few = f"{genomes.usable:,} usable bases are too few: read {MOST_PASSES} times they fill no step; add genomes"
    require(MOST_PASSES * genomes.train_bases >= (LEAST_BATCH * GPU_TOKENS if gpu else LEAST_TOKENS), few)
    require(bool(starts), f"--hours {hours:g} --gpus {num_ranks}: too little for one step of the smallest model")
    return next((start for start in reversed(starts) if start.ratio >= TOKENS_PER_PARAMETER), starts[0])


def peak_rate(name: str, step_tokens: int) -> float:
    """Peak learning rate of a size at `step_tokens` tokens a step, to two digits.

    With fewer tokens a step than its recipe it falls with their square root, as the noise of Adam's steps suggests
    (arXiv:2205.10287); with more it stays.
    """
    *_, lr, wanted, _ = SIZES[name]
    return float(f"{lr * math.sqrt(min(1.0, step_tokens / wanted)):.1e}")


def _start(name: str, genomes: Genomes, num_ranks: int, hours: float, gpu: Gpu | None) -> Start | None:
    """The run of one size; None where it is impossible."""
    layers, hidden, heads, ffn = map(int, SIZES[name][:4])
    plain = ModelConfig(num_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=ffn)
    model = replace(plain, local_context=LOCAL_CONTEXT[name])
    parameters, layout = num_parameters(plain, ROWS), None
    tokens = most = MOST_PASSES * genomes.train_bases
    if name != next(iter(SIZES)) and most < TOKENS_PER_PARAMETER * parameters:
        return None
    for _ in range(2):  # the batch depends on the number of steps, and their time on the batch
        config = _config(name, model, genomes, num_ranks, tokens, gpu)
        length, batch = int(config.data.sequence_length), config.train.global_batch_size
        flops = training_flops(model, ROWS, length, predicted=config.data.masking.fraction)
        seconds = flops * batch / num_ranks / CORE_FLOPS + STEP_SECONDS
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
        train=replace(config.train, steps=steps),
        checkpoint=CheckpointConfig(interval=interval),
        validation=ValidationConfig(interval=interval, samples=samples, micro_batch_size=micro),
    )
    passes, ratio, context = tokens / genomes.train_bases, tokens / parameters, num_parameters(model, ROWS) - parameters
    return Start(name, config, parameters, context, batch * length, ratio, passes, seconds * steps / 3600, layout)


def _config(name: str, model: ModelConfig, genomes: Genomes, num_ranks: int, tokens: float, gpu: Gpu | None) -> Config:
    """The run of one size without its steps; `tokens` are those that it may read."""
    most = int(SIZES[name][-1])
    bases, batch = genomes.bases, num_ranks
    length = GPU_TOKENS if gpu else SHORT_TOKENS if name in ("tiny", "demo") else CPU_TOKENS
    while batch < LEAST_BATCH or batch * length < LEAST_TOKENS or 2 * batch * length <= min(most, tokens / LEAST_STEPS):
        batch *= 2
    lr, ours = peak_rate(name, batch * length), model.local_context != "none"
    is_repeats = bases["soft_masked"] > 0.25 * bases["kept"]
    data = DataConfig(
        sequence_length=length,
        num_workers=4 if gpu else 1,
        packing=bases["kept"] / bases["contigs"] < 0.75 * length,  # short contigs: several in a row
        lower_case_weight=0.1 if is_repeats else 1.0,  # as configs/megadna-86m-soft-masked.yaml
        masking=MaskingConfig(fraction=HIDDEN if ours else MaskingConfig.fraction),
    )
    here = 1 if gpu and num_ranks > GPUS_PER_NODE else num_ranks
    engine = EngineConfig(device="cuda", num_processes=here)
    if not gpu:
        is_faster = has_bf16_instructions() and model.hidden_size >= BF16_WIDTH
        engine = EngineConfig(device="cpu", num_processes=here, precision="bf16" if is_faster else "fp32")
    train = TrainConfig(
        global_batch_size=batch,
        micro_batch_size=min(8, batch // num_ranks),
        lr=lr,
        min_lr=0.0 if ours else float(f"{lr / 10:.2g}"),
        schedule="trapezoid" if ours else "cosine",
        warmup_fraction=WARMUP,
        optimizer="muon" if ours else "adamw",
        muon_lr=float(f"{MUON_LR * lr / SIZES[name][4]:.1e}") if ours else TrainConfig.muon_lr,
    )
    return Config(data=data, model=model, engine=engine, train=train)
