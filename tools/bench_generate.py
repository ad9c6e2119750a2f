"""megadna generate against a plain transformers loop that writes one base a forward pass, by bases per CPU second.

    OMP_NUM_THREADS=1 python tools/bench_generate.py --model demo/model --real tests/data/ecoli_K12_MG1655.fna.gz

The loop is what one writes with transformers alone: a row of [MASK], and for each base in random order a forward pass
and a draw from p of A, C, G and T. Quality is the Jensen-Shannon distance of k-mers to windows of --real, with its
standard error by bootstrap over sequences; real windows and shuffled ones stand beside. Without --model: random weights
in the shape of configs/demo.yaml, for the speed alone.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from bench_variants import demo_model
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadna.downstream.generate import Generation
from megadna.downstream.generate_options import GenerateOptions
from megadna.downstream.generate_report import distance_error, real_windows, word_counts, word_distance
from megadna.downstream.generate_rules import codes_of

DATA = Path(__file__).parents[1] / "tests" / "data"
WORDS = (3, 6)


def main() -> None:
    """Print a line for each way of writing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="")
    parser.add_argument("--real", type=Path, default=DATA / "ecoli_K12_MG1655.fna.gz")
    parser.add_argument("--length", type=int, default=240)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--steps", type=int, nargs="+", default=[32])
    parser.add_argument("--order", nargs="+", default=["spread"])
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = options.model or str(demo_model(Path(name), options.length + 2))
        real = real_windows(options.real, [options.length] * options.number, seed=1)
        baseline = report("loop, one forward pass a base", *timed(lambda: plain_loop(folder, options)), real.reference)
        for order in options.order:
            for steps in options.steps:
                chosen = GenerateOptions(
                    model=folder, length=options.length, number=options.number, steps=steps, order=order
                )
                generation = Generation(chosen)
                generation.model.at(np.full((1, 8), 4), np.zeros(1, int), np.zeros(1, int))
                found, seconds = timed(
                    lambda generation=generation: list(map(codes_of, generation.table()["sequence"]))
                )
                speed = report(f"megadna, {steps} rounds, {order}", found, seconds, real.reference)
                print(f"    {speed / baseline:.1f} times the loop's bases per CPU second")
        for text, control in (("real", real.control), ("shuffled", real.shuffled)):
            report(text, control, 0.0, real.reference)


def timed(run):  # noqa: ANN001, ANN201
    """(what it gives, CPU seconds)."""
    start = time.process_time()
    found = run()
    return found, time.process_time() - start


@torch.inference_mode()
def plain_loop(folder: str, options: argparse.Namespace) -> list[np.ndarray]:
    """Codes of the sequences; loading is not timed apart, as it takes under a second of CPU time."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    bases = tokenizer.convert_tokens_to_ids(list("ACGT"))
    rng, found = np.random.default_rng(0), []
    for _ in range(options.number):
        ids_1S = tokenizer("A" * options.length, return_tensors="pt")["input_ids"]
        ids_1S[0, 1:-1] = tokenizer.mask_token_id
        codes = np.zeros(options.length, np.uint8)
        for at in rng.permutation(options.length):
            p_4 = model(input_ids=ids_1S).logits[0, at + 1, bases].double().softmax(0).numpy()
            codes[at] = rng.choice(4, p=p_4)
            ids_1S[0, at + 1] = bases[codes[at]]
        found.append(codes)
    return found


def report(text: str, found: list[np.ndarray], seconds: float, reference: list[np.ndarray]) -> float:
    """Print speed and distances; bases per CPU second."""
    rng, parts = np.random.default_rng(0), []
    for k in WORDS:
        counts, others = word_counts(found, k), word_counts(reference, k)
        parts.append(f"{k}-mers {word_distance(counts, others):.4f} ± {distance_error(counts, others, rng):.4f}")
    bases = sum(map(len, found))
    speed = f"{bases / seconds:,.0f} bases per CPU s ({seconds:.1f} s)" if seconds else "-"
    print(f"{text}: {speed}; distance to real {', '.join(parts)}", flush=True)
    return bases / seconds if seconds else 0.0


if __name__ == "__main__":
    main()
