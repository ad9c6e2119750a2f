"""What was written beside held-out real and shuffled sequences: measures, a picture, one HTML page.

In:  codes of the sequences written; a FASTA of held-out real ones; what the model was trained on; scores.
Out: a table with a row a measure and a column a set, and report.html, which loads nothing.

Real windows have the lengths of what was written and do not overlap; one part of them is the reference of k-mer
distances, another, as many as were written, the control `real`; `shuffled` is `real` with its dinucleotides shuffled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.spatial.distance import jensenshannon, pdist

from megadna.alphabet import base_codes, code_dna
from megadna.downstream.generate_rules import IS_GC, Motif, codes_of
from megadna.downstream.html_page import page, table
from megadna.downstream.pictures import inline_svg, styled
from megadna.downstream.windows import shuffle_dinucleotides
from megadna.errors import require
from megadna.genome.records import Genome, read_genome
from megadna.log import get_logger
from megadna.progress import tracked
from megadna.train.plots import COLOURS, GREY

log = get_logger(__name__)

# Shapes: N sequences, L bases of one, Q words of all queries, P positions of a contig, H hits.

WORDS = (2, 4, 6)
SEED = 12
"""Bases that a query and the training data must share for a copy to be seen."""
_DIAGONALS = 8  # with the most shared words, compared base by base for each query, strand and chunk
_CHUNK = 1 << 22
_MOST_PAIRS = 500  # sequences of which all pairs are compared
_RESAMPLES = 50
_SET_COLOURS = {"written": COLOURS[0], "real": COLOURS[2], "shuffled": GREY}

Codes = list[np.ndarray]


@dataclass
class Real:
    """Windows of held-out sequences."""

    reference: Codes
    control: Codes
    shuffled: Codes


def real_windows(path: Path, lengths: Sequence[int], seed: int) -> Real:
    """Windows without ambiguous bases that do not overlap, for each length as many controls as it occurs in `lengths`,
    and the others (200, or as many, at most) as reference; fewer of both, with a warning, where the file is short.
    UserError if it has fewer than two windows of a length."""
    contigs = [base_codes(dna) for dna in read_genome(path).bases.values()]
    found, rng = Real([], [], []), np.random.default_rng((seed, 1))
    for length, count in sorted(Counter(lengths).items()):
        ends = np.cumsum([len(codes) // length for codes in contigs])
        tiles: Codes = []
        for number in rng.permutation(ends[-1]):
            contig = int(np.searchsorted(ends, number, side="right"))
            last = len(contigs[contig]) // length - int(ends[contig] - number - 1)
            tile = contigs[contig][(last - 1) * length : last * length]
            tiles += [tile] * bool((tile < 4).all())
            if len(tiles) == count + max(count, 200):
                break
        require(len(tiles) > 1, f"{path}: fewer than two windows of {length} bases without N (--real); give more")
        controls = min(count, len(tiles) // 2)
        if controls < count:
            text = "%s: only %d windows of %d bases: %d of them are compared with %d sequences"
            log.warning(text, path, len(tiles), length, controls, count)
        found.control += tiles[:controls]
        found.reference += tiles[controls:]
    texts = (code_dna(one).tobytes().decode() for one in found.control)
    found.shuffled += [codes_of(shuffle_dinucleotides(text, rng)) for text in texts]
    return found


def word_counts(sequences: Codes, k: int) -> np.ndarray:
    """How often each k-mer occurs in each sequence, [N, 4^k], on the strand that is given."""
    counts = np.zeros((len(sequences), 4**k))
    for row, codes_L in zip(counts, sequences, strict=True):
        row[:] = np.bincount(_words(codes_L, k), minlength=4**k)[: 4**k]
    return counts


def _words(codes_L: np.ndarray, k: int) -> np.ndarray:
    """The k-mer that begins at each base as a number; 4^k where a base is ambiguous."""
    positions = max(0, len(codes_L) - k + 1)
    word_P, known_P = np.zeros(positions, np.int64), np.ones(positions, bool)
    for offset in range(k):
        here_P = codes_L[offset : offset + positions]
        word_P, known_P = 4 * word_P + here_P, known_P & (here_P < 4)
    return np.where(known_P, word_P, 4**k)


def word_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen-Shannon distance, 0 to 1 (base 2), between the k-mers of two sets of sequences from their counts."""
    return float(jensenshannon(one.sum(axis=0), other.sum(axis=0), base=2))


def distance_error(one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> float:
    """Standard error of `word_distance` over which sequences `one` has, by bootstrap."""
    picks = rng.integers(len(one), size=(_RESAMPLES, len(one)))
    return float(np.std([word_distance(one[pick], other) for pick in picks]))


def differences(sequences: Codes) -> np.ndarray:
    """Share of bases in which each pair of sequences of one length differs, of the first 500 sequences."""
    by_length: dict[int, Codes] = {}
    for codes_L in sequences[:_MOST_PAIRS]:
        by_length.setdefault(len(codes_L), []).append(codes_L)
    return np.concatenate([pdist(np.stack(alike), "hamming") for alike in by_length.values()])


def copies(sequences: Codes, training: Genome) -> tuple[np.ndarray, np.ndarray]:
    """(longest exact match, highest share of equal bases) of each sequence with either strand of the training data over
    those ungapped placements that share the most words of SEED bases; (0, NaN) where no word is shared."""
    strands = [*sequences, *(3 - codes_L[::-1] for codes_L in sequences)]
    words = [_words(codes_L, SEED) for codes_L in strands]
    word_Q = np.concatenate(words)
    owner_Q = np.repeat(np.arange(len(words)), [len(one) for one in words])
    offset_Q = np.concatenate([np.arange(len(one)) for one in words])
    order_Q = np.argsort(word_Q, kind="stable")
    word_Q, owner_Q, offset_Q = word_Q[order_Q], owner_Q[order_Q], offset_Q[order_Q]
    is_asked = np.zeros(4**SEED + 1, bool)
    is_asked[word_Q[word_Q < 4**SEED]] = True
    longest, identity = np.zeros(len(strands), int), np.full(len(strands), np.nan)
    reach = max(map(len, sequences)) + SEED
    for dna in tracked(training.bases.values(), "looking for copies", len(training.bases), "contigs"):
        contig = base_codes(dna)
        for start in range(0, len(contig), _CHUNK):
            chunk = contig[start : start + _CHUNK + reach]
            word_P = _words(chunk, SEED)
            at_P = np.flatnonzero(is_asked[word_P])
            low, high = (np.searchsorted(word_Q, word_P[at_P], side) for side in ("left", "right"))
            counts = high - low
            hit_H = np.repeat(low, counts) + np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            place_H = np.repeat(at_P, counts)
            _compare(strands, chunk, owner_Q[hit_H], offset_Q[hit_H], place_H, longest, identity)
    size = len(sequences)
    return np.maximum(longest[:size], longest[size:]), np.fmax(identity[:size], identity[size:])


def _compare(
    strands: Codes, chunk: np.ndarray, owner_H: np.ndarray, offset_H: np.ndarray, place_H: np.ndarray,
    longest: np.ndarray, identity: np.ndarray,
) -> None:  # fmt: skip
    """Raise `longest` and `identity` of each strand to what its hits in a chunk give."""
    if not len(owner_H):
        return
    hits = pd.DataFrame({"owner": owner_H, "line": place_H - offset_H, "offset": offset_H})
    hits = hits.sort_values(["owner", "line", "offset"], ignore_index=True)
    run = (hits.diff() != (0, 0, 1)).any(axis=1).cumsum()  # words that follow each other on a diagonal
    matches = hits.groupby(["owner", run]).size().groupby("owner").max() + SEED - 1
    longest[matches.index] = np.maximum(longest[matches.index], matches)
    lines = hits.groupby(["owner", "line"]).size().sort_values(ascending=False, kind="stable")
    for owner, diagonal in lines.groupby("owner").head(_DIAGONALS).index:
        codes_L = strands[owner]
        low, high = max(0, -diagonal), min(len(codes_L), len(chunk) - diagonal)
        same = (codes_L[low:high] == chunk[diagonal + low : diagonal + high]).sum() / len(codes_L)
        identity[owner] = np.fmax(identity[owner], same)


Scorer = Callable[[Codes], dict[str, np.ndarray]]
"""Codes -> the scores [N] of each oracle and judge, by name."""


@dataclass
class Comparison:
    """The measures of each set."""

    sets: dict[str, Codes]
    rows: list[tuple[str, list[str]]]
    """Measure, and a text for each set."""
    series: dict[str, dict[str, np.ndarray]]
    """What the picture shows: numbers of each sequence by measure and set."""
    distances: dict[int, dict[str, tuple[float, float]]]
    """k-mer distance to the reference and its standard error, by k and set."""


def compare(
    written: Codes, real: Real, training: Path | None, score: Scorer, motifs: Sequence[str], seed: int
) -> Comparison:
    """Every measure of what was written and of the two controls."""
    sets = {"written": written, "real": real.control, "shuffled": real.shuffled}
    found = Comparison(sets, [], {}, {})
    found.rows.append(("sequences (bases)", [f"{len(s)} ({sum(map(len, s)):,})" for s in sets.values()]))
    rng = np.random.default_rng((seed, 2))
    for k in WORDS:
        reference = word_counts(real.reference, k)
        counts = {name: word_counts(one, k) for name, one in sets.items()}
        found.distances[k] = {
            name: (word_distance(one, reference), distance_error(one, reference, rng)) for name, one in counts.items()
        }
        texts = [f"{value:.4f} ± {error:.4f}" for value, error in found.distances[k].values()]
        found.rows.append((f"Jensen-Shannon distance of {k}-mers to other real windows", texts))
    found.series["share of G and C"] = {n: np.array([IS_GC[c].mean() for c in s]) for n, s in sets.items()}
    for text in dict.fromkeys(motifs):
        motif = Motif(text)
        per_kb = [1000 * sum(map(motif.count, s)) / sum(map(len, s)) for s in sets.values()]
        found.rows.append((f"{text} per 1,000 bases, both strands", [f"{value:.3g}" for value in per_kb]))
    scores = {name: score(one) for name, one in sets.items()}
    for key in scores["written"]:
        found.series[key] = {name: one[key] for name, one in scores.items()}
    found.series["share of differing bases, pairs"] = {name: differences(one) for name, one in sets.items()}
    if training is not None:
        genome = read_genome(training)
        near = {name: copies(one, genome) for name, one in sets.items()}
        found.series["longest exact match with training data"] = {n: longest for n, (longest, _) in near.items()}
        found.series["nearest identity to training data"] = {n: share for n, (_, share) in near.items()}
    for measure, values in found.series.items():
        found.rows.append((f"{measure}: mean (least to most)", [_summary(one) for one in values.values()]))
    for key in scores["written"]:
        limit = np.percentile(scores["real"][key], 95)
        above = [f"{(one[key] > limit).mean():.3f}" for one in scores.values()]
        found.rows.append((f"{key}: share above the 95th percentile of real ({limit:.4g})", above))
    return found


def _summary(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return f"{known.mean():.4g} ({known.min():.4g} to {known.max():.4g})" if len(known) else "none"


def draw(found: Comparison) -> Figure:
    """k-mer distances as bars, and the cumulative distribution of each other measure."""
    panels = {measure: values for measure, values in found.series.items() if any(map(len, values.values()))}
    lines = len(panels) // 3 + 1
    figure = Figure(figsize=(11, 2.9 * lines))
    axes = figure.subplots(lines, 3, squeeze=False).ravel()
    for number, name in enumerate(found.sets):
        both_W2 = np.array([by_set[name] for by_set in found.distances.values()])
        at = np.arange(len(WORDS)) + 0.27 * (number - 1)
        axes[0].bar(at, both_W2[:, 0], 0.25, yerr=both_W2[:, 1], label=name, color=_SET_COLOURS[name])
    axes[0].set_xticks(range(len(WORDS)), [f"{k}-mers" for k in WORDS])
    axes[0].set_title("Jensen-Shannon distance")
    axes[0].legend()
    unused = 3 * lines - 1 - len(panels)
    for axis, (measure, values) in zip(axes[1:], [*panels.items(), *[("", {})] * unused], strict=True):
        axis.set_visible(bool(measure))
        for name, one in values.items():
            if len(known := one[np.isfinite(one)]):
                axis.ecdf(known, label=name, color=_SET_COLOURS[name], linestyle="--" if name == "shuffled" else "-")
        axis.set_title(measure, fontsize=9.5)
        axis.set_ylabel("share at most this")
    return figure


def report_page(found: Comparison, facts: str, table_of_scores: pd.DataFrame) -> str:
    """The whole page."""
    with styled():
        picture = inline_svg(draw(found))
    shown = table_of_scores.drop(columns="sequence").head(50)
    body = [
        f'<div class="wide">{picture}</div>',
        "<h2>Measures</h2>",
        table(["measure", *found.sets], [[measure, *texts] for measure, texts in found.rows]),
        f"<p>{escape(_NOTES)}</p>",
        f"<h2>Sequences (the first {len(shown)} of {len(table_of_scores)})</h2>",
        table(list(shown.columns), shown.values.tolist()),
    ]
    return page("Written by a language model", facts, body)


_NOTES = (
    "real: held-out windows of the same lengths; shuffled: these with their dinucleotides shuffled. k-mers are counted "
    "on the given strand, ± is the standard error over sequences by bootstrap. Copies of training data are looked for "
    f"on both strands among ungapped placements that share {SEED} bases; 0 and none: no such placement. Scores are "
    "what models predict; nothing here was measured in a cell, and nothing was screened for hazards: run a screening "
    "tool before any synthesis."
)
