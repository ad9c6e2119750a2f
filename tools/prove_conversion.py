"""Conversion of a large checkpoint: rate against `cp`, peak memory, and the time of the gate.

    python tools/prove_conversion.py --folder FOLDER [--preset aido-dna-7b] [--layers N] [--gate]

Writes a checkpoint of the preset with random bf16 weights (7 billion parameters: 14.6 GB), tensor by tensor, copies its
weights with cp, exports it and imports the export, each in a process of its own, and prints one Markdown table. FOLDER
needs room for four copies. Each step reads from the disk (what it reads is put out of the page cache before) and its
time ends when what it wrote is on the disk. Peak memory is the largest resident set of the process (and of its
children: the gate). It loads the disk; without --gate nothing is computed.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from megadna.arguments import load_config
from megadna.hf.checkpoints import seal_checkpoint, write_tensors
from megadna.model.initial_weights import weight_std
from megadna.model.shapes import tensor_shapes

CONFIGS = Path(__file__).parents[1] / "configs"


def random_checkpoint(folder: Path, preset: str, layers: int) -> int:
    """A sealed checkpoint of random bf16 weights, nucleotide vocabulary; its bytes."""
    config = load_config(CONFIGS / f"{preset}.yaml")
    config = replace(config, model=replace(config.model, num_layers=layers or config.model.num_layers))
    shapes = tensor_shapes(config.model, 16)
    generator = torch.Generator().manual_seed(1)

    def draw(name: str) -> torch.Tensor:
        if name.endswith("bias") or len(shapes[name]) == 1:
            base = 1.0 if name.endswith("weight") else 0.0
            return (base + 0.02 * torch.randn(shapes[name], generator=generator)).bfloat16()
        return (weight_std(name, config.model) * torch.randn(shapes[name], generator=generator)).bfloat16()

    folder.mkdir(parents=True)
    write_tensors(folder, shapes, draw, dtype=torch.bfloat16)
    seal_checkpoint(folder, config, {"tokenizer": "nucleotide"})
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def run(source: Path, *command: str | Path) -> tuple[float, float]:
    """Seconds of a command that reads `source`, its output synced, and its peak resident memory in GB (its children's
    included, each alone)."""
    os.sync()
    for path in source.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    watch = (
        "import resource, subprocess, sys\n"
        "status = subprocess.run(sys.argv[1:]).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(status)"
    )
    start = time.perf_counter()
    words = [sys.executable, "-c", watch, *map(str, command)]
    result = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    os.sync()
    return time.perf_counter() - start, int(result.stdout.splitlines()[-1]) * 1024 / 1e9


def main() -> None:
    """Write, copy, export, import; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder; removed at the end")
    parser.add_argument("--preset", default="aido-dna-7b", help="name in configs/")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the preset's")
    parser.add_argument("--gate", action="store_true", help="export and import once more with the comparison")
    options = parser.parse_args()
    work: Path = options.folder
    work.mkdir(parents=True)
    try:
        first, hf, back = work / "checkpoint", work / "hf", work / "back"
        size = random_checkpoint(first, options.preset, options.layers)
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(f"{options.preset}: {size / 1e9:.1f} GB; writing it took {own:.2f} GB of memory\n")
        print("| step | seconds | GB/s | against cp | peak memory, GB |\n|---|---|---|---|---|")
        megadna = [sys.executable, "-m", "megadna"]
        copy, _ = run(first, "cp", "-r", first, work / "copy")
        print(f"| cp | {copy:.0f} | {size / 1e9 / copy:.2f} | 1 | |", flush=True)
        shutil.rmtree(work / "copy")
        steps: dict[str, list[str | Path]] = {
            "export": ["export", "--checkpoint", first, "--output", hf, "--dtype", "bf16"],
            "import": ["import", "--model", hf, "--output", back],
        }
        for name, command in steps.items():
            seconds, peak = run(Path(command[2]), *megadna, *command, "--no_verify")
            print(
                f"| {name} | {seconds:.0f} | {size / 1e9 / seconds:.2f} | {copy / seconds:.2f} | {peak:.2f} |",
                flush=True,
            )
        for name, command in steps.items() if options.gate else ():
            seconds, peak = run(Path(command[2]), *megadna, *command, "--overwrite")
            print(f"| {name} with the gate | {seconds:.0f} | | | {peak:.2f} |", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
