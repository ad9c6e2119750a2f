"""Masking: shares, replacements, what is never chosen, DNABERT's fractions, and no leak in spans."""

import numpy as np
import pytest

from megadna.alphabet import dna_of
from megadna.config import MaskingConfig
from megadna.data.masking import Masked, build_masker
from megadna.errors import UserError
from megadna.tokenizer.base import NucleotideTokenizer, Tokenizer
from megadna.tokenizer.kmer import KmerTokenizer

NUCLEOTIDE = NucleotideTokenizer()


def sequence(length: int, alphabet: str = "ACGT", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(dna_of(alphabet), length)


def mask(
    tokenizer: Tokenizer, letters: np.ndarray, fraction: float = 0.15, seed: int = 1, *, exact: bool = False, **options
) -> Masked:
    config = MaskingConfig(**options)
    return build_masker(tokenizer, config, exact=exact)(letters, np.random.default_rng(seed), fraction)


def deviations(count: int, total: int, share: float) -> float:
    """Standard deviations between a binomial count and its expectation."""
    return abs(count - total * share) / np.sqrt(total * share * (1 - share))


def chi_square(counts: np.ndarray) -> float:
    """Standard deviations that the chi-square statistic for uniform counts lies above its mean."""
    expected, degrees = counts.sum() / counts.size, counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


@pytest.mark.parametrize("exact", [False, True])
def test_shares_are_80_10_10_of_15_percent(exact: bool) -> None:
    letters = sequence(400_000)
    tokens, targets, chosen, _ = mask(NUCLEOTIDE, letters, exact=exact)
    total = int(chosen.sum())
    assert total == 60_000 if exact else deviations(total, len(letters), 0.15) < 4
    masked = tokens == NUCLEOTIDE.mask_id
    replaced = (tokens != targets) & ~masked
    assert not (masked & ~chosen).any() and not (replaced & ~chosen).any()
    assert deviations(int(masked.sum()), total, 0.8) < 4
    assert deviations(int(replaced.sum()), total, 0.1) < 4
    assert np.array_equal(targets, NUCLEOTIDE.encode(letters))
    # Each of the 12 ordered pairs of different bases is equally likely.
    pairs = np.bincount(targets[replaced].astype(int) * 16 + tokens[replaced], minlength=256)
    assert (pairs > 0).sum() == 12 and chi_square(pairs[pairs > 0]) < 4


def test_exact_rate_holds_in_every_sample() -> None:
    for seed in range(20):
        letters = sequence(333 + seed, "ACGTN", seed)
        chosen = mask(NUCLEOTIDE, letters, seed=seed, exact=True).chosen
        assert chosen.sum() == round(0.15 * int((letters != ord("N")).sum()))


def test_shares_are_options() -> None:
    letters = sequence(50_000)
    tokens, targets, chosen, _ = mask(NUCLEOTIDE, letters, mask_share=0.0, random_share=1.0)
    assert (tokens[chosen] != targets[chosen]).all() and (tokens != NUCLEOTIDE.mask_id).all()
    tokens, targets, chosen, _ = mask(NUCLEOTIDE, letters, mask_share=0.0, random_share=0.0)
    assert np.array_equal(tokens, targets) and chosen.any()
    tokens, _, chosen, _ = mask(NUCLEOTIDE, letters, mask_share=1.0, random_share=0.0)
    assert (tokens[chosen] == NUCLEOTIDE.mask_id).all()


def test_only_bases_are_chosen() -> None:
    letters = sequence(50_000, "ACGTNRU-")
    chosen = mask(NUCLEOTIDE, letters).chosen
    assert set(letters[chosen].tobytes()) == set(b"ACGT")
    assert not mask(NUCLEOTIDE, dna_of("NNNN--")).chosen.any()
    assert len(mask(NUCLEOTIDE, dna_of("")).tokens) == 0


@pytest.mark.parametrize(("k", "stride"), [(3, 3), (6, 6)])
def test_random_k_mers_are_k_mers_other_than_the_one_replaced(k: int, stride: int) -> None:
    tokenizer = KmerTokenizer(k, stride=stride, layout="dnabert")
    tokens, targets, chosen, _ = mask(tokenizer, sequence(600_000), mask_share=0.0, random_share=1.0)
    replaced = tokens[chosen].astype(int)
    assert (replaced >= tokenizer.first).all() and (replaced != targets[chosen]).all()
    assert chi_square(np.bincount(replaced - tokenizer.first, minlength=4**k)) < 4


@pytest.mark.parametrize(("k", "fraction"), [(3, 0.1434), (4, 0.1424), (5, 0.1408), (6, 0.1410)])
def test_dnabert_masks_its_measured_fractions(k: int, fraction: float) -> None:
    tokenizer = KmerTokenizer(k, stride=1, layout="dnabert")
    chosen = [mask(tokenizer, sequence(509 + k - 1), seed=seed, mode="dnabert").chosen for seed in range(1500)]
    shares = np.array([row.mean() for row in chosen])
    error = shares.std() / np.sqrt(len(shares))
    # The reference's figure is itself an estimate of 1 - (1 - 0.15 / k)^k, less the edges.
    assert abs(shares.mean() - fraction) < 4 * error + 0.0005


def test_dnabert_edges_of_k_6() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    letters = sequence(514)
    chosen = np.array([mask(tokenizer, letters, seed=seed, mode="dnabert").chosen for seed in range(4000)])
    first, middle, last = chosen[:, 0].mean(), chosen[:, 200:300].mean(), chosen[:, -1].mean()
    assert abs(first - 0.07) < 0.015 and abs(last - 0.107) < 0.015 and abs(middle - 0.141) < 0.004


def test_dnabert_corrupts_token_by_token_from_the_whole_vocabulary() -> None:
    tokenizer = KmerTokenizer(3, stride=1, layout="dnabert")
    tokens, targets, chosen, _ = mask(tokenizer, sequence(400_000), mode="dnabert", mask_share=0.0, random_share=1.0)
    drawn = np.bincount(tokens[chosen].astype(int), minlength=tokenizer.vocab_size)
    assert chi_square(drawn) < 4
    assert abs((tokens[chosen] == targets[chosen]).mean() - 1 / 69) < 0.002


@pytest.mark.parametrize(("k", "hidden"), [(1, 1), (1, 4), (3, 1), (6, 1), (6, 2), (6, 5)])
def test_span_share_is_exact_in_expectation_up_to_the_edges(k: int, hidden: int) -> None:
    tokenizer = KmerTokenizer(k, stride=1, layout="dnabert")
    letters = sequence(60 + k - 1)
    runs = 6000
    chosen = np.array([mask(tokenizer, letters, seed=s, mode="span", hidden_bases=hidden).chosen for s in range(runs)])
    assert abs(chosen.mean() - 0.15) < 4 * chosen.mean(axis=1).std() / np.sqrt(runs)
    assert deviations(chosen[:, 0].sum(), runs, 0.15) < 4 and deviations(chosen[:, -1].sum(), runs, 0.15) < 4
    assert chi_square(chosen.sum(axis=0)) < 4


def test_a_span_hides_h_bases_under_h_plus_k_minus_1_tokens() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    for hidden in (1, 2, 4):
        chosen = mask(tokenizer, sequence(100_000), fraction=0.002, mode="span", hidden_bases=hidden).chosen
        edges = np.flatnonzero(np.diff(chosen.astype(int)))
        widths = edges[1::2] - edges[::2][: len(edges[1::2])]
        assert np.bincount(widths).argmax() == widths.min() == hidden + 5


def test_span_tokens_agree_on_every_base() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    letters = sequence(20_000, "ACGTN", 3)
    tokens, targets, chosen, _ = mask(tokenizer, letters, mode="span", mask_share=0.4, random_share=0.4)
    visible = np.flatnonzero((tokens != tokenizer.mask_id) & (tokens != tokenizer.unk_id))
    told = np.zeros((len(letters), 4), dtype=int)
    for place in range(6):
        codes = (tokens[visible].astype(int) - tokenizer.first) >> 2 * (5 - place) & 3
        np.add.at(told, (visible + place, codes), 1)
    assert ((told > 0).sum(axis=1) <= 1).all()
    assert (chosen & (tokens != targets) & (tokens != tokenizer.mask_id)).any()
    assert not chosen[targets == tokenizer.unk_id].any()


def test_a_random_span_looks_like_a_kept_one() -> None:
    """On i.i.d. uniform sequence the visible base of a random span is uniform given its neighbours, as a kept one."""
    tokenizer = KmerTokenizer(6, stride=1, layout="bionemo")
    letters = sequence(1_200_000)
    tokens, targets, chosen, _ = mask(tokenizer, letters, mode="span", mask_share=0.0, random_share=0.5)
    first_base = (tokens.astype(int) - tokenizer.first) >> 10  # of each token: the sequence that the model sees
    true_base = (targets.astype(int) - tokenizer.first) >> 10
    random = np.flatnonzero(first_base != true_base)
    # A kept place: the centre of a chosen run of six tokens of which none changed.
    changed = tokens != targets
    kept = np.array([i for i in np.flatnonzero(chosen[5:-1] & ~chosen[6:]) + 5 if chosen[i - 5 : i + 1].all()])
    kept = kept[[not changed[i - 5 : i + 1].any() for i in kept]]
    tables = []
    for places in (random, kept):
        places = places[(places > 0) & (places < len(first_base) - 1)]
        context = first_base[places - 1] * 16 + first_base[places] * 4 + first_base[places + 1]
        tables.append(np.bincount(context, minlength=64))
        assert chi_square(tables[-1]) < 4
    assert min(table.sum() for table in tables) > 5000


def test_a_mode_that_does_not_fit_the_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="overlapping"):
        mask(KmerTokenizer(6, stride=6, layout="dnabert"), sequence(60), mode="span")
    with pytest.raises(UserError, match="dnabert needs"):
        mask(NUCLEOTIDE, sequence(60), mode="dnabert")
