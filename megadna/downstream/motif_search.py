"""Motif discovery as DNABERT does it (Ji et al. 2021, motif/motif_utils.py of its repository), on arrays.

In:  positive sequences with the importance of each base; negative sequences.
Out: motifs, each with its instances in the positives, aligned.

1. Runs of at least `min_length` bases whose importance is above the sequence's mean and above ten times its minimum.
   (Importance with a sign has a negative minimum, which leaves the first condition.)
2. Each distinct run is a candidate: it is counted once in every sequence that contains it anywhere. Hypergeometric
   test: of N sequences, K positive, n contain it, and x of these are positive; p = P(X >= x). Benjamini-Hochberg over
   the candidates; those with an adjusted p below the cutoff remain.
3. Shortest first, each is aligned without gaps to every motif so far, overhanging ends free, a match counting 1. Where
   the best score is at least max(min_length - 1, half the shorter one), its instances join the motif of the best score
   (all of those that tie), shifted as aligned; else it begins a motif.
4. An instance is the window of `window` bases centred on the motif; those that cross an end of their sequence are left
   out. Motifs of fewer than `min_instances` are left out.

Strands are not compared, as in DNABERT: what occurs on both gives two motifs.
In DNABERT's own step 3 ties are found by comparing an alignment with a number, and windows that end with their sequence
are left out; here scores are compared, and these windows stay. Equal lengths: the smaller p is first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from megadna.alphabet import BASES, OTHER, base_codes, dna_of
from megadna.errors import require
from megadna.log import counted, get_logger

log = get_logger(__name__)

# Shapes: L bases of a sequence, M candidates, W bases of a window, 4 the bases A C G T.


@dataclass(frozen=True)
class Candidate:
    """A distinct run of high importance."""

    text: str
    runs: list[tuple[int, int]]
    """(number of the positive sequence, first base) of each run."""
    positives: int
    """Positive sequences that contain it anywhere."""
    negatives: int
    """Negative sequences that do."""
    p: float
    """Of the hypergeometric test."""
    q: float
    """p by Benjamini-Hochberg over all candidates."""


@dataclass
class FoundMotif:
    """A motif and its instances."""

    core: Candidate
    """The one that began it; the instances are aligned to it."""
    members: list[Candidate]
    """All that were merged, the core first."""
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(number of the positive sequence, first base under the core), of each run of a member."""
    windows: list[str] = field(default_factory=list)
    """Sequences of the instances, each as long as the window."""
    positions: list[tuple[int, int]] = field(default_factory=list)
    """(number of the positive sequence, first base) of each window."""

    @property
    def counts_W4(self) -> np.ndarray:
        """Instances with A, C, G, T at each position of the window; N counts a quarter of each."""
        codes_NW = np.stack([base_codes(dna_of(text)) for text in self.windows])
        each = [(codes_NW == code).sum(axis=0) + (codes_NW == OTHER).sum(axis=0) / 4 for code in range(4)]
        return np.stack(each, axis=1)


def find_motifs(
    sequences: Sequence[str],
    importances: Sequence[np.ndarray],
    negatives: Sequence[str],
    *,
    min_length: int = 5,
    window: int = 24,
    cutoff: float = 0.005,
    min_instances: int = 3,
) -> list[FoundMotif]:
    """The motifs, the smallest adjusted p first. UserError if there is no sequence, or an array has another length."""
    require(bool(sequences) and bool(negatives), "motifs need positive and negative sequences")
    for number, (bases, importance_L) in enumerate(zip(sequences, importances, strict=True)):
        same = len(bases) == len(importance_L)
        require(same, f"sequence {number}: {len(bases)} bases and {len(importance_L)} importances")
    runs = high_runs(sequences, importances, min_length)
    candidates = [one for one in with_p_values(runs, sequences, negatives) if one.q < cutoff]
    found = merged(candidates, min_length)
    for motif in found:
        _cut_windows(motif, sequences, window)
    num_starts = sum(len(set(motif.starts)) for motif in found)
    if cut := num_starts - sum(len(motif.windows) for motif in found):
        text = "%d of %s left out: the window crosses an end of the sequence (a smaller --window keeps more)"
        log.info(text, cut, counted(num_starts, "instance"))
    found = [motif for motif in found if len(motif.windows) >= min_instances]
    return sorted(found, key=lambda motif: (min(one.q for one in motif.members), -len(motif.windows)))


def high_runs(
    sequences: Sequence[str], importances: Sequence[np.ndarray], min_length: int
) -> dict[str, list[tuple[int, int]]]:
    """(number of the sequence, first base) of the runs of each text, in the order of the sequences; a base that is not
    A, C, G or T, or has no importance, ends a run."""
    found: dict[str, list[tuple[int, int]]] = {}
    for number, (bases, importance_L) in enumerate(zip(sequences, importances, strict=True)):
        known_L = ~np.isnan(importance_L) & (base_codes(dna_of(bases)) != OTHER)
        if not known_L.any():
            continue
        values = importance_L[known_L]
        high_L = known_L & (importance_L > values.mean()) & (importance_L > 10 * values.min())
        edges = np.flatnonzero(np.diff(np.concatenate([[False], high_L, [False]]).astype(np.int8)))
        for start, end in edges.reshape(-1, 2).tolist():
            if end - start >= min_length:
                found.setdefault(bases[start:end], []).append((number, start))
    return found


def with_p_values(
    runs: dict[str, list[tuple[int, int]]], positives: Sequence[str], negatives: Sequence[str]
) -> list[Candidate]:
    """The candidates with p and adjusted p, in the order of `runs`."""
    from scipy.stats import false_discovery_control, hypergeom

    if not runs:
        return []
    in_positives, in_negatives = containing(runs, positives), containing(runs, negatives)
    x_M = np.array([in_positives[text] for text in runs])
    n_M = x_M + [in_negatives[text] for text in runs]
    p_M = hypergeom.sf(x_M - 1, len(positives) + len(negatives), len(positives), n_M).clip(max=1.0)
    q_M = false_discovery_control(p_M)
    return [
        Candidate(text, runs[text], int(x), in_negatives[text], float(p), float(q))
        for text, x, p, q in zip(runs, x_M, p_M, q_M, strict=True)
    ]


def containing(texts: Iterable[str], sequences: Sequence[str]) -> dict[str, int]:
    """Sequences that contain each text."""
    counts = dict.fromkeys(texts, 0)
    lengths = {len(text) for text in counts}
    for bases in sequences:
        for size in lengths:
            for word in {bases[at : at + size] for at in range(len(bases) - size + 1)} & counts.keys():
                counts[word] += 1
    return counts


def best_overlap(one: str, other: str) -> tuple[int, int]:
    """(most bases that match, first base of `other` minus first base of `one` there) over all ungapped alignments with
    free ends; of several the one with the longest overlap, then the leftmost."""
    first, second = dna_of(one), dna_of(other)
    best = (0, 0, 0)
    for shift in range(1 - len(second), len(first)):  # base 0 of `other` lies at base `shift` of `one`
        low, high = max(0, shift), min(len(first), shift + len(second))
        matches = int((first[low:high] == second[low - shift : high - shift]).sum())
        if (matches, high - low, -shift) > best:
            best = (matches, high - low, -shift)
    return best[0], -best[2]


def merged(candidates: Sequence[Candidate], min_length: int) -> list[FoundMotif]:
    """Steps 3 of the list above."""
    found: list[FoundMotif] = []
    for one in sorted(candidates, key=lambda each: (len(each.text), each.p, each.text)):
        overlaps = [best_overlap(one.text, motif.core.text) for motif in found]
        least = [max(min_length - 1, min(len(one.text), len(motif.core.text)) / 2) for motif in found]
        good = [score if score >= limit else 0 for (score, _), limit in zip(overlaps, least, strict=True)]
        best = max(good, default=0)
        if not best:
            found.append(FoundMotif(one, [one], list(one.runs)))
            continue
        for motif, score, (_, shift) in zip(found, good, overlaps, strict=True):
            if score == best:
                motif.members.append(one)
                motif.starts += [(number, start + shift) for number, start in one.runs]
    return found


def _cut_windows(motif: FoundMotif, sequences: Sequence[str], window: int) -> None:
    """Each distinct instance once: the runs of two members may be one."""
    before = (window - len(motif.core.text)) // 2
    for number, start in dict.fromkeys(motif.starts):
        first = start - before
        if first >= 0 and first + window <= len(sequences[number]):
            motif.windows.append(sequences[number][first : first + window])
            motif.positions.append((number, first))


def consensus(p_W4: np.ndarray) -> str:
    """The most probable base of each position, lower case below 0.5."""
    return "".join(BASES[int(p.argmax())] if p.max() >= 0.5 else BASES[int(p.argmax())].lower() for p in p_W4)


def informative(p_W4: np.ndarray, sites: int, least_bits: float = 0.25) -> slice:
    """From the first to the last position with that much information, sum p log2(p / 0.25), beyond what `sites` random
    sequences have on average, 3 / (2 ln 2 sites) (Schneider et al. 1986); all positions, if none has it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bits_W = np.where(p_W4 > 0, p_W4 * np.log2(4 * p_W4), 0.0).sum(axis=1)
    at = np.flatnonzero(bits_W - 3 / (2 * np.log(2) * sites) >= least_bits)
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, len(p_W4))
