"""`megadna plan`: does a job fit, how long does it take, and which layout is best; before anything is queued."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megadna.arguments import config_from, config_parser, parse
from megadna.config import Config
from megadna.errors import UserError, require
from megadna.files import atomic_file, write_json
from megadna.ownership import refuse_foreign, refuse_occupied
from megadna.planning.layouts import Layout, checkpoint_cost, digits, evaluate_layout, rank_layouts, why_worse
from megadna.planning.step_time import GPUS, Gpu
from megadna.progress import Progress

SHOWN = 8
NUMBERS = {
    "memory_gb": "memory of a GPU, GB",
    "tflops": "dense 16-bit peak, TFLOP/s",
    "bandwidth": "memory bandwidth, TB/s",
    "link": "GB/s to GPUs of the same node, each direction",
    "network": "GB/s a GPU to other nodes, each direction",
}


def main(arguments: list[str]) -> None:
    """Print the plan; --output FOLDER keeps plan.json and plan.png."""
    parser = config_parser("plan", "Memory, time and cost of a training job, and its best layouts.")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the job")
    parser.add_argument("--gpu", type=str, default="h100", help=f"kind of GPU: {', '.join(GPUS)}")
    for name, what in NUMBERS.items():
        parser.add_argument(f"--gpu_{name}", type=float, default=0.0, help=f"{what}; 0: the data sheet's")
    parser.add_argument("--price", type=float, default=0.0, help="cost of a GPU for an hour; 0 prints none")
    parser.add_argument("--output", type=str, default="", help="folder for plan.json and plan.png")
    options = parse(parser, arguments)
    config, gpu = config_from(options), _gpu(options)
    if options.output:
        _refuse_foreign(Path(options.output))
    require(options.gpus > 0, f"--gpus must be positive, got {options.gpus}")
    rows, sequence_length = _shape(config)
    config = replace(config, data=replace(config.data, sequence_length=sequence_length))
    with Progress("comparing layouts"):
        layouts = rank_layouts(config, rows, sequence_length, options.gpus, gpu)
    best = layouts[0]
    cost = checkpoint_cost(best, rows, options.gpus, gpu)
    sys.stdout.write(_own_line(config, rows, sequence_length, options.gpus, gpu))
    _print_table(layouts, gpu, config.train.steps)
    sys.stdout.write("\n".join(_best_lines(best, cost, options)) + "\n")
    if options.output:
        _write(Path(options.output), layouts, gpu, cost)


def _gpu(options: Any) -> Gpu:
    if options.gpu not in GPUS:
        raise UserError(f"--gpu {options.gpu}: not one of {', '.join(GPUS)}; name the nearest and give its numbers")
    given = {name: options[f"gpu_{name}"] for name in NUMBERS if options[f"gpu_{name}"]}
    return replace(GPUS[options.gpu], **given)


def _shape(config: Config) -> tuple[int, int]:
    """Rows of the vocabulary and tokens of a sequence; `auto` is that of chunks of 4,000."""
    from megadna.model.shapes import padded_vocab_size
    from megadna.tokenizer.build import build_tokenizer

    rows = padded_vocab_size(config.tokenizer, build_tokenizer(config.tokenizer).vocab_size)
    length = config.data.sequence_length
    return rows, 4000 if length == "auto" else int(length)


def _own_line(config: Config, rows: int, sequence_length: int, num_gpus: int, gpu: Gpu) -> str:
    """Memory and time of the layout in the config itself."""
    try:
        own = evaluate_layout(config, rows, sequence_length, num_gpus, gpu)
    except UserError as error:
        return f"as configured: impossible: {error}\n"
    fit = "fits" if own.fits else "does not fit"
    return (
        f"as configured ({own.name}): {fit} with {digits(own.memory.total / 1e9, 1)} of {gpu.memory_gb:.0f} GB, "
        f"{digits(own.time.seconds, 2)} s a step, MFU {digits(100 * own.mfu, 0)}%\n"
    )


def _print_table(layouts: list[Layout], gpu: Gpu, steps: int) -> None:
    table = Table(title=f"best layout of each kind on {gpu.name} (mb: micro-batch)")
    for heading in ("layout", "GB", "s/step", "tokens/s", "MFU", "days", "compared with the first"):
        table.add_column(heading, justify="left" if heading in ("layout", "compared with the first") else "right")
    for layout in layouts[:SHOWN]:
        numbers = (
            digits(layout.memory.total / 1e9, 1),
            digits(layout.time.seconds, 2),
            f"{layout.tokens_per_second:,.0f}",
            f"{digits(100 * layout.mfu, 0)}%",
            digits(layout.time.seconds * steps / 86400, 1),
        )
        table.add_row(layout.name, *numbers, "" if layout is layouts[0] else why_worse(layout, layouts[0], gpu))
    Console(width=max(110, Console().width)).print(table)


def _best_lines(best: Layout, cost: dict[str, float], options: Any) -> list[str]:
    hours = best.time.seconds * best.config.train.steps / 3600 * options.gpus
    parts = [f"{name} {digits(value / 1e9, 1)}" for name, value in vars(best.memory).items() if value]
    sent = [f"{name} {digits(value / 1e9, 1)}" for name, value in best.time.traffic.items() if value]
    keys = " ".join(f"--{key} {str(value).lower()}" for key, value in best.keys.items())
    return [
        f"the first, memory in GB: {', '.join(parts)}",
        f"  sent by a rank a step, in GB: {', '.join(sent) or 'nothing'}",
        f"  the run: {digits(hours, 0)} GPU-hours"
        + (f", costing {digits(hours * options.price, 0)}" if options.price else ""),
        f"  a save: {digits(cost['host_bytes'] / 1e9, 1)} GB of host memory, "
        f"stall {digits(cost['stall_seconds'], 1)} s",
        f"  keys: {keys}",
    ]


def _refuse_foreign(folder: Path) -> None:
    """UserError where the output's names are taken by files of others."""
    require(folder.is_dir() or not folder.exists(), f"{folder}: is a file; --output names a folder")
    refuse_foreign(folder / "plan.json", "plan", "gpu", "layouts", "checkpoint")
    if not (folder / "plan.json").exists():
        refuse_occupied(folder / "plan.png", is_file=True)


def _write(folder: Path, layouts: list[Layout], gpu: Gpu, cost: dict[str, float]) -> None:
    from megadna.planning.layouts import draw

    folder.mkdir(parents=True, exist_ok=True)
    plan = {"gpu": vars(gpu), "layouts": [layout.to_dict() for layout in layouts], "checkpoint": cost}
    write_json(folder / "plan.json", plan)  # first: it proves that the picture is ours
    with atomic_file(folder / "plan.png") as temporary:
        draw(layouts, gpu, temporary)
    sys.stdout.write(f"{folder / 'plan.json'}, {folder / 'plan.png'}\n")
