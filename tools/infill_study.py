"""Does a model write what was there? Gaps in held-out stretches, by a language model and by Markov models.

    python tools/infill_study.py --model FOLDER --data DATASET [--spans 10 30 100] [--window 250] [--number 50]
        [--written 150]

Windows of the test split, evenly spread; in each the middle `span` bases are a gap, all others are given. All numbers
are of the bases of the gap, in bits a base, of its probability as a whole (chain rule), given both flanks:

    model, random order      the bases are written one by one in random order, each given the flanks and those written,
                             as `megadna generate` with as many rounds as bases does
    model, left to right     the same from left to right
    model, all at once       each base given the flanks alone
    Markov chain             p of a base given the five before it, of the train split, both strands; the right flank is
                             taken into account exactly: p(gap, next five) / p(next five), summed over all gaps
    both sides               the table of `megadna evaluate` (at most five bases on a side, counted in the train split,
                             what is not written unknown; k and smoothing chosen on valid), in the same random order

95 % intervals: bootstrap over windows, of differences over the same windows. Then, of what is written (model: in 32
rounds, or a base a round; chain: drawn exactly given both flanks): Jensen-Shannon distance of k-mers to the test split
without these windows, with its standard error over windows, beside the bases that were there.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from megadna.alphabet import base_codes, code_dna, dna_of
from megadna.data.dataset import ChunkDataset
from megadna.downstream.generate import generate
from megadna.downstream.generate_report import distance_error, word_counts, word_distance
from megadna.downstream.masked_bases import MaskedBases
from megadna.train.baselines import HiddenSamples, MarkovTable, fit

# Shapes: N windows, L bases of a window, G of a gap, C contexts of the chain (4^ORDER), 4 bases.

ORDER = 5
REPLICATES = 1000
WORDS = (2, 3, 4)


class Chain:
    """A Markov chain of ORDER bases; a context is a number in base 4, its first base the highest digit."""

    def __init__(self, chunks: list[np.ndarray]) -> None:
        counts_C4 = np.ones((4**ORDER, 4))
        for codes_L in [*chunks, *(np.where(one < 4, 3 - one.astype(int), 4)[::-1] for one in chunks)]:
            counts = word_counts([codes_L], ORDER + 1)[0]
            counts_C4 += counts.reshape(-1, 4)
        self.p_C4 = counts_C4 / counts_C4.sum(axis=1, keepdims=True)
        self._next_C4 = np.arange(4**ORDER)[:, None] * 4 % 4**ORDER + np.arange(4)

    def after(self, right: np.ndarray, gap: int) -> list[np.ndarray]:
        """p [C] of the bases `right` that follow `gap`, ..., 1, 0 bases after a context."""
        p_C = np.ones(4**ORDER)
        for base in right[::-1]:
            p_C = self.p_C4[:, base] * p_C[self._next_C4[:, base]]
        found = [p_C]
        for _ in range(gap):
            found.append((self.p_C4 * found[-1][self._next_C4]).sum(axis=1))
        return found[::-1]

    def gap_p(self, codes_L: np.ndarray, first: int, last: int) -> list[np.ndarray]:
        """p [4] of each base of the gap, given all to its left and the flank to its right."""
        return [p_4 for p_4, _ in self._walk(codes_L, first, last, None)]

    def draw(self, codes_L: np.ndarray, first: int, last: int, rng: np.random.Generator) -> np.ndarray:
        """The gap's bases, drawn given both flanks."""
        return np.array([base for _, base in self._walk(codes_L, first, last, rng)])

    def _walk(
        self, codes_L: np.ndarray, first: int, last: int, rng: np.random.Generator | None
    ) -> list[tuple[np.ndarray, int]]:
        after = self.after(codes_L[last : last + ORDER], last - first)
        context = int(codes_L[first - ORDER : first].astype(int) @ 4 ** np.arange(ORDER)[::-1])
        found = []
        for at in range(first, last):
            p_4 = self.p_C4[context] * after[at - first + 1][self._next_C4[context]]
            p_4 /= p_4.sum()
            base = int(codes_L[at]) if rng is None else int(rng.choice(4, p=p_4))
            context = int(self._next_C4[context, base])
            found.append((p_4, base))
        return found


def model_bits(model: MaskedBases, windows_NL: np.ndarray, first: int, orders_NG: np.ndarray) -> np.ndarray:
    """Bits [N] of the gaps, written in these orders of their bases."""
    bits = []
    for codes_L, order_G in zip(windows_NL, orders_NG, strict=True):
        shown_GL, at_G = steps_of(codes_L, first, order_G)
        log_p_G4 = model.at(shown_GL, np.arange(len(order_G)), at_G)
        bits.append(-log_p_G4[np.arange(len(order_G)), codes_L[at_G]].sum() / np.log(2))
    return np.array(bits)


def steps_of(codes_L: np.ndarray, first: int, order_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what is shown when each base is written [G, L], 4 where nothing is; the position that is written [G])."""
    at_G = first + order_G
    shown_GL = np.repeat(codes_L[None], len(order_G), axis=0)
    for step in range(len(order_G)):
        shown_GL[step, at_G[step:]] = 4
    return shown_GL, at_G


def table_bits(
    table: MarkovTable, k: int, smoothing: float, windows_NL: np.ndarray, first: int, orders_NG: np.ndarray
) -> np.ndarray:
    """As `model_bits` for counts of the bases on either side."""
    bits = []
    for codes_L, order_G in zip(windows_NL, orders_NG, strict=True):
        shown_GL, at_G = steps_of(codes_L, first, order_G)
        hidden_GL = shown_GL == 4
        samples = HiddenSamples(np.repeat(codes_L[None], len(order_G), axis=0), hidden_GL, np.zeros_like(hidden_GL))
        rows, positions = hidden_GL.nonzero()
        asked = positions == at_G[rows]
        p_G4 = table.probabilities(samples, smoothing)[k][asked]
        bits.append(-np.log2(p_G4[np.arange(len(order_G)), codes_L[at_G]]).sum())
    return np.array(bits)


def chosen(table: MarkovTable, valid: list[np.ndarray], gap: int) -> tuple[int, float]:
    """k and smoothing that suit gaps of half this length in windows of valid."""
    hidden_NL = np.zeros((len(valid), len(valid[0])), bool)
    middle = hidden_NL.shape[1] // 2
    hidden_NL[:, middle : middle + max(1, gap // 2)] = True
    return table.choose(HiddenSamples(np.stack(valid), hidden_NL, np.zeros_like(hidden_NL)))


def tiles(chunks: ChunkDataset, window: int, number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """`number` windows without N, evenly spread over the split; and all others."""
    found = []
    for index in range(len(chunks)):
        codes = base_codes(chunks[index])
        cut = [codes[at : at + window] for at in range(0, len(codes) - window + 1, window)]
        found += [one for one in cut if (one < 4).all()]
    picks = set(np.linspace(0, len(found) - 1, min(number, len(found))).astype(int).tolist())
    return [found[at] for at in sorted(picks)], [one for at, one in enumerate(found) if at not in picks]


def interval(bits_N: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of bits a base over windows, and its 95 % interval."""
    means = bits_N[rng.integers(0, len(bits_N), (REPLICATES, len(bits_N)))].mean(axis=1)
    return float(bits_N.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def likelihoods(
    model: MaskedBases, chain: Chain, table: MarkovTable, windows_NL: np.ndarray, valid: list[np.ndarray], gap: int
) -> pd.DataFrame:
    """Bits a base of the gaps, and the model's less those of each."""
    rng = np.random.default_rng((1, gap))
    first = (windows_NL.shape[1] - gap) // 2
    last = first + gap
    forward_NG = np.tile(np.arange(gap), (len(windows_NL), 1))
    random_NG = rng.permuted(forward_NG, axis=1)
    k, smoothing = chosen(table, valid, gap)
    hidden_NL = windows_NL.copy()
    hidden_NL[:, first:last] = 4
    at = np.repeat(np.arange(len(windows_NL)), gap), np.tile(np.arange(first, last), len(windows_NL))
    once_NG = -model.at(hidden_NL, *at)[np.arange(len(at[0])), windows_NL[at]].reshape(-1, gap) / np.log(2)
    chain_p = [chain.gap_p(codes_L, first, last) for codes_L in windows_NL]
    true_NG = np.take_along_axis(np.array(chain_p), windows_NL[:, first:last, None].astype(int), axis=2)
    bits = {
        "model, random order": model_bits(model, windows_NL, first, random_NG),
        "model, left to right": model_bits(model, windows_NL, first, forward_NG),
        "model, all at once": once_NG.sum(axis=1),
        "Markov chain": -np.log2(true_NG).sum(axis=(1, 2)),
        f"both sides, k = {k}": table_bits(table, k, smoothing, windows_NL, first, random_NG),
    }
    rows = []
    for name, bits_N in bits.items():
        less_N = (bits["model, random order"] - bits_N) / gap
        less = "{:+.4f} ({:+.4f} to {:+.4f})".format(*interval(less_N, rng))
        value = "{:.4f} ({:.4f} to {:.4f})".format(*interval(bits_N / gap, rng))
        rows.append({"gap": gap, "": name, "bits a base": value, "model less this": less})
    return pd.DataFrame(rows)


def distances(model: str, chain: Chain, windows_NL: np.ndarray, others: list[np.ndarray], gap: int) -> pd.DataFrame:
    """k-mer distances of what is written to other windows."""
    rng = np.random.default_rng((2, gap))
    first = (windows_NL.shape[1] - gap) // 2
    last = first + gap
    filled = {
        "model, 32 rounds": written(model, windows_NL, first, last, 32),
        "model, a base a round": written(model, windows_NL, first, last, gap),
        "Markov chain": [chain.draw(codes_L, first, last, rng) for codes_L in windows_NL],
        "the bases that were there": list(windows_NL[:, first:last]),
    }
    rows = []
    for name, gaps in filled.items():
        row = {"gap": gap, "": name}
        for word in WORDS:
            counts, reference = word_counts(gaps, word), word_counts(others, word)
            distance, error = word_distance(counts, reference), distance_error(counts, reference, rng)
            row[f"{word}-mers"] = f"{distance:.4f} ± {error:.4f}"
        rows.append(row)
    return pd.DataFrame(rows)


def written(model: str, windows_NL: np.ndarray, first: int, last: int, rounds: int) -> list[np.ndarray]:
    """The gaps as `megadna generate` fills them."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gaps.fa"
        gapped_NL = windows_NL.copy()
        gapped_NL[:, first:last] = 4
        texts = (code_dna(codes_L).tobytes().decode() for codes_L in gapped_NL)
        path.write_text("".join(f">{number}\n{text}\n" for number, text in enumerate(texts)))
        found = generate(model, template=path, steps=rounds)["sequence"]
    return [base_codes(dna_of(text))[first:last] for text in found]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--spans", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--window", type=int, default=250)
    parser.add_argument("--number", type=int, default=50, help="windows of likelihoods (0: none)")
    parser.add_argument("--written", type=int, default=150, help="windows of k-mer distances")
    options = parser.parse_args()
    train, valid, test = (ChunkDataset(options.data, split) for split in ("train", "valid", "test"))
    chain = Chain([base_codes(train[index]) for index in range(len(train))])
    if options.number:
        table = fit((train[index] for index in range(len(train))), both_strands=True)
        windows_NL = np.stack(tiles(test, options.window, options.number)[0])
        model, near = MaskedBases(options.model), tiles(valid, options.window, 400)[0]
        for gap in options.spans:
            print(likelihoods(model, chain, table, windows_NL, near, gap).to_string(index=False), flush=True)
    windows, others = tiles(test, options.window, options.written)
    for gap in options.spans:
        print(distances(options.model, chain, np.stack(windows), others, gap).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
