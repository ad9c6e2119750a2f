"""Does a run that was killed go on as if nothing had happened? Trains, kills by SIGKILL, resumes, compares losses.

    python tools/prove_resume.py --config FILE --output FOLDER [--tolerance 1e-2] [--first KEYS] [--again KEYS]
        -- --data.path DATASET --train.steps 300 --checkpoint.interval 50 ...

Killed as soon as a checkpoint is whole and REPEATED later steps are logged; then --resume. --first and --again: keys of
one start alone (another layout), in one word. Steps logged by both must have the same loss (within --tolerance,
relative). Writes FOLDER/proof.json; FOLDER/run is the run. Exit status 1 where losses differ, or where the run ended
before it could be killed.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megadna.errors import EXIT_REQUEUE
from megadna.files import write_json
from megadna.train.checkpoint import complete_checkpoints

REPEATED = 3
"""Steps after the checkpoint that the killed run must have logged."""
FIRST = 5
"""Steps left out of the speed: kernels are compiled and chosen in them."""


def read_lines(run: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_after_checkpoint(command: list[str], run: Path) -> list[dict[str, Any]]:
    """Start the training and end it by SIGKILL; what it had logged."""
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            steps = [line["step"] for line in read_lines(run) if "loss" in line]
            saved = [int(folder.name.rpartition("-")[2]) for folder in complete_checkpoints(run)]
            if steps and saved and steps[-1] >= saved[-1] + REPEATED:
                return read_lines(run)
            time.sleep(0.1)
        sys.exit(f"{run}: ended with {process.returncode} before it could be killed; raise --train.steps")
    finally:
        process.kill()
        process.wait()


def compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest relative difference of a loss that both logged; validations and speed of the whole run."""
    losses = {line["step"]: line["loss"] for line in after if "loss" in line}
    pairs = {
        line["step"]: (line["loss"], losses[line["step"]])
        for line in before
        if "loss" in line and line["step"] in losses
    }
    training = [line for line in after if "loss" in line][FIRST:]
    return {
        "killed_at": max(pairs),
        "last_step": max(losses),
        "largest_difference": max(abs(a - b) / abs(a) for a, b in pairs.values()),
        "valid_bits": {line["step"]: line["valid_bits_per_base"] for line in after if "valid_bits_per_base" in line},
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in training),
        "mfu": statistics.median(line.get("mfu", 0.0) for line in training),
        "data_wait_seconds": statistics.mean(line["data_wait_seconds"] for line in training),
    }


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tolerance", type=float, default=0.0)
    parser.add_argument("--first", default="")
    parser.add_argument("--again", default="")
    parser.add_argument("keys", nargs="*")
    options = parser.parse_args()
    run = options.output / "run"
    if run.exists():
        sys.exit(f"{run} exists; name a new folder")
    command = [sys.executable, "-m", "megadna", "train", "--config", options.config, "--output", str(run)]
    before = kill_after_checkpoint([*command, *options.keys, *shlex.split(options.first)], run)
    again = subprocess.run([*command, *options.keys, *shlex.split(options.again), "--resume"])
    if again.returncode not in (0, EXIT_REQUEUE):  # the latter: train.exit_after_minutes
        sys.exit(f"{run}: --resume ended with {again.returncode}")
    found = compare(before, read_lines(run))
    bits = ", ".join(f"{value:.3f}" for value in found["valid_bits"].values())
    found["line"] = (
        f"killed at step {found['killed_at']}, resumed to {found['last_step']}: losses differ by at most "
        f"{found['largest_difference']:.1e}; {found['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {100 * found['mfu']:.1f} %, waited {found['data_wait_seconds']:.3f} s a step for data; "
        f"validation {bits} bits per base"
    )
    print(found["line"])
    if found["largest_difference"] > options.tolerance:
        sys.exit(f"the losses differ by more than {options.tolerance:g}")
    write_json(options.output / "proof.json", found)


if __name__ == "__main__":
    main()
