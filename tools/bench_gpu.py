"""How fast one GPU trains: tokens/s, TFLOP/s and MFU of the presets, per attention kernel, and where the time goes.

    python tools/bench_gpu.py [--output bench_gpu.json] [--seconds 150] [--dry_run]

Encoder convention: FLOPs of a step = 3 x forward (megadna/model/shapes.py: full attention, no causal halving, matrix
products only; the head counts for the predicted tokens, which alone go through it); MFU = FLOPs / seconds / the card's
dense bf16 peak. Synthetic tokens, 15 % asked for, all rows full. A 7B model does not fit one GPU, so its shape is timed
with few layers. Beside each figure is what `megadna plan` predicts: memory without CUDA's own, seconds of a step.

Shares of a profiled step: attention, matrix products, optimizer, other kernels, and idle, when the GPU waits for the
host. No case begins after --seconds. --dry_run: toy sizes on the CPU. Without a GPU it says so and exits with 0.
"""

import argparse
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_train import PREDICTED, synthetic_batches
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from megadna.arguments import load_config
from megadna.config import Config, EngineConfig, ParallelConfig
from megadna.data.batch import Batch
from megadna.engine.distributed import World, parallel_world
from megadna.engine.optimizer import apply_gradients, squared_norm
from megadna.errors import UserError
from megadna.files import write_json
from megadna.model.attention import CoreAttention, choose_backend
from megadna.model.layers import weight_dtype
from megadna.model.shapes import padded_vocab_size, peak_tflops, training_flops
from megadna.planning.memory import fullest_memory
from megadna.planning.step_time import GPUS, step_time
from megadna.tokenizer.build import build_tokenizer
from megadna.train.step import TrainState, build_state, own_targets, train_step

CONFIGS = Path(__file__).parents[1] / "configs"
WARMUP, STEPS, PROFILED = 3, 10, 2


class Kernel(NamedTuple):
    """An attention backend of megadna, and which of torch's kernels it may take."""

    attention: str
    only: SDPBackend | None = None


KERNELS = {
    "sdpa": Kernel("sdpa"),
    "sdpa flash": Kernel("sdpa", SDPBackend.FLASH_ATTENTION),
    "sdpa cuDNN": Kernel("sdpa", SDPBackend.CUDNN_ATTENTION),
    "flash_attn": Kernel("flash_attn"),
    "transformer_engine": Kernel("transformer_engine"),
}

# preset: rows a step, and layers where the whole does not fit one GPU; the most telling first
CASES: dict[str, tuple[int, int | None]] = {
    "megadna-86m": (16, None),
    "aido-dna-7b": (2, 4),
    "megadna-7b-hd128": (2, 4),
    "aido-dna-300m": (8, None),
    "dnabert-6mer": (64, None),
}

KINDS = {
    "attention": ("flash", "fmha", "sdpa", "scaled_dot_product", "attention"),
    "matrices": ("gemm", "nvjet", "cutlass", "cublas", "xmma", "::mm", "::addmm", "::bmm"),
    "optimizer": ("adam", "multi_tensor"),
}
"""Kinds of kernels by parts of their names, the first that fits."""


def case_config(preset: str, rows: int, num_layers: int | None, *, dry_run: bool = False) -> Config:
    """The preset on one rank, one micro-batch a step, without dropout's noise in the timing of attention kernels."""
    config = load_config(CONFIGS / f"{preset}.yaml")
    layers = num_layers or config.model.num_layers
    model = replace(config.model, num_layers=layers, dropout=0.0)
    if dry_run:
        rows, toy = 2, {"num_layers": 2, "num_attention_heads": 2, "ffn_hidden_size": 128}
        model = replace(model, hidden_size=2 * model.head_size, **toy)
        config = replace(config, data=replace(config.data, sequence_length=64), engine=EngineConfig(device="cpu"))
    return replace(
        config,
        model=model,
        parallel=ParallelConfig(),
        train=replace(
            config.train, micro_batch_size=rows, global_batch_size=rows, steps=1000, warmup_steps=1, warmup_fraction=0.0
        ),
    )


def measure(config: Config, kernels: dict[str, Kernel], steps: int = STEPS) -> Iterator[tuple[str, dict[str, Any]]]:
    """One configuration by each kernel: its name, and its figures; or under `left_out` why it cannot run."""
    tokenizer = build_tokenizer(config.tokenizer)
    batches = synthetic_batches(config, tokenizer.vocab_size)
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, tokenizer.vocab_size, world)
        for name, kernel in kernels.items():
            try:
                set_attention(state, config, world, kernel.attention)
                with sdpa_kernel(kernel.only) if kernel.only else nullcontext():
                    found = time_steps(state, batches, config, world, steps)
            except (UserError, RuntimeError) as error:  # the latter: out of memory, or a kernel's refusal
                found = {"left_out": str(error).strip().splitlines()[0]}
            yield name, found


def set_attention(state: TrainState, config: Config, world: World, wanted: str) -> None:
    """Exchange the attention of a model that is built; UserError where it cannot run."""
    backend = choose_backend(wanted, world.device, weight_dtype(config), config.model.head_size)
    found = [module for module in state.model_parts[0].modules() if isinstance(module, CoreAttention)]
    for number, module in enumerate(found, 1):
        module.attend = CoreAttention(state.model_parts[0].config, number, backend).attend


def time_steps(state: TrainState, batches: list[Batch], config: Config, world: World, steps: int) -> dict[str, Any]:
    """Milliseconds of a step and its parts, tokens/s, TFLOP/s, peak memory and shares of the kernels."""
    length, rows, endless = int(config.data.sequence_length), config.train.micro_batch_size, cycle(batches)
    on_gpu = world.device.type == "cuda"

    def step() -> None:
        train_step(state, endless, config, world, sequence_length=length)

    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    whole = _seconds(step, steps)
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    forward = _seconds(lambda: _forward_pass(state, batches[0], world), steps)
    update = _seconds(lambda: _update(state, world), steps)
    vocab_rows = padded_vocab_size(config.tokenizer, build_tokenizer(config.tokenizer).vocab_size)
    flops = rows * training_flops(config.model, vocab_rows, length, predicted=PREDICTED)
    return {
        "step_ms": 1e3 * whole,
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * (whole - forward - update),
        "optimizer_ms": 1e3 * update,
        "tokens_per_second": rows * length / whole,
        "tflops": flops / whole / 1e12,
        "memory_gb": memory,
        "shares": shares(step, on_gpu),
    }


@torch.no_grad()
def _forward_pass(state: TrainState, batch: Batch, world: World) -> None:
    """The forward pass of a training step: logits of the predicted tokens alone."""
    state.model_parts[0](batch.tokens_BS.to(world.device), None, None, own_targets(batch, world, 1).rows_M)


def _update(state: TrainState, world: World) -> None:
    state.optimizer.prepare_grads()
    apply_gradients(state.optimizer, squared_norm(state.optimizer, world.device).item() ** 0.5)


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


def shares(step: Callable[[], None], on_gpu: bool) -> dict[str, float]:
    """Shares of the time of a step by kind; on a CPU, those of torch's operations."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as recorded:
        start = time.perf_counter()
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
        total = 1e6 * (time.perf_counter() - start)
    device = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    spent: Counter[str] = Counter(dict.fromkeys((*KINDS, "other"), 0.0))
    for event in recorded.events():
        if event.device_type == device and not (on_gpu and event.is_user_annotation):  # those span the kernels
            time_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[kind_of(event.name)] += time_us / total
    return {**spent, "idle": max(0.0, 1.0 - sum(spent.values()))}


def kind_of(name: str) -> str:
    """Kind of a kernel, or of an operation, by its name."""
    name = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def predicted(config: Config, device: str) -> dict[str, Any]:
    """What the planner says of a configuration: GB of tensors, and milliseconds of a step on a card that it knows."""
    rows = padded_vocab_size(config.tokenizer, build_tokenizer(config.tokenizer).vocab_size)
    length = int(config.data.sequence_length)
    memory = fullest_memory(config, rows, length, 1)
    held = memory.total - memory.context - memory.margin
    words = device.lower().replace("-", " ").split()
    gpu = next((gpu for name, gpu in GPUS.items() if name.partition("-")[0] in words), None)
    time_ms = None if gpu is None else 1e3 * step_time(config, rows, length, 1, gpu).seconds
    return {"planned_memory_gb": held / 1e9, "planned_step_ms": time_ms}


def line_of(row: dict[str, Any]) -> str:
    """One measurement in words."""
    name = f"{row['preset']}, {row['kernel']}"
    if "left_out" in row:
        return f"{name}: left out ({row['left_out']})"
    mfu = "" if row["mfu_percent"] is None else f", MFU {row['mfu_percent']:.1f} %"
    planned = "" if row["planned_step_ms"] is None else f" (planned {row['planned_step_ms']:.0f})"
    spent = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in row["shares"].items())
    return (
        f"{name}: {row['tokens_per_second']:,.0f} tokens/s, {row['tflops']:.1f} TFLOP/s{mfu}, "
        f"{row['step_ms']:.0f} ms a step{planned}, {row['memory_gb']:.1f} GB (planned "
        f"{row['planned_memory_gb']:.1f}); {spent}"
    )


def run_cases(device: str, seconds: float, *, dry_run: bool) -> list[dict[str, Any]]:
    """Every case by every kernel; what cannot run, or would begin too late, is in the list with the reason."""
    peak, start = peak_tflops(device), time.monotonic()
    rows: list[dict[str, Any]] = []
    for preset, (batch, num_layers) in CASES.items():
        name = preset if num_layers is None else f"{preset}, {num_layers} layers"
        config = case_config(preset, batch, num_layers, dry_run=dry_run)
        if time.monotonic() - start > seconds:
            found: Any = [("all kernels", {"left_out": f"--seconds {seconds:g} were over"})]
        else:
            found = measure(config, KERNELS, steps=2 if dry_run else STEPS)
        for kernel, figures in found:
            mfu = None if peak is None or "left_out" in figures else 100 * figures["tflops"] / peak
            rows.append({"preset": name, "kernel": kernel, "mfu_percent": mfu, **figures, **predicted(config, device)})
            print(line_of(rows[-1]), flush=True)
        gc.collect()  # the model may still hang in cycles
    return rows


def main() -> None:
    """Measure, print a line a measurement, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench_gpu.json"))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--dry_run", action="store_true")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.dry_run):
        print("no GPU here: nothing to measure")
        return
    device = "a CPU, toy sizes" if options.dry_run else torch.cuda.get_device_name()
    rows = run_cases(device, options.seconds, dry_run=options.dry_run)
    ran = [row for row in rows if "left_out" not in row]
    if not ran:
        sys.exit("no case ran: see the reasons above")
    best = max(ran, key=lambda row: (row["preset"] == ran[0]["preset"], row["tokens_per_second"]))
    found = {"line": line_of(best), "device": device, "torch": torch.__version__, "rows": rows}
    write_json(options.output, found)


if __name__ == "__main__":
    main()
