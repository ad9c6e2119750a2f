"""Does what `megadna start` writes train? Plans, datasets and runs by the commands it prints, against composition.

    python tools/prove_start.py --genomes tests/data/mgenitalium_G37.fa.gz --hours 0.04 --output runs/proof

For each genome and each number of hours on one CPU core: the bits per base of every validation minus those of the
composition baseline on the same hidden bases, from the first quarter of the run on. Exit status 1 where one is above 0.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megadna.arguments import load_config
from megadna.data.dataset import open_chunks
from megadna.data.evaluation import EvaluationSamples
from megadna.tokenizer.build import build_tokenizer
from megadna.train.baselines import HiddenSamples, composition


@dataclass(frozen=True)
class Proof:
    """One run."""

    genome: str
    hours: float
    steps: int
    composition: float
    """Bits per base on the validation samples."""
    differences: dict[int, float]
    """By step: bits per base of the model minus those of composition."""

    @property
    def worst(self) -> float:
        """The highest difference after the first quarter of the run."""
        return max(value for step, value in self.differences.items() if step >= self.steps / 4)

    def line(self) -> str:
        """A row of the table in docs/pretrain_your_genomes.md."""
        last = self.differences[self.steps]
        cells = (self.genome, f"{self.hours:g}", f"{self.steps:,}", f"{self.composition:.3f}")
        return "| " + " | ".join((*cells, f"{self.worst:+.3f}", f"{last:+.3f}")) + " |"


def prove(genome: Path, hours: float, folder: Path, samples: int = 128) -> Proof:
    """Plan, build and train in `folder`, which must be new; validations are on `samples` windows."""
    genomes = folder / "genomes"
    genomes.mkdir(parents=True)
    (genomes / genome.name).symlink_to(genome.resolve())
    project = folder / "project"
    plan = ["start", genomes, "--gpu", "cpu", "--gpus", "1", "--hours", f"{hours:g}", "--output", project]
    printed = [shlex.split(line)[1:] for line in _megadna(*plan).splitlines() if line.startswith("  megadna ")]
    commands = {words[0]: words for words in printed}
    _megadna(*commands["preprocess"])
    _megadna(*commands["train"], "--validation.samples", samples)
    run = project / "run"
    config = load_config(run / "config.yaml")
    hidden = EvaluationSamples(
        open_chunks(config.data.path, "valid"),
        build_tokenizer(config.tokenizer),
        sequence_length=int(config.data.sequence_length),
        samples=config.validation.samples,
        seed=config.seed,
    )
    bits = composition(HiddenSamples.stack(*hidden.for_baselines())).score().bits_per_base
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    differences = {line["step"]: line["valid_bits_per_base"] - bits for line in lines if "valid_bits_per_base" in line}
    return Proof(genome.name.split(".")[0], hours, config.train.steps, bits, differences)


def _megadna(*words: object) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "megadna", *map(str, words)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"megadna {words[0]}: {result.stderr[-2000:]}")
    return result.stdout


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genomes", type=Path, nargs="+", required=True, help="FASTA files")
    parser.add_argument("--hours", type=float, nargs="+", required=True, help="budgets on one core")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    options = parser.parse_args()
    sys.stdout.write(
        "| genome | hours | steps | composition | worst after a quarter | at the end |\n|---|---|---|---|---|---|\n"
    )
    failed = False
    for genome in options.genomes:
        for hours in options.hours:
            proof = prove(genome, hours, options.output / f"{genome.name.split('.')[0]}-{hours:g}")
            sys.stdout.write(proof.line() + "\n")
            sys.stdout.flush()
            failed |= proof.worst > 0
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
