"""Does directed generation find what it looks for? A model's proposals beside random and greedy search, by a judge.

    python tools/directed_study.py --model LM --oracle FOLDER --judge FOLDER --real promoters.fa [--number 16]

Starts: random sequences as long as the first of `--real`. From each, with at most `--edits` changed bases: random
mutation; greedy search (the best of all single substitutions by the oracle, again and again); `megadna generate
--method metropolis` with the language model's proposals. The judge, a fine-tuned model that took no part, scores the
results; counted are those above the 95th percentile of its scores of the real sequences, which neither model learnt.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from megadna.alphabet import base_codes, code_dna, dna_of
from megadna.downstream.generate import Heads, generate
from megadna.downstream.generate_options import GenerateOptions
from megadna.genome.records import read_records

# Shapes: N sequences, L bases.


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "oracle", "judge"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--edits", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=20.0, help="of the oracle in metropolis")
    options = parser.parse_args()
    real = [base_codes(dna_of(bases)) for _, bases in read_records(options.real)]
    rng = np.random.default_rng(1)
    starts = list(rng.integers(0, 4, (options.number, len(real[0]))).astype(np.uint8))
    oracle, judge = heads(options.oracle, len(real[0])), heads(options.judge, len(real[0]))
    found = {
        "starts": starts,
        "random mutation": [mutated(codes_L, options.edits, rng) for codes_L in starts],
        "greedy search": greedy(starts, oracle, options.edits),
        "megadna generate": directed(starts, options),
        "real": real,
    }
    limit = np.quantile(judge(real)[:, 0], 0.95)
    rows = []
    for name, sequences in found.items():
        judged = judge(sequences)[:, 0]
        row = {"sequences": name, "oracle": oracle(sequences)[:, 0].mean(), "judge": judged.mean()}
        row |= {
            "standard error": judged.std(ddof=1) / len(judged) ** 0.5,
            "above 95 % of real": (judged > limit).mean(),
        }
        if name != "real":
            row["edits"] = np.mean([(a != b).sum() for a, b in zip(sequences, starts, strict=True)])
        rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))
    print(f"95th percentile of the judge's scores of {len(real)} real sequences: {limit:.3f}")


def heads(folder: str, length: int) -> Heads:
    """A fine-tuned model as `megadna generate` calls it."""
    options = GenerateOptions(model=folder, length=length, oracle=[folder])
    loaded = Heads(options.outputs("oracle"), "oracle", options, length)
    loaded.load()
    return loaded


def mutated(codes_L: np.ndarray, edits: int, rng: np.random.Generator) -> np.ndarray:
    """Another base at `edits` random positions."""
    changed_L = codes_L.copy()
    at = rng.choice(len(codes_L), edits, replace=False)
    changed_L[at] = (changed_L[at] + rng.integers(1, 4, edits)) % 4
    return changed_L


def greedy(starts: list[np.ndarray], oracle: Heads, edits: int) -> list[np.ndarray]:
    """The best single substitution by the oracle, as long as there is a better one."""
    ended = []
    for codes_L in starts:
        score = oracle([codes_L])[0, 0]
        for _ in range(edits):
            others = np.repeat(codes_L[None], 3 * len(codes_L), axis=0)
            rows = np.arange(len(others))
            others[rows, rows // 3] = (others[rows, rows // 3] + 1 + rows % 3) % 4
            scores = oracle(list(others))[:, 0]
            if scores.max() <= score:
                break
            codes_L, score = others[scores.argmax()], scores.max()
        ended.append(codes_L)
    return ended


def directed(starts: list[np.ndarray], options: argparse.Namespace) -> list[np.ndarray]:
    """`megadna generate`, one sequence for each start."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "starts.fa"
        texts = [code_dna(codes_L).tobytes().decode() for codes_L in starts]
        path.write_text("".join(f">s{number}\n{text}\n" for number, text in enumerate(texts)))
        table = generate(
            options.model, start=path, method="metropolis", steps=options.steps, max_edits=options.edits,
            oracle=[f"{options.oracle},{output_name(options.oracle)},{options.weight}"],
        )  # fmt: skip
    return [base_codes(dna_of(text)) for text in table["sequence"]]


def output_name(folder: str) -> str:
    """Of the first output of a fine-tuned model."""
    return GenerateOptions(model=folder, length=8, oracle=[folder]).outputs("oracle")[0].name


if __name__ == "__main__":
    main()
