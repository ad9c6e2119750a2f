"""Prints docs/planning.md's table: what the planner predicts beside what others measured and published.

    python tools/planning_table.py [--fit]

--fit searches the three constants of megadna/planning/step_time.py that are fitted to the rows marked so.
"""

import argparse
import itertools
import math
import sys
from dataclasses import dataclass, replace

from megadna.config import Config, DataConfig, MaskingConfig, ModelConfig, ParallelConfig, TrainConfig
from megadna.model.shapes import training_flops
from megadna.planning import step_time as model_of_time
from megadna.planning.step_time import GPUS

MEGATRON = "Megatron-LM images/model_table.png"
ESM2 = "BioNeMo docs/docs/models/ESM-2"
SHARES = [round(0.5 + 0.02 * i, 2) for i in range(24)]


@dataclass(frozen=True)
class Row:
    """One published run."""

    name: str
    source: str
    model: ModelConfig
    vocab_rows: int
    length: int
    gpu: str
    num_gpus: int
    batch: int
    published: float
    """TFLOP/s a GPU, full attention counted."""
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    micro: int = 1
    causal: bool = False
    fitted: bool = False
    note: str = ""


def gpt(heads: int, hidden: int, layers: int) -> ModelConfig:
    """A GPT of Megatron-LM's table."""
    return ModelConfig(
        num_layers=layers, hidden_size=hidden, num_attention_heads=heads, ffn_hidden_size=4 * hidden, activation="gelu"
    )


def esm2(heads: int, hidden: int, layers: int) -> ModelConfig:
    """An ESM-2 encoder."""
    return gpt(heads, hidden, layers)


def megatron(size: str, shape: tuple, tensor: int, pipeline: int, gpus: int, batch: int, tflops: float) -> Row:
    """A row of Megatron-LM's table: S 4096, V 131072, micro-batch 1; chunks per stage are not stated."""
    per_stage = shape[2] // pipeline
    virtual = next((v for v in range(2, per_stage + 1) if per_stage % v == 0), 1) if pipeline > 1 else 1
    return Row(
        f"GPT {size}", MEGATRON, gpt(*shape), 131072, 4096, "h100", gpus, batch, tflops,
        tensor=tensor, pipeline=pipeline, virtual=virtual, causal=True, fitted=True,
    )  # fmt: skip


def rate(tokens_per_second: float, model: ModelConfig, vocab_rows: int, length: int) -> float:
    """TFLOP/s of one GPU at a published rate of tokens."""
    return tokens_per_second * training_flops(model, vocab_rows, length) / length / 1e12


AIDO = ModelConfig(num_layers=32, hidden_size=4352, num_attention_heads=32, ffn_hidden_size=11584)
LLAMA = ModelConfig(
    num_layers=32, hidden_size=4096, num_attention_heads=32, num_query_groups=8, ffn_hidden_size=14336,
    normalization="rmsnorm", linear_bias=False,
)  # fmt: skip
E650, E3B, E15B = esm2(20, 1280, 33), esm2(40, 2560, 36), esm2(40, 5120, 48)
ROWS = [
    megatron("1.7B", (16, 2048, 24), 1, 1, 48, 192, 408.8),
    megatron("7.1B", (32, 4096, 30), 2, 1, 96, 192, 465.9),
    megatron("16B", (48, 6144, 32), 4, 1, 192, 192, 489.1),
    megatron("32B", (56, 7168, 48), 8, 1, 384, 192, 459.6),
    megatron("70B", (64, 8192, 84), 8, 2, 768, 384, 419.7),
    megatron("119B", (80, 10240, 92), 8, 4, 1536, 768, 420.5),
    megatron("177B", (96, 12288, 96), 8, 6, 2304, 1152, 432.8),
    megatron("314B", (128, 16384, 96), 8, 8, 3072, 1536, 474.4),
    megatron("462B", (144, 18432, 112), 8, 16, 6144, 3072, 459.9),
    Row("ESM-2 650M", ESM2, E650, 128, 1024, "h100", 16, 16 * 32, rate(95871, E650, 128, 1024), micro=32),
    Row("ESM-2 650M", ESM2, E650, 128, 1024, "a100-80", 16, 16 * 32, rate(42667, E650, 128, 1024), micro=32,
        fitted=True),
    Row("ESM-2 3B", ESM2, E3B, 128, 1024, "h100", 16, 16 * 16, rate(26801, E3B, 128, 1024), micro=16),
    Row("ESM-2 3B", ESM2, E3B, 128, 1024, "a100-80", 16, 16 * 16, rate(11000, E3B, 128, 1024), micro=16),
    Row("ESM-2 15B", ESM2, E15B, 128, 1024, "h100", 64, 64 * 4, rate(4159, E15B, 128, 1024), micro=8, tensor=4),
    Row("ESM-2 15B", ESM2, E15B, 128, 1024, "a100-80", 64, 64 * 4, rate(1940, E15B, 128, 1024), micro=8, tensor=4),
    Row("Llama 7B", "OpenGenome2 README", LLAMA, 512, 8192, "h100", 48, 384, rate(9927, LLAMA, 512, 8192), micro=2,
        causal=True, note="shape assumed to be Llama 3's"),
    Row("AIDO.DNA-7B", "its model card", AIDO, 16, 4000, "h100", 256, 1024, rate(2316, AIDO, 16, 4000), micro=2,
        tensor=2, note="derived from batch, steps and days; the source's layout is not stated, ours is taken"),
]  # fmt: skip


def config_of(row: Row) -> Config:
    """The run as one of ours."""
    return Config(
        model=row.model,
        # Decoders predict every token; the key must stay below 1.
        data=DataConfig(sequence_length=row.length, masking=MaskingConfig(fraction=0.99 if row.causal else 0.15)),
        parallel=ParallelConfig(
            tensor=row.tensor,
            pipeline=row.pipeline,
            virtual_pipeline=row.virtual,
            sequence=row.tensor > 1,
            overlap_grad_reduce=True,
            overlap_param_gather=True,
        ),
        train=TrainConfig(micro_batch_size=row.micro, global_batch_size=row.batch),
    )


def predicted(row: Row) -> float:
    """TFLOP/s a GPU by the planner."""
    found = model_of_time.step_time(
        config_of(row), row.vocab_rows, row.length, row.num_gpus, GPUS[row.gpu], causal=row.causal
    )
    flops = training_flops(row.model, row.vocab_rows, row.length) * row.batch
    return flops / row.num_gpus / found.seconds / 1e12


def fit() -> None:
    """Least squared logarithmic error over a grid: two constants on the H100 rows, one on the A100 row."""

    def error(gpu: str) -> float:
        rows = [row for row in ROWS if row.fitted and row.gpu == gpu]
        return sum(math.log(predicted(row) / row.published) ** 2 for row in rows) / len(rows)

    def reach(gpu: str, share: float) -> None:
        GPUS[gpu] = replace(GPUS[gpu], reached=share)

    found = []
    for share, exposed in itertools.product(SHARES, [0.1 * i for i in range(11)]):
        reach("h100", share)
        model_of_time.TENSOR_EXPOSED = exposed
        found.append((error("h100"), share, exposed))
    best, share, model_of_time.TENSOR_EXPOSED = min(found)
    reach("h100", share)
    ampere = []
    for share in SHARES:
        reach("a100-80", share)
        ampere.append((error("a100-80"), share))
    reach("a100-80", min(ampere)[1])
    sys.stdout.write(
        f"reached {GPUS['h100'].reached} (A100: {GPUS['a100-80'].reached}), TENSOR_EXPOSED "
        f"{model_of_time.TENSOR_EXPOSED:.1f}; root mean square error of the fitted H100 rows {math.sqrt(best):.3f}\n\n"
    )


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="search the constants first")
    if parser.parse_args().fit:
        fit()
    lines = ["| run | GPUs | published TFLOP/s | predicted | error | | source |", "|---|---|---|---|---|---|---|"]
    for row in ROWS:
        guess = predicted(row)
        use = "fitted" if row.fitted else "checked"
        lines.append(
            f"| {row.name} | {row.num_gpus} {row.gpu} | {row.published:.0f} | {guess:.0f} | "
            f"{guess / row.published - 1:+.0%} | {use} | {row.source}{'; ' + row.note if row.note else ''} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
