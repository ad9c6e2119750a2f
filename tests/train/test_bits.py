"""Masked bits per base against hand-made numbers, explicit loops and known errors."""

import math

import numpy as np
import pytest
import torch

from megadna.data.evaluation import HiddenBases
from megadna.tokenizer.base import NucleotideTokenizer
from megadna.train.bits import ChunkSums, MaskedScore, UnitScores, bootstrap_standard_error
from megadna.train.evaluation import score_batch, strand_divergence

TOKENIZER = NucleotideTokenizer()
BASE_IDS = TOKENIZER.base_ids.tolist()  # A C G T; the order of ids is not the order of bases
VOCABULARY = TOKENIZER.vocab_size


def random_batch(seed: int = 0, chunks: int = 6, length: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(chunks, length, VOCABULARY, generator=generator)
    labels = torch.tensor(BASE_IDS)[torch.randint(4, (chunks, length), generator=generator)]
    labels[torch.rand(chunks, length, generator=generator) > 0.3] = -100
    labels[:, 0] = -100  # [CLS]
    return logits, labels


def hidden_in(labels: torch.Tensor) -> HiddenBases:
    """Every third base is soft-masked."""
    rows, places = (labels >= 0).nonzero(as_tuple=True)
    bases = [BASE_IDS.index(token) for token in labels[rows, places].tolist()]
    return HiddenBases(rows.numpy(), places.numpy() - 1, np.array(bases, dtype=int), places.numpy() % 3 == 0)


def sums_of(logits: torch.Tensor, labels: torch.Tensor) -> ChunkSums:
    """Two entries a row: upper and lower case."""
    return score_batch(logits, labels, hidden_in(labels), TOKENIZER, "base")


def score_of(logits: torch.Tensor, labels: torch.Tensor) -> MaskedScore:
    return sums_of(logits, labels).by_group(np.arange(2 * len(labels)) // 2).score()


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float, int]:
    bits = loss = correct = 0.0
    count = 0
    for row, targets in zip(logits.double().numpy(), labels.numpy(), strict=True):
        for values, target in zip(row, targets, strict=True):
            if target < 0:
                continue
            exponentials = {base: math.exp(values[base]) for base in BASE_IDS}
            bits -= math.log2(exponentials[target] / sum(exponentials.values()))
            loss -= math.log(math.exp(values[target]) / sum(math.exp(v) for v in values))
            correct += max(exponentials, key=exponentials.get) == target
            count += 1
    return bits / count, loss / count, correct / count, count


def test_numbers_equal_explicit_loops():
    logits, labels = random_batch()
    bits, loss, accuracy, count = by_hand(logits, labels)
    score = score_of(logits, labels)
    assert score.hidden_bases == count and score.samples == 6
    assert score.bits_per_base == pytest.approx(bits, abs=1e-6)
    assert score.loss == pytest.approx(loss, abs=1e-6)
    assert score.accuracy == pytest.approx(accuracy)
    assert score.perplexity == pytest.approx(2**bits, rel=1e-6)
    assert list(score.to_dict()) == ["bits_per_base", "standard_error", "perplexity", "accuracy", "loss"]


def test_uniform_logits_give_two_bits_and_a_quarter():
    _, labels = random_batch()
    score = score_of(torch.zeros(*labels.shape, VOCABULARY), labels)
    assert score.bits_per_base == pytest.approx(2.0)
    assert score.perplexity == pytest.approx(4.0)
    assert score.accuracy == pytest.approx(0.25)
    assert score.loss == pytest.approx(math.log(VOCABULARY), abs=1e-6)


def test_other_tokens_do_not_change_bits_but_do_change_the_full_loss():
    logits, labels = random_batch()
    louder = logits.clone()
    louder[..., 0] += 10
    one, other = (score_of(values, labels) for values in (logits, louder))
    assert one.bits_per_base == other.bits_per_base and one.standard_error == other.standard_error
    assert other.loss > one.loss + 1


def test_visible_positions_are_not_read():
    logits, labels = random_batch()
    spoiled = logits.clone()
    spoiled[labels < 0] = float("nan")
    assert score_of(spoiled, labels) == score_of(logits, labels)


def test_batches_join_to_the_same_result():
    logits, labels = random_batch()
    whole = score_of(logits, labels)
    parts = [sums_of(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
    joined = ChunkSums(np.concatenate([part.sums_CQ for part in parts])).by_group(np.arange(12) // 2)
    assert joined.score().to_dict() == pytest.approx(whole.to_dict(), rel=1e-12)


def test_mean_is_over_bases_not_over_chunks():
    score = ChunkSums(np.array([[30, 30, 20, 0, 0], [10, 20, 4, 0, 0], [0.0, 0, 0, 0, 0]])).score()
    assert score.bits_per_base == pytest.approx(50 / 40)
    assert score.accuracy == pytest.approx(24 / 40)
    assert score.loss is None and "loss" not in score.to_dict()


def test_standard_error_of_equal_chunks_is_that_of_the_mean():
    rng = np.random.default_rng(3)
    weight = np.full(400, 600)
    means = rng.normal(1.9, 0.05, 400)
    expected = means.std(ddof=1) / np.sqrt(400)
    assert bootstrap_standard_error(means * weight, weight) == pytest.approx(expected, rel=0.08)


def test_standard_error_equals_a_slow_bootstrap_on_unequal_chunks():
    rng = np.random.default_rng(4)
    weight = rng.integers(1, 900, 60)
    sums = weight * rng.normal(1.9, 0.1, 60)
    replicates = []
    for _ in range(4000):
        drawn = rng.integers(60, size=60)
        replicates.append(sums[drawn].sum() / weight[drawn].sum())
    assert bootstrap_standard_error(sums, weight) == pytest.approx(np.std(replicates), rel=0.08)


def test_standard_error_is_repeatable_in_any_block_size(monkeypatch):
    weight = np.full(50, 600)
    sums = weight * np.random.default_rng(5).normal(1.9, 0.1, 50)
    first = bootstrap_standard_error(sums, weight)
    monkeypatch.setattr("megadna.train.bits.MAX_RESAMPLED", 1500)
    assert bootstrap_standard_error(sums, weight) == pytest.approx(first, rel=1e-12)


def test_one_chunk_has_no_standard_error():
    assert bootstrap_standard_error(np.array([3.0, 0.0]), np.array([2, 0])) is None


def test_nothing_hidden_is_refused():
    logits, labels = random_batch()
    with pytest.raises(ValueError, match="no hidden base"):
        score_of(logits, torch.full_like(labels, -100))


def test_upper_and_lower_case_make_up_the_whole():
    logits, labels = random_batch()
    sums, whole = sums_of(logits, labels), score_of(logits, labels)
    lower = hidden_in(labels).lower_H
    unique, repeat = (sums.select(np.arange(12) % 2 == case).score() for case in (0, 1))
    assert (unique.hidden_bases, repeat.hidden_bases) == ((~lower).sum(), lower.sum())
    parts = [score.bits_per_base * score.hidden_bases for score in (unique, repeat)]
    assert sum(parts) == pytest.approx(whole.bits_per_base * whole.hidden_bases)
    assert unique.loss is None
    labels[:, torch.arange(50) % 3 == 0] = -100
    assert score_of(logits, labels).bits_per_base == pytest.approx(unique.bits_per_base)


def test_macro_is_the_plain_mean_over_groups():
    """Bits a base: 1.5 in group 0 (40 bases), 2.0 in group 2 (10 bases); nothing is hidden in group 1."""
    sums = ChunkSums(np.array([[30, 40, 0, 0, 0], [0] * 5, [10, 20, 0, 0, 0], [10.0, 20, 0, 0, 0]]))
    mean, error = sums.macro(np.array([0, 1, 2, 0]))
    assert mean == pytest.approx(1.75)
    assert 0 < error < 0.5


def test_standard_error_over_groups_equals_a_slow_bootstrap():
    rng = np.random.default_rng(6)
    weight, group = rng.integers(1, 900, 60), rng.integers(0, 5, 60)
    sums = weight * (rng.normal(1.9, 0.1, 60) - 0.1 * group)
    replicates = []
    for _ in range(4000):
        drawn = rng.integers(60, size=60)
        of_group = [drawn[group[drawn] == one] for one in set(group[drawn])]
        replicates.append(np.mean([sums[one].sum() / weight[one].sum() for one in of_group]))
    assert bootstrap_standard_error(sums, weight, group) == pytest.approx(np.std(replicates), rel=0.08)
    assert bootstrap_standard_error(sums, weight) != bootstrap_standard_error(sums, weight, group)


def test_blocks_add_bits_and_are_right_as_a_whole():
    """Three bases and a token of three; then a token of six that is wrong."""
    units = UnitScores(
        bases_U=np.array([1, 1, 1, 3, 6]), bits_U=np.array([1.0, 2, 0, 3, 6]), correct_U=np.array([1.0, 0.5, 1, 1, 0])
    )
    blocks = units.joined(6)
    assert blocks.bases_U.tolist() == [6, 6] and blocks.bits_U.tolist() == [6, 6]
    assert blocks.correct_U.tolist() == [0.5, 0]
    score = blocks.sums(np.zeros(12, int), 1).score()
    assert (score.bits_per_base, score.accuracy, score.hidden_bases) == (1.0, 0.25, 12)


def strands(forward: torch.Tensor, reverse: torch.Tensor) -> tuple[float, int]:
    """Divergence of a window of four bases, the first two hidden; ln p [2, 4] as each strand reads it."""
    logits, labels = torch.zeros(2, 6, VOCABULARY), torch.full((2, 6), -100)
    for row, (first, values) in enumerate(((1, forward), (3, reverse))):
        labels[row, first : first + 2] = BASE_IDS[0]
        logits[row, first : first + 2, BASE_IDS] = values
    return strand_divergence(logits, labels, hidden_in(labels), TOKENIZER)


def test_strands_that_say_the_same_do_not_diverge():
    p = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    backwards = p.flip(0, 1)  # the second base comes first, A is read as T
    assert strands(p, backwards) == (pytest.approx(0.0, abs=1e-12), 2)
    assert strands(p, p)[0] > 0.01


def test_strand_divergence_by_hand():
    """p = (1/2, 1/2, 0, 0) against q = (1/2, 0, 1/2, 0): H(m) = 1.5, H(p) = H(q) = 1, so 0.5 bits; A against T: 1."""
    low = -1e4
    p = torch.tensor([[0.0, 0.0, low, low], [0.0, low, low, low]])
    q = torch.tensor([[0.0, low, 0.0, low], [low, low, low, 0.0]])
    assert strands(p, q.flip(0, 1))[0] == pytest.approx(0.5 + 1.0)
