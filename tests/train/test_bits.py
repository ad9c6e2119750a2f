"""Masked bits per base against hand-made numbers, explicit loops and known errors."""

import math

import numpy as np
import pytest
import torch

from megadna.train.bits import ChunkSums, bootstrap_standard_error, score_logits

BASE_IDS = [5, 8, 6, 7]  # A C G T; the order of ids is not the order of bases
VOCABULARY = 16


def random_batch(seed: int = 0, chunks: int = 6, length: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(chunks, length, VOCABULARY, generator=generator)
    labels = torch.tensor(BASE_IDS)[torch.randint(4, (chunks, length), generator=generator)]
    labels[torch.rand(chunks, length, generator=generator) > 0.3] = -100
    return logits, labels


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
    score = score_logits(logits, labels, BASE_IDS).score()
    assert score.hidden_bases == count and score.samples == 6
    assert score.bits_per_base == pytest.approx(bits, abs=1e-6)
    assert score.loss == pytest.approx(loss, abs=1e-6)
    assert score.accuracy == pytest.approx(accuracy)
    assert score.perplexity == pytest.approx(2**bits, rel=1e-6)
    assert list(score.to_dict()) == ["bits_per_base", "standard_error", "perplexity", "accuracy", "loss"]


def test_uniform_logits_give_two_bits_and_a_quarter():
    _, labels = random_batch()
    score = score_logits(torch.zeros(*labels.shape, VOCABULARY), labels, BASE_IDS).score()
    assert score.bits_per_base == pytest.approx(2.0)
    assert score.perplexity == pytest.approx(4.0)
    assert score.accuracy == pytest.approx(0.25)
    assert score.loss == pytest.approx(math.log(VOCABULARY), abs=1e-6)


def test_other_tokens_do_not_change_bits_but_do_change_the_full_loss():
    logits, labels = random_batch()
    louder = logits.clone()
    louder[..., 0] += 10
    one, other = (score_logits(values, labels, BASE_IDS).score() for values in (logits, louder))
    assert one.bits_per_base == other.bits_per_base and one.standard_error == other.standard_error
    assert other.loss > one.loss + 1


def test_visible_positions_are_not_read():
    logits, labels = random_batch()
    spoiled = logits.clone()
    spoiled[labels < 0] = float("nan")
    assert score_logits(spoiled, labels, BASE_IDS).score() == score_logits(logits, labels, BASE_IDS).score()


def test_batches_join_to_the_same_result():
    logits, labels = random_batch()
    whole = score_logits(logits, labels, BASE_IDS).score()
    parts = [score_logits(logits[i : i + 2], labels[i : i + 2], BASE_IDS) for i in (0, 2, 4)]
    assert ChunkSums.concatenate(parts).score().to_dict() == pytest.approx(whole.to_dict(), rel=1e-12)


def test_mean_is_over_bases_not_over_chunks():
    sums = ChunkSums(
        hidden_C=np.array([30, 10, 0]), bits_C=np.array([30.0, 20.0, 0.0]), correct_C=np.array([20.0, 4.0, 0.0])
    )
    score = sums.score()
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


def test_a_hidden_token_that_is_no_base_is_refused():
    logits, labels = random_batch()
    labels[0, 0] = 3
    with pytest.raises(ValueError, match="not A, C, G or T"):
        score_logits(logits, labels, BASE_IDS)


def test_nothing_hidden_is_refused():
    logits, labels = random_batch()
    with pytest.raises(ValueError, match="no hidden base"):
        score_logits(logits, torch.full_like(labels, -100), BASE_IDS).score()
