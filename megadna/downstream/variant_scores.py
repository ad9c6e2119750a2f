"""Scores of changes of a genome by a masked language model: definitions, and the passes that compute them.

In:  a MaskedBases, a genome in memory, substitutions or insertions and deletions on its contigs.
Out: fp64 numbers, forward and reverse strand apart.

A change lies in the middle of a window with an odd number of bases, so that it does so on both strands; at a contig's
end the window is moved inwards (records.centred_starts, as in `mutate`). The reverse strand is the same window,
reverse-complemented. Natural logarithms; negative: the model finds the ALT allele less likely.
     llr        sum over the changed bases, all hidden together, of ln p(ALT) - ln p(REF).
     pll        sum over the window of ln p(base), each hidden alone, with the ALT allele, less the same with REF. The
                window with ALT begins at the same base and is as long: it ends earlier or later on the contig.
     influence  none hidden; mean over the other bases of the window of the largest |change of ln p/(1 - p)| among A, C,
                G, T.
     distance   none hidden; between the mean last hidden states of the two windows: Euclidean, and 1 - cosine.
What needs one pass is computed once: all ALTs of a site share the window with REF and its hidden bases.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megadna.alphabet import OTHER, base_codes, code_dna, dna_of
from megadna.genome.records import Genome, centred_starts, reverse_complement
from megadna.genome.vcf import Allele

if TYPE_CHECKING:
    from megadna.downstream.masked_bases import MaskedBases

# Shapes: N changes, 2 strands (forward, reverse), H hidden bases, L bases of a window.


class Change(NamedTuple):
    """An allele on a contig of the genome."""

    contig: str
    allele: Allele


class VariantScorer:
    """A model, a genome and the size of a window."""

    def __init__(self, model: "MaskedBases", genome: Genome, window: int) -> None:
        self.model, self.genome, self.window = model, genome, window

    def fits(self, allele: Allele) -> bool:
        """Whether the allele takes half of a window at most."""
        return max(len(allele.ref), len(allele.alt)) <= max(1, self.window // 2)

    def llr(self, changes: Sequence[Change]) -> np.ndarray:
        """[N, 2] of substitutions."""
        jobs: dict[tuple[str, int, int, tuple[int, ...]], int] = {}
        job_N = []
        for contig, allele in changes:
            changed = allele.changed
            key = (contig, *self._span(contig, (changed[0] + changed[-1]) // 2), changed)
            job_N.append(jobs.setdefault(key, len(jobs)))
        windows, hidden = [], []
        for contig, start, end, changed in jobs:
            text = self._text(contig, start, end)
            at = [position - start for position in changed]
            windows += [text, reverse_complement(text)]
            hidden += [at, [len(text) - 1 - position for position in at]]
        log_p = self.model.hidden(windows, hidden)
        found_N2 = np.empty((len(changes), 2))
        for number, ((_, allele), job) in enumerate(zip(changes, job_N, strict=True)):
            pairs = [(r, a) for r, a in zip(_codes(allele.ref), _codes(allele.alt), strict=True) if r != a]
            ref_H, alt_H = np.array(pairs).T
            index_H = np.arange(len(pairs))
            for strand, complement in ((0, 0), (1, 3)):  # codes of complementary bases add up to 3
                log_p_H4 = log_p[2 * job + strand].astype(np.float64)
                of_alt, of_ref = (log_p_H4[index_H, np.abs(complement - codes_H)] for codes_H in (alt_H, ref_H))
                found_N2[number, strand] = (of_alt - of_ref).sum()
        return found_N2

    def pll(self, changes: Sequence[Change]) -> np.ndarray:
        """[N, 2]."""
        return self._compared(changes, self._log_likelihoods, lambda ref, alt, at: alt - ref)

    def influence(self, changes: Sequence[Change]) -> np.ndarray:
        """[N, 2] of substitutions."""
        return self._compared(changes, self._log_odds, _mean_change)

    def distance(self, changes: Sequence[Change]) -> np.ndarray:
        """[N, 2, 2]: strand, then Euclidean and 1 - cosine."""
        return self._compared(changes, self.model.pooled, _distances, shape=(2,))

    def context(self, change: Change) -> int:
        """Number of the pentanucleotide and ALT of a single-base substitution, the same for both strands; -1 for other
        changes, and where it has a base other than A, C, G, T."""
        contig, allele = change
        if len(allele.ref) != 1 or len(allele.alt) != 1:
            return -1
        bases = self.genome.bases[contig]
        if allele.start < 2 or allele.start + 3 > len(bases):
            return -1
        codes = base_codes(bases[allele.start - 2 : allele.start + 3]).tolist()
        if OTHER in codes:
            return -1
        (alt,) = _codes(allele.alt)
        strands = [*codes, alt], [*(3 - code for code in codes[::-1]), 3 - alt]
        return min(int(np.polyval(strand, 4)) for strand in strands)

    def _compared(
        self,
        changes: Sequence[Change],
        passes: Callable[[list[str]], list],
        compare: Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray],
        shape: tuple[int, ...] = (),
    ) -> np.ndarray:
        """`compare` what `passes` gives of the windows with REF and with ALT, strand by strand, where the third
        argument has the positions of REF's bases in the window; each window runs once."""
        pairs = [self._pair(change) for change in changes]
        texts = dict.fromkeys(text for _, ref, alt in pairs for text in (ref, alt))
        both = list(dict.fromkeys(text for one in texts for text in (one, reverse_complement(one))))
        values = dict(zip(both, passes(both), strict=True))
        found = np.empty((len(changes), 2, *shape))
        for number, ((start, ref, alt), (_, allele)) in enumerate(zip(pairs, changes, strict=True)):
            at = [allele.start - start + offset for offset in range(len(allele.ref))]
            found[number, 0] = compare(values[ref], values[alt], at)
            back = [len(ref) - 1 - position for position in at]
            found[number, 1] = compare(values[reverse_complement(ref)], values[reverse_complement(alt)], back)
        return found

    def _span(self, contig: str, centre: int) -> tuple[int, int]:
        length = len(self.genome.bases[contig])
        start = int(centred_starts(np.array(centre), self.window, length))
        return start, min(length, start + self.window)

    def _text(self, contig: str, start: int, end: int) -> str:
        """Upper case; N for all but A, C, G, T."""
        return code_dna(base_codes(self.genome.bases[contig][start:end])).tobytes().decode()

    def _pair(self, change: Change) -> tuple[int, str, str]:
        """(first base, window with REF, window with ALT)."""
        contig, allele = change
        after = allele.start + len(allele.ref)
        centre = (allele.start + max(allele.start, after - 1)) // 2
        start, end = self._span(contig, centre)
        ref, size = self._text(contig, start, end), end - start
        alt = self._text(contig, start, allele.start) + allele.alt.decode() + self._text(contig, after, after + size)
        size = min(len(ref), len(alt))
        return start, ref[:size], alt[:size]

    def _log_likelihoods(self, texts: list[str]) -> list[np.float64]:
        found = []
        for text in texts:  # a pass for each base: one window at a time fills batches
            code_L = base_codes(dna_of(text))
            known = np.flatnonzero(code_L != OTHER)
            log_p = self.model.hidden([text] * len(known), [[position] for position in known.tolist()])
            true_H = np.array([log_p_14[0, code] for log_p_14, code in zip(log_p, code_L[known], strict=True)], float)
            found.append(np.float64(np.nan) if np.isnan(true_H).all() else np.nansum(true_H))
        return found

    def _log_odds(self, texts: list[str]) -> list[np.ndarray]:
        """[L, 4]."""
        found = []
        for log_p_L4 in self.model.shown(texts):
            others = [np.logaddexp.reduce(np.delete(log_p_L4, base, axis=1), axis=1) for base in range(4)]
            found.append(log_p_L4 - np.stack(others, axis=1))
        return found


def _mean_change(ref_L4: np.ndarray, alt_L4: np.ndarray, at: list[int]) -> np.ndarray:
    change_L = np.delete(np.abs(alt_L4 - ref_L4).max(axis=1), at).astype(np.float64)
    return np.array(np.nan if np.isnan(change_L).all() else np.nanmean(change_L))


def _distances(ref_E: np.ndarray, alt_E: np.ndarray, _: list[int]) -> np.ndarray:
    one, other = ref_E.astype(np.float64), alt_E.astype(np.float64)
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    return np.array([np.linalg.norm(one - other), 1 - cosine])


def _codes(bases: bytes) -> list[int]:
    return base_codes(np.frombuffer(bases, np.uint8)).tolist()
