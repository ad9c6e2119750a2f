"""How fast one GPU trains: tokens/s, TFLOP/s and MFU of the presets, per attention backend, with the parts of a step.

    python tools/bench_gpu.py [--output FOLDER]        writes bench_gpu.json and bench_gpu.md

Encoder convention: FLOPs of a step = 3 x forward (megadna/model/shapes.py: full attention, no causal halving, matrix
products only; the head counts for the predicted tokens, which alone go through it); MFU = FLOPs / seconds / the card's
dense bf16 peak. Synthetic tokens, 15 % asked for, all rows full. A 7B model does not fit one GPU, so its shape is timed
with few layers. Without a GPU it says so and exits 0.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from bench_train import PREDICTED, synthetic_batches

from megadna.arguments import load_config
from megadna.config import Config, ParallelConfig
from megadna.data.batch import Batch
from megadna.engine.distributed import World, parallel_world
from megadna.engine.optimizer import apply_gradients, gradient_norm
from megadna.errors import UserError
from megadna.model.shapes import padded_vocab_size, peak_tflops, training_flops
from megadna.tokenizer.build import build_tokenizer
from megadna.train.step import TrainState, build_state, own_targets, train_step

CONFIGS = Path(__file__).parents[1] / "configs"
WARMUP, STEPS = 3, 10
BACKENDS = ("sdpa", "flash_attn", "transformer_engine")

# preset: rows a step, and layers where the whole does not fit one GPU
CASES: dict[str, tuple[int, int | None]] = {
    "megadna-86m": (16, None),
    "aido-dna-300m": (8, None),
    "dnabert-6mer": (64, None),
    "aido-dna-7b": (2, 4),
    "megadna-7b-hd128": (2, 4),
}


def case_config(preset: str, rows: int, num_layers: int | None, attention: str) -> Config:
    """The preset on one rank, one micro-batch a step, without dropout's noise in the timing of attention kernels."""
    config = load_config(CONFIGS / f"{preset}.yaml")
    layers = num_layers or config.model.num_layers
    return replace(
        config,
        model=replace(config.model, num_layers=layers, attention=attention, dropout=0.0),
        parallel=ParallelConfig(),
        train=replace(config.train, micro_batch_size=rows, global_batch_size=rows, steps=1000, warmup_steps=1),
    )


def measure(config: Config, steps: int = STEPS) -> dict[str, float]:
    """Milliseconds of a step and its parts, tokens/s, TFLOP/s and peak memory of one configuration."""
    tokenizer = build_tokenizer(config.tokenizer)
    length = int(config.data.sequence_length)
    batches = synthetic_batches(config, tokenizer.vocab_size)
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, tokenizer.vocab_size, world)
        endless = cycle(batches)
        whole = _seconds(lambda: train_step(state, endless, config, world, sequence_length=length), steps)
        forward = _seconds(lambda: _forward_pass(state, batches[0], world), steps)
        update = _seconds(lambda: _update(state), steps)
        memory = torch.cuda.max_memory_allocated() / 2**30 if world.device.type == "cuda" else 0.0
    rows = config.train.micro_batch_size
    vocab_rows = padded_vocab_size(config.tokenizer, tokenizer.vocab_size)
    flops = rows * training_flops(config.model, vocab_rows, length, predicted=PREDICTED)
    return {
        "step_ms": 1e3 * whole,
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * (whole - forward - update),
        "optimizer_ms": 1e3 * update,
        "tokens_per_second": rows * length / whole,
        "tflops": flops / whole / 1e12,
        "memory_gib": memory,
    }


@torch.no_grad()
def _forward_pass(state: TrainState, batch: Batch, world: World) -> None:
    """The forward pass of a training step: logits of the predicted tokens alone."""
    state.model_parts[0](batch.tokens_BS.to(world.device), None, None, own_targets(batch, world, 1).rows_M)


def _update(state: TrainState) -> None:
    _, norm = gradient_norm(state.optimizer)
    apply_gradients(state.optimizer, norm)


def _seconds(function: Callable[[], Any], steps: int) -> float:
    """Mean seconds of a call, the device's work included, after a warm-up."""
    for _ in range(WARMUP):
        function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def markdown(rows: list[dict[str, Any]], device: str) -> str:
    """The results as a table."""
    head = ("preset", "attention", "tokens/s", "TFLOP/s", "MFU %", "step ms", "forward", "backward", "optimizer", "GiB")
    lines = [f"{device}, torch {torch.__version__}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        numbers = [row["mfu_percent"], row["step_ms"], row["forward_ms"], row["backward_ms"], row["optimizer_ms"]]
        cells = [row["preset"], row["attention"], f"{row['tokens_per_second']:,.0f}", f"{row['tflops']:.1f}"]
        cells += ["-" if number is None else f"{number:.1f}" for number in numbers] + [f"{row['memory_gib']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run every case with every backend that can run; one that cannot is named and left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return
    device = torch.cuda.get_device_name()
    peak = peak_tflops(device)
    rows: list[dict[str, Any]] = []
    for preset, (batch, num_layers) in CASES.items():
        for attention in BACKENDS:
            name = preset if num_layers is None else f"{preset}, {num_layers} layers"
            gc.collect()  # the model before may still hang in cycles
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                found = measure(case_config(preset, batch, num_layers, attention))
            except (UserError, RuntimeError) as error:  # the latter: out of memory, or a kernel's refusal
                print(f"{name}, {attention}: left out ({str(error).splitlines()[0]})")
                continue
            mfu = None if peak is None else 100 * found["tflops"] / peak
            rows.append({"preset": name, "attention": attention, "mfu_percent": mfu, **found})
            print(markdown(rows[-1:], device).splitlines()[-1], flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "bench_gpu.json").write_text(json.dumps({"device": device, "rows": rows}, indent=2) + "\n")
    (options.output / "bench_gpu.md").write_text(markdown(rows, device))


if __name__ == "__main__":
    main()
