"""What a change of the recipe is worth: several recipes, several seeds, one dataset, validation bits and CPU seconds.

    python tools/compare_recipes.py --data demo/dataset --output recipes --seeds 1 2 3 \\
        --recipe "none: --model.local_context none" --recipe "both: --model.local_context both" \\
        -- --config configs/demo.yaml --data.masking.fraction 0.3

Each run is `megadna train` with one rank, the options after `--`, those of the recipe, and `--seed`. A finished run is
not repeated, so a stopped comparison continues with the same command. Prints Markdown: validation bits per base at each
validation, mean over the seeds, with the standard error of the mean for the last; CPU seconds of a whole run; and the
difference from the first recipe, seed by seed, as paired differences scatter less than the runs.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

Run = dict[str, float]
"""Validation bits by step (as text), and `cpu`, the CPU seconds of the process with its children."""


def main() -> None:
    """Train what is missing, one run after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipe", action="append", required=True, metavar="NAME: OPTIONS")
    known = sys.argv[1:].index("--") if "--" in sys.argv[1:] else len(sys.argv) - 1
    options, common = parser.parse_args(sys.argv[1 : known + 1]), sys.argv[known + 2 :]
    found: dict[str, list[Run]] = {}
    for text in options.recipe:
        name, _, more = text.partition(":")
        arguments = [*common, "--data.path", options.data, *shlex.split(more)]
        found[name] = [one_run(options.output / name / str(seed), arguments, seed) for seed in options.seeds]
    print(table(found))


def one_run(folder: Path, arguments: list[str], seed: int) -> Run:
    """Train into `folder`/run unless that is finished; what it found."""
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "megadna", "train", *arguments, "--seed", str(seed), "--overwrite"]
        subprocess.run([*command, "--engine.num_processes", "1", "--output", str(folder / "run")], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        bits = {str(line["step"]): line["valid_bits_per_base"] for line in lines if "valid_bits_per_base" in line}
        result.write_text(json.dumps(bits | {"cpu": cpu}))
    return json.loads(result.read_text())


def table(found: dict[str, list[Run]]) -> str:
    """One line a recipe."""
    first = next(iter(found.values()))
    steps = [step for step in first[0] if step != "cpu"]
    lines = [
        f"| recipe | {' | '.join(steps)} | standard error | difference from the first | CPU s |",
        "|" + "---|" * (len(steps) + 4),
    ]
    for name, runs in found.items():
        bits = [f"{mean(run[step] for run in runs):.4f}" for step in steps]
        last = [run[steps[-1]] for run in runs]
        paired = [run[steps[-1]] - other[steps[-1]] for run, other in zip(runs, first, strict=True)]
        cpu = mean(run["cpu"] for run in runs)
        difference = f"{mean(paired):+.4f} ({error(paired)})"
        lines.append(f"| {name} | {' | '.join(bits)} | {error(last)} | {difference} | {cpu:.0f} |")
    return "\n".join(lines)


def error(values: list[float]) -> str:
    """Standard error of the mean; a dash for a single value."""
    return f"{stdev(values) / sqrt(len(values)):.4f}" if len(values) > 1 else "-"


if __name__ == "__main__":
    main()
