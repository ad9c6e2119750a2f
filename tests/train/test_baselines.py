"""The fast baselines against a slow dictionary of contexts, known entropies; and hidden bases stay hidden."""

import gzip
import itertools
import json
import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megadna.alphabet import base_codes
from megadna.train import baselines as module
from megadna.train.baselines import HiddenSamples, MarkovTable, baselines, composition, fit, uniform
from megadna.train.bits import BITS, ChunkSums

LAMBDA = Path(__file__).parent.parent / "data" / "lambda.fa.gz"
BASES = "ACGT"


def lambda_chunks(length: int = 1000) -> list[np.ndarray]:
    with gzip.open(LAMBDA) as lines:
        genome = b"".join(line.strip() for line in lines if not line.startswith(b">"))
    return [letters(genome[i : i + length].decode()) for i in range(0, len(genome), length)]


def letters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def random_chunks(rng: np.random.Generator, alphabet: str, lengths: list[int]) -> list[np.ndarray]:
    return [letters("".join(rng.choice(list(alphabet), length))) for length in lengths]


def hide(chunks: list[np.ndarray], rng: np.random.Generator, fraction: float = 0.15) -> HiddenSamples:
    return HiddenSamples.stack((one, (rng.random(len(one)) < fraction) & (base_codes(one) != 4)) for one in chunks)


def seen(codes_CL: np.ndarray, hidden_CL: np.ndarray) -> HiddenSamples:
    return HiddenSamples(codes_CL, hidden_CL, np.zeros_like(hidden_CL))


def score_of(table: MarkovTable, samples: HiddenSamples, k: int, smoothing: float) -> ChunkSums:
    return samples.sums(table.probabilities(samples, smoothing)[k])


class Reference:
    """Contexts as strings in a dictionary; an unknown symbol is expanded into its four bases, one by one."""

    def __init__(self, chunks: list[np.ndarray], k: int, both_strands: bool) -> None:
        self.counts = defaultdict(Counter)
        for chunk in chunks:
            forward = bytes(chunk).decode().upper()
            reverse = forward[::-1].translate(str.maketrans("ACGT", "TGCA"))
            for text in (forward, reverse) if both_strands else (forward,):
                for i in range(k, len(text) - k):
                    window = text[i - k : i + k + 1]
                    if set(window) <= set(BASES):
                        self.counts[window[:k] + window[k + 1 :]][window[k]] += 1
        self.k = k

    def count(self, context: str) -> list[int]:
        choices = [BASES if symbol == "?" else symbol for symbol in context]
        expanded = ["".join(choice) for choice in itertools.product(*choices)]
        return [sum(self.counts[c][base] for c in expanded if c in self.counts) for base in BASES]

    def probabilities(self, left: str, right: str, j: int, smoothing: float) -> list[float]:
        known = left[self.k - j :], right[:j]
        counts = self.count("?" * (self.k - j) + known[0] + known[1] + "?" * (self.k - j))
        if j == 0:
            return [(count + 1) / (sum(counts) + 4) for count in counts]
        shorter = self.probabilities(left, right, j - 1, smoothing)
        if known[0][0] == "?" and known[1][-1] == "?":
            return shorter
        return [(count + smoothing * p) / (sum(counts) + smoothing) for count, p in zip(counts, shorter, strict=True)]

    def bits(self, samples: HiddenSamples, j: int, smoothing: float) -> list[float]:
        sums = []
        for codes, hidden in zip(samples.codes_CL, samples.hidden_CL, strict=True):
            seen = "?" * self.k
            seen += "".join("?" if h or c == 4 else BASES[c] for c, h in zip(codes, hidden, strict=True))
            seen += "?" * self.k
            total = 0.0
            for i in np.flatnonzero(hidden):
                left, right = seen[i : i + self.k], seen[i + self.k + 1 : i + 2 * self.k + 1]
                total -= math.log2(self.probabilities(left, right, j, smoothing)[codes[i]])
            sums.append(total)
        return sums


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_markov_equals_the_dictionary_on_random_sequence_with_n_and_short_chunks(k, both_strands):
    rng = np.random.default_rng(k)
    train = random_chunks(rng, "ACGTacgtNR", [300, 7, 4, 3, 1, 200])
    samples = hide(random_chunks(rng, "ACCGTN", [60, 45, 2]), rng, 0.4)
    table, reference = fit(train, both_strands=both_strands, k=k), Reference(train, k, both_strands)
    for j in range(k + 1):
        np.testing.assert_allclose(
            score_of(table, samples, j, 2.5).sums_CQ[:, BITS], reference.bits(samples, j, 2.5), rtol=1e-12
        )


def test_markov_equals_the_dictionary_on_phage_lambda():
    chunks = lambda_chunks()
    samples = hide(chunks[40:43], np.random.default_rng(0))
    table, reference = fit(chunks[:40], both_strands=True, k=3), Reference(chunks[:40], 3, True)
    np.testing.assert_allclose(
        score_of(table, samples, 3, 30.0).sums_CQ[:, BITS], reference.bits(samples, 3, 30.0), rtol=1e-12
    )


def test_batches_and_strides_change_no_count(monkeypatch):
    chunks = lambda_chunks()
    whole = fit(chunks, both_strands=True, k=2).counts
    monkeypatch.setattr(module, "BATCH_BASES", 2500)
    assert np.array_equal(fit(chunks, both_strands=True, k=2).counts, whole)
    assert whole[-1].sum() == 2 * sum(len(chunk) - 4 for chunk in chunks)


def test_too_many_letters_are_spread_evenly():
    chunks = [letters("A" * 100)] * 1000
    assert sum(len(chunk) for chunk in module._spread(chunks, 25_000)) == 25_000
    assert len(list(module._spread(chunks, 100_000))) == 1000


def test_an_independent_source_gives_its_entropy():
    rng = np.random.default_rng(1)
    p = np.array([0.4, 0.1, 0.2, 0.3])
    entropy = -(p * np.log2(p)).sum()
    drawn = np.frombuffer(BASES.encode(), dtype=np.uint8)[rng.choice(4, size=(300, 2000), p=p)]
    table = fit(drawn[:200], both_strands=False, k=2)
    valid, test = hide(list(drawn[200:250]), rng), hide(list(drawn[250:]), rng)
    for sums in (score_of(table, test, *table.choose(valid)), composition(test)):
        score = sums.score()
        assert abs(score.bits_per_base - entropy) < 4 * score.standard_error
        assert score.accuracy == pytest.approx(0.4, abs=0.02)


def test_a_periodic_sequence_gives_almost_no_bits():
    rng = np.random.default_rng(2)
    chunks = [letters("ACGGTCATTG" * 100)] * 30
    table = fit(chunks[:20], both_strands=False)
    score = score_of(table, hide(chunks[20:25], rng), *table.choose(hide(chunks[25:], rng))).score()
    assert score.bits_per_base < 0.01 and score.accuracy > 0.999


def test_other_strand_predicts_only_where_both_strands_are_counted():
    rng = np.random.default_rng(3)
    forward = letters("AACAGATAAC" * 60)
    reverse = letters(bytes(forward[::-1]).decode().translate(str.maketrans("ACGT", "TGCA")))
    samples = hide([reverse] * 4, rng)
    both, one = (
        score_of(fit([forward] * 5, both_strands=both, k=3), samples, 3, 1.0).score() for both in (True, False)
    )
    assert both.bits_per_base < 0.6 and one.bits_per_base > 2


def test_uniform_is_two_bits():
    score = uniform(hide(lambda_chunks()[:3], np.random.default_rng(0))).score()
    assert (score.bits_per_base, score.perplexity, score.accuracy) == (2.0, 4.0, 0.25)


def test_composition_counts_visible_bases_with_one_pseudo_count():
    codes = np.array([0, 0, 0, 1, 2, 4, 0, 3], dtype=np.uint8)
    hidden = np.array([0, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    score = composition(seen(codes[None], hidden[None])).score()
    # visible: A 3, C 1, G 1, T 0, so p(A) = 4/9 and p(T) = 1/9
    assert score.bits_per_base == pytest.approx(-(math.log2(4 / 9) + math.log2(1 / 9)) / 2)
    assert score.accuracy == 0.5


def test_the_base_under_a_hidden_flank_carries_no_information():
    chunks, rng = lambda_chunks(), np.random.default_rng(5)
    table = fit(chunks[:40], both_strands=True, k=4)
    samples = hide(chunks[40:44], rng, 0.5)
    changed = samples.codes_CL.copy()
    changed[samples.hidden_CL] = (changed[samples.hidden_CL] + rng.integers(1, 4, samples.hidden_CL.sum())) % 4
    others = seen(changed, samples.hidden_CL)
    assert np.array_equal(table.probabilities(samples, 10.0), table.probabilities(others, 10.0))
    shown = seen(samples.codes_CL, np.zeros_like(samples.hidden_CL))
    shown.hidden_CL[:, 500] = True
    masked = table.probabilities(samples, 10.0)[4][:1]
    assert not np.allclose(table.probabilities(shown, 10.0)[4][:1], masked)
    # composition: change one hidden base, all other hidden bases of the sample keep their probability
    first = tuple(np.argwhere(samples.hidden_CL)[0])
    one = samples.codes_CL.copy()
    one[first] = (one[first] + 1) % 4
    bits = [composition(seen(codes, samples.hidden_CL)).sums_CQ[0, BITS] for codes in (samples.codes_CL, one)]
    own = [math.log2(_composition_p(samples, codes)[codes[first]]) for codes in (samples.codes_CL, one)]
    assert bits[0] - bits[1] == pytest.approx(own[1] - own[0])


def _composition_p(samples: HiddenSamples, codes: np.ndarray) -> np.ndarray:
    count = np.bincount(codes[0][~samples.hidden_CL[0]], minlength=5)[:4] + 1
    return count / count.sum()


def test_choose_takes_the_best_of_the_grid():
    chunks, rng = lambda_chunks(), np.random.default_rng(6)
    table, valid = fit(chunks[:40], both_strands=True, k=3), hide(chunks[40:], rng)
    k, smoothing = table.choose(valid)
    bits = {(k, s): score_of(table, valid, k, s).sums_CQ[:, BITS].sum() for k in range(4) for s in module.SMOOTHINGS}
    assert bits[(k, smoothing)] == min(bits.values())


def test_n_may_not_be_hidden():
    with pytest.raises(AssertionError, match="only A, C, G and T"):
        seen(np.array([[0, 4]], dtype=np.uint8), np.array([[False, True]]))


def test_results_are_cached_by_dataset_samples_and_strands(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_K", 3)
    chunks, rng = lambda_chunks(), np.random.default_rng(7)
    fits = []
    monkeypatch.setattr(module, "fit", lambda *a, **o: fits.append(1) or fit(*a, k=3, **o))
    valid, test, other = (hide(chunks[40:], rng) for _ in range(3))
    file = tmp_path / "baselines.json"
    options = {"dataset_id": "lambda", "both_strands": True}

    first = baselines(chunks[:40], valid, test, cache_file=file, **options)
    assert list(first) == ["uniform", "composition", "markov"]
    assert set(first["markov"]) == {"bits_per_base", "standard_error", "perplexity", "accuracy", "k", "smoothing"}
    assert first["uniform"]["bits_per_base"] == 2.0 > first["markov"]["bits_per_base"]
    assert baselines(chunks[:40], valid, test, cache_file=file, **options) == first and len(fits) == 1
    assert baselines(chunks[:40], valid, test, **options) == first and len(fits) == 2

    assert baselines(chunks[:40], valid, other, cache_file=file, **options) != first
    baselines(chunks[:40], valid, test, cache_file=file, dataset_id="lambda", both_strands=False)
    assert len(fits) == 4 and len(json.loads(file.read_text())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["baselines.json"]

    file.write_text(file.read_text()[:50])
    assert baselines(chunks[:40], valid, test, cache_file=file, **options) == first and len(fits) == 5
    for text in (file.read_text(), '{"mine": 1}', "[[1, 2]]"):  # damaged, or of others: left as it is
        file.write_text(text)
        assert baselines(chunks[:40], valid, test, cache_file=file, **options) == first
        assert file.read_text() == text


def test_upper_and_lower_case_bases_apart():
    """Each is the mean over its own bases; both together give the whole; one case alone gives nothing."""
    rng = np.random.default_rng(3)
    chunks = random_chunks(rng, "ACGTacgt", [300, 200])
    samples = hide(chunks, rng)
    p_N4 = rng.dirichlet(np.ones(4), int(samples.hidden_CL.sum()))
    bits_N = -np.log2(p_N4[np.arange(len(p_N4)), samples.codes_CL[samples.hidden_CL]])
    lower_N = np.concatenate(
        [chunk[row[: len(chunk)]] >= ord("a") for chunk, row in zip(chunks, samples.hidden_CL, strict=True)]
    )
    found = samples.by_case(p_N4)
    assert found["bits_per_base_unique"] == pytest.approx(bits_N[~lower_N].mean(), rel=1e-12)
    assert found["bits_per_base_repeat"] == pytest.approx(bits_N[lower_N].mean(), rel=1e-12)
    assert samples.sums(p_N4).score().bits_per_base == pytest.approx(bits_N.mean(), rel=1e-12)
    upper = hide(random_chunks(rng, "ACGT", [300]), rng)
    assert upper.by_case(np.full((int(upper.hidden_CL.sum()), 4), 0.25)) == {}


@pytest.mark.parametrize("chunk_C", [None, np.array([4, 4, 7, 9])])
def test_each_group_has_the_score_of_its_own_samples(monkeypatch, tmp_path, chunk_C):
    monkeypatch.setattr(module, "MAX_K", 2)
    monkeypatch.setattr(module, "fit", lambda *a, **o: fit(*a, k=2, **o))
    rng = np.random.default_rng(5)
    chunks = random_chunks(rng, "AAACGT", [400, 300]) + random_chunks(rng, "ACGT", [300, 200])
    samples = replace(hide(chunks, rng), chunk_C=chunk_C)
    options = {"dataset_id": "x", "both_strands": True, "cache_file": tmp_path / "baselines.json"}
    one = baselines(chunks, samples, samples, **options)
    two = baselines(chunks, samples, samples, groups=["b", "b", "a", "a"], **options)
    assert [{**score, "groups": None} for score in two.values()] == [
        {**score, "groups": None} for score in one.values()
    ]
    assert "groups" not in one["markov"] and "groups" not in two["uniform"]
    for name, rows in (("a", [2, 3]), ("b", [0, 1])):
        part = HiddenSamples(
            *(array[rows] for array in (samples.codes_CL, samples.hidden_CL, samples.lower_CL)),
            None if chunk_C is None else chunk_C[rows],
        )
        assert two["composition"]["groups"][name] == module.composition(part).score().to_dict()
        table = fit(chunks, both_strands=True, k=2)
        p_N4 = table.probabilities(part, two["markov"]["smoothing"])[two["markov"]["k"]]
        assert two["markov"]["groups"][name] == part.sums(p_N4).score().to_dict()
    assert list(two["markov"]["groups"]) == ["a", "b"]
    assert baselines(chunks, samples, samples, groups=["b"] * 4, **options) == one  # of one species: as without
