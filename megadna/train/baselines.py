"""Scores of simple models on the evaluation samples, which see exactly what the encoder sees.

In:  HiddenSamples: the bases of each sample and which of them are hidden. Hidden flank bases are hidden here too.
Out: ChunkSums, as for the encoder, of
     uniform       2 bits;
     composition   the sample's own visible composition, one pseudo-count a base;
     markov        the k bases on either side of the hidden one, counted in the training split. An unknown flank base
                   (hidden, N, outside the sample) is a fifth symbol whose counts are the sum over the four.
Markov probabilities back off from k to k - 1 and so on to the composition of the training split, each shorter context
being the Dirichlet prior of the longer (MacKay & Peto 1995, "A hierarchical Dirichlet language model"):
     p_j(b | context) = (n_j(context, b) + s p_{j-1}(b | context)) / (n_j(context) + s).
k and the strength s are chosen on valid.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megadna.alphabet import OTHER, Dna, base_codes
from megadna.errors import UserError
from megadna.files import write_json
from megadna.log import get_logger
from megadna.progress import Progress, tracked
from megadna.reading import read_json
from megadna.train.bits import ChunkSums, UnitScores
from megadna.train.run_folder import is_score

# Shapes: C samples, E the upper-case and the lower-case bases of each, L bases of a sample, N hidden bases over all
# samples, J context orders 0..k, 4 the bases A C G T.

log = get_logger(__name__)

NAMES = ("uniform", "composition", "markov")
UNKNOWN = OTHER
"""Code of an unknown base: N, hidden, or outside the sample."""
MAX_K = 5  # the table of 5^10 x 4 counts takes 156 MB; k = 6 would take 3.9 GB
SMOOTHINGS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
MAX_FIT_BASES = 1_000_000_000  # both strands of it still fit 32-bit counts
BATCH_BASES = 4_000_000


class Chunks(Protocol):
    """A split of a dataset: `chunks[i]` gives the bases of chunk i as ASCII (uint8)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Dna: ...


@dataclass(frozen=True)
class HiddenSamples:
    """Evaluation samples as the baselines see them."""

    codes_CL: NDArray[np.uint8]
    """True bases, 0..3 = A, C, G, T; 4 = N, other, or past the end of a shorter sample."""
    hidden_CL: NDArray[np.bool_]
    """Which of them are hidden; never one of code 4."""
    lower_CL: NDArray[np.bool_]
    """Which of them are lower-case (soft-masked repeats)."""
    chunk_C: NDArray[np.int64] | None = None
    """Chunk of each sample if several samples are windows of one chunk; sums are then over chunks."""
    block: int = 1
    """Bases scored as one: accuracy then counts blocks predicted correctly as a whole."""

    def __post_init__(self) -> None:
        assert self.codes_CL.shape == self.hidden_CL.shape
        assert not (self.hidden_CL & (self.codes_CL == UNKNOWN)).any(), "only A, C, G and T may be hidden"

    @staticmethod
    def stack(
        samples: Iterable[tuple[Dna, NDArray[np.bool_]]],
        chunk_C: NDArray[np.int64] | None = None,
        block: int = 1,
    ) -> "HiddenSamples":
        """From (bases, hidden) of each sample; shorter ones are padded with UNKNOWN."""
        pairs = list(samples)
        bases_CL = np.zeros((len(pairs), max((len(bases) for bases, _ in pairs), default=0)), dtype=np.uint8)
        hidden_CL = np.zeros(bases_CL.shape, dtype=np.bool_)
        for row, (bases, hidden) in enumerate(pairs):
            bases_CL[row, : len(bases)] = bases
            hidden_CL[row, : len(hidden)] = hidden
        return HiddenSamples(base_codes(bases_CL), hidden_CL, bases_CL >= ord("a"), chunk_C, block)

    def visible(self) -> NDArray[np.uint8]:
        """Codes [C, L] with the hidden bases UNKNOWN: all that a baseline may read."""
        return np.where(self.hidden_CL, np.uint8(UNKNOWN), self.codes_CL)

    def sums(self, p_N4: NDArray[np.float64]) -> ChunkSums:
        """Sums per sample (or chunk) of the probabilities given for the hidden bases, in row order."""
        return self._sums_by_case(p_N4).by_group(np.repeat(self.rows(), 2))

    def by_case(self, p_N4: NDArray[np.float64]) -> dict[str, float | None]:
        """Bits of upper-case (unique) and lower-case (repeat) bases, as in an Evaluation; only if both are hidden."""
        entry_E = np.arange(2 * len(self.codes_CL))
        return self._sums_by_case(p_N4).by_case(self.rows()[entry_E >> 1], entry_E % 2)

    def rows(self) -> NDArray[np.int64]:
        """Number of each sample's chunk, or its own."""
        return np.arange(len(self.codes_CL)) if self.chunk_C is None else self.chunk_C

    def _sums_by_case(self, p_N4: NDArray[np.float64]) -> ChunkSums:
        """Sums [2 C] of the upper-case and of the lower-case bases of each sample."""
        row_N, _ = self.hidden_CL.nonzero()
        with np.errstate(divide="ignore"):
            log2_p_N4 = np.log2(p_N4)
        units = UnitScores.of_bases(log2_p_N4, self.codes_CL[self.hidden_CL])
        units = units.joined(self.block) if self.block > 1 else units
        return units.sums(2 * row_N + self.lower_CL[self.hidden_CL], 2 * len(self.codes_CL))

    def digest(self) -> str:
        """SHA-256 of bases and masks: identifies the evaluation whatever its settings are called."""
        content = hashlib.sha256(repr((self.codes_CL.shape, self.block)).encode())
        content.update(b"" if self.chunk_C is None else self.chunk_C.tobytes())
        content.update(self.codes_CL.tobytes())
        content.update(np.packbits(self.hidden_CL).tobytes())
        content.update(np.packbits(self.lower_CL & self.hidden_CL).tobytes())
        return content.hexdigest()


def uniform(samples: HiddenSamples) -> ChunkSums:
    """A quarter for every base."""
    return samples.sums(np.full((int(samples.hidden_CL.sum()), 4), 0.25))


def composition(samples: HiddenSamples) -> ChunkSums:
    """The visible composition of each sample: (count + 1) / (visible + 4)."""
    visible_CL = samples.visible()
    count_C4 = np.stack([(visible_CL == base).sum(axis=1) for base in range(4)], axis=1) + 1.0
    chunk_N, _ = samples.hidden_CL.nonzero()
    return samples.sums((count_C4 / count_C4.sum(axis=1, keepdims=True))[chunk_N])


@dataclass(frozen=True)
class MarkovTable:
    """Counts of the middle base for every context of k symbols on either side, the unknown symbol included."""

    k: int
    """Symbols on either side."""
    counts: NDArray[np.uint32]
    """[5^(2k), 4]; the context is a number in base 5, leftmost symbol first."""

    def probabilities(self, samples: HiddenSamples, smoothing: float) -> NDArray[np.float64]:
        """p [J, N, 4] of the hidden bases under contexts of j = 0..k symbols a side."""
        return self._back_off(*self._counts_of(samples), smoothing)

    def choose(self, samples: HiddenSamples) -> tuple[int, float]:
        """(k, smoothing) with the fewest bits on these samples, which should be those of valid."""
        counts_JN4, informed_JN = self._counts_of(samples)
        base_N = samples.codes_CL[samples.hidden_CL]
        best = (np.inf, 0, SMOOTHINGS[0])
        for smoothing in SMOOTHINGS:
            p_JN4 = self._back_off(counts_JN4, informed_JN, smoothing)
            bits_J = -np.log2(p_JN4[:, np.arange(len(base_N)), base_N]).mean(axis=1)
            best = min(best, *((float(bits), k, smoothing) for k, bits in enumerate(bits_J)))
        return best[1], best[2]

    def _counts_of(self, samples: HiddenSamples) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Counts [J, N, 4] of each context, and [J, N] whether it has a known base that the next shorter one lacks."""
        padded_CL = np.pad(samples.visible(), ((0, 0), (self.k, self.k)), constant_values=UNKNOWN)
        chunk_N, position_N = samples.hidden_CL.nonzero()
        offsets = np.delete(np.arange(2 * self.k + 1), self.k)
        symbols_N = padded_CL[chunk_N[:, None], position_N[:, None] + offsets].astype(np.int64)
        power = 5 ** np.arange(2 * self.k - 1, -1, -1, dtype=np.int64)
        counts, informed = [], []
        for j in range(self.k + 1):
            outer = np.abs(offsets - self.k) > j
            index_N = np.where(outer, UNKNOWN, symbols_N) @ power
            counts.append(self.counts[index_N].astype(np.float64))
            informed.append((symbols_N[:, np.abs(offsets - self.k) == j] != UNKNOWN).any(axis=1))
        return np.stack(counts), np.stack(informed)

    def _back_off(
        self, counts_JN4: NDArray[np.float64], informed_JN: NDArray[np.bool_], smoothing: float
    ) -> NDArray[np.float64]:
        p_JN4 = np.empty_like(counts_JN4)
        p_JN4[0] = (counts_JN4[0] + 1.0) / (counts_JN4[0].sum(axis=1, keepdims=True) + 4.0)
        for j in range(1, self.k + 1):
            total_N1 = counts_JN4[j].sum(axis=1, keepdims=True)
            longer_N4 = (counts_JN4[j] + smoothing * p_JN4[j - 1]) / (total_N1 + smoothing)
            # Where both symbols at distance j are unknown the counts are those of j - 1: no evidence to weigh twice.
            p_JN4[j] = np.where(informed_JN[j][:, None], longer_N4, p_JN4[j - 1])
        return p_JN4


def fit(chunks: Iterable[Dna], *, both_strands: bool, k: int = MAX_K) -> MarkovTable:
    """Count contexts in chunks (ASCII, any case), none across two chunks.

    `both_strands` counts the reverse complement too, as it should if the encoder trains on it.
    """
    width = 2 * k + 1
    counts = np.zeros(4**width, dtype=np.int64)
    for codes in _batches(chunks):
        counts += np.bincount(_windows(codes, width), minlength=4**width)
    window = counts.reshape((4,) * width)
    if both_strands:
        window = window + np.flip(window).transpose()  # complement: 3 - code on every axis; reverse: axes in reverse
    flanks = window.reshape(4**k, 4, 4**k).transpose(0, 2, 1)
    return MarkovTable(k, _with_unknown(np.ascontiguousarray(flanks, dtype=np.uint32), 2 * k))


def _batches(chunks: Iterable[Dna]) -> Iterator[NDArray[np.uint8]]:
    """Codes of many chunks in one array, an unknown one between any two, so that no window spans two chunks."""
    gap = np.full(1, UNKNOWN, dtype=np.uint8)
    batch, waiting = [gap], 0
    for chunk in chunks:
        batch += [base_codes(chunk), gap]
        waiting += len(chunk)
        if waiting >= BATCH_BASES:
            yield np.concatenate(batch)
            batch, waiting = [gap], 0
    yield np.concatenate(batch)


def _windows(codes: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Every window of `width` known bases as a number in base 4, leftmost base first."""
    count = max(0, len(codes) - width + 1)
    numbers, known = np.zeros(count, dtype=np.int64), np.ones(count, dtype=np.bool_)
    for offset in range(width):
        piece = codes[offset : offset + count]
        numbers = (numbers << 2) | (piece & 3)
        known &= piece != UNKNOWN
    return numbers[known]


def _with_unknown(counts: NDArray[np.uint32], num_symbols: int) -> NDArray[np.uint32]:
    """[4^n, ..., 4] counts -> [5^n, 4]: every context axis gains a fifth entry, the sum of its four."""
    for done in range(num_symbols):
        axis = counts.reshape(5**done, 4, -1)
        counts = np.concatenate([axis, axis.sum(axis=1, keepdims=True, dtype=np.uint32)], axis=1)
    return counts.reshape(-1, 4)


def baselines(
    train: Chunks,
    valid: HiddenSamples,
    test: HiddenSamples,
    *,
    dataset_id: str,
    both_strands: bool,
    groups: Sequence[str] = (),
    cache_file: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores on `test` of uniform, composition and markov (fitted on `train`, k and smoothing chosen on `valid`).

    groups: species of each sample of `test`; if there are several, composition and markov have the score of each.
    With `cache_file`, a JSON file, they are computed once for a dataset, strands, samples and masks; its other entries
    are kept. Call it on one rank.
    """
    settings = {
        "dataset": dataset_id,
        "both_strands": both_strands,
        "valid": valid.digest(),
        "test": test.digest(),
        "max_k": MAX_K,
        "max_letters": MAX_FIT_BASES,
        "smoothings": SMOOTHINGS,
        **({"groups": groups} if len(set(groups)) > 1 else {}),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    cache, is_ours = _read_cache(cache_file)
    if key not in cache:
        table = fit(_spread(train, MAX_FIT_BASES), both_strands=both_strands)
        with Progress("choosing k and smoothing of the Markov baseline"):
            k, smoothing = table.choose(valid)
        p_N4 = table.probabilities(test, smoothing)[k]
        simple, table_sums = composition(test), test.sums(p_N4)
        chosen = {**test.by_case(p_N4), "k": k, "smoothing": smoothing, **_by_group(table_sums, test, groups)}
        scores = {
            "uniform": uniform(test).score().to_dict(),
            "composition": {**simple.score().to_dict(), **_by_group(simple, test, groups)},
            "markov": {**table_sums.score().to_dict(), **chosen},
        }
        log.info("baselines of %s: Markov with k = %d, smoothing %g", dataset_id, k, smoothing)
        cache[key] = {"dataset": dataset_id, "baselines": scores}
        if cache_file is not None and is_ours:
            write_json(cache_file, cache)
    scored: dict[str, dict[str, Any]] = cache[key]["baselines"]
    return scored


def _by_group(sums: ChunkSums, samples: HiddenSamples, groups: Sequence[str]) -> dict[str, Any]:
    """{"groups": the score of each group that hides a base}, from the sums of samples or chunks; {} of one group."""
    if len(set(groups)) < 2:
        return {}
    rows, first = np.unique(samples.rows(), return_index=True)
    return {"groups": {name: score.to_dict() for name, score in sums.by_name(rows, np.array(groups)[first]).items()}}


def _read_cache(cache_file: Path | None) -> tuple[dict[str, Any], bool]:
    """(entries of the cache, whether it may be written): a file of that name that is not a cache is never replaced."""
    if cache_file is None or not cache_file.exists():
        return {}, True
    try:
        content = read_json(cache_file)
    except UserError:
        content = {"": None}
    if not all(isinstance(entry, dict) and isinstance(entry.get("baselines"), dict) for entry in content.values()):
        log.warning("%s is not a cache of baselines and is not replaced; computing them again", cache_file)
        return {}, False
    found = {key: [entry["baselines"].get(name) for name in NAMES] for key, entry in content.items()}
    return {key: entry for key, entry in content.items() if all(map(is_score, found[key]))}, True


def _spread(chunks: Chunks, max_bases: int) -> Iterator[Dna]:
    """All chunks, or evenly spread ones if all would exceed `max_bases`: a split may hold many genomes."""
    probe = range(0, len(chunks), max(1, len(chunks) // 1000))
    mean_length = np.mean([len(chunks[index]) for index in probe]) if len(chunks) else 0.0
    stride = max(1, int(np.ceil(len(chunks) * mean_length / max_bases)))
    indices = range(0, len(chunks), stride)
    for index in tracked(indices, "counting contexts of the Markov baseline", len(indices), "chunks"):
        yield chunks[index]
