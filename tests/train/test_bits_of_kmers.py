"""Masked bits per base of k-mer and BPE models against slow loops over words, known answers and whole toy runs."""

import io
import json
import logging
import math
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from toy import metrics, run_training, toy_config

from megadna.alphabet import BASES, Dna, dna_of
from megadna.commands import evaluate
from megadna.config import Config, LogConfig, ModelConfig, TokenizerConfig, TrainConfig, ValidationConfig
from megadna.data.batch import Batch
from megadna.data.evaluation import EvaluationSamples, HiddenBases
from megadna.tokenizer.base import NucleotideTokenizer, Tokenizer
from megadna.tokenizer.bpe import BpeTokenizer, train_bpe
from megadna.tokenizer.kmer import LAYOUTS, KmerTokenizer
from megadna.train.bits import ChunkSums
from megadna.train.evaluation import Evaluation, protocol_of, score_batch
from megadna.train.metrics import Metrics

SEED = 14  # hides single bases, several of one token, and all six
ROW_BASES = 150
BLOCKS = KmerTokenizer(3, stride=3, layout="dnabert")


def sequences() -> list[Dna]:
    """Four windows, two with N: one N among bases, and a run at the edge."""
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(list(BASES), ROW_BASES)) for _ in range(4)]
    texts[1] = texts[1][:70] + "N" + texts[1][71:73] + "n" + texts[1][74:].lower()
    texts[2] = "NNNN" + texts[2][4:-9]
    return [dna_of(text) for text in texts]


class Windows(list):
    """Sequences where a split of a dataset is expected."""

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(letters) for letters in self])


def samples_of(tokenizer: Tokenizer, length: int = 0, protocol: str = "") -> EvaluationSamples:
    length = length or tokenizer.num_tokens(ROW_BASES) + 2
    windows: Any = Windows(sequences())
    return EvaluationSamples(windows, tokenizer, sequence_length=length, samples=4, seed=SEED, protocol=protocol)


def batch_of(samples: EvaluationSamples) -> tuple[Batch, HiddenBases]:
    return samples.batch([samples[row] for row in range(len(samples))], np.arange(len(samples)))


def evaluation_batch(tokenizer: KmerTokenizer) -> Batch:
    return batch_of(samples_of(tokenizer))[0]


def hidden_bases(tokenizer: KmerTokenizer) -> list[np.ndarray]:
    samples = samples_of(tokenizer)
    return [samples[row].hidden for row in range(4)]


def sums_of(logits: torch.Tensor, batch: Batch, tokenizer: Tokenizer) -> ChunkSums:
    """Scores of the rows of `evaluation_batch`, whose labels may have been changed."""
    hidden = batch_of(samples_of(tokenizer))[1]
    return by_row(score_batch(logits, batch.labels_BS, hidden, tokenizer, protocol_of(tokenizer)))


def by_row(sums: ChunkSums) -> ChunkSums:
    """Upper- and lower-case bases of a row together."""
    return sums.by_group(np.arange(len(sums.sums_CQ)) // 2)


def random_logits(batch: Batch, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return 3 * torch.randn(*batch.tokens_BS.shape, columns, generator=generator)


def by_hand(logits: torch.Tensor, batch: Batch, tokenizer: KmerTokenizer) -> list[tuple[int, float, float, float, int]]:
    """(hidden bases, bits, correct, loss, masked tokens) of each row, from the texts of all words."""
    k, texts = tokenizer.bases_per_token, tokenizer.tokens()
    words = {text: number for number, text in enumerate(texts) if len(text) == k and set(text) <= set(BASES)}
    sums = []
    for row, (letters, hidden) in enumerate(zip(sequences(), hidden_bases(tokenizer), strict=True)):
        sequence = letters.tobytes().decode().upper()
        labels, values = batch.labels_BS[row].tolist(), logits[row].double().numpy()
        asked = [place - 1 for place, label in enumerate(labels) if label >= 0]
        given = {token: token_probabilities(values[token + 1], token, sequence, hidden, words, k) for token in asked}
        bits = correct = loss = 0.0
        for base in np.flatnonzero(hidden).tolist():
            over = [given[token][base] for token in range(base - k + 1, base + 1) if token in given]
            mean = {letter: sum(one[letter] for one in over) / len(over) for letter in BASES}
            assert sum(mean.values()) == pytest.approx(1.0)
            bits -= math.log2(mean[sequence[base]])
            correct += max(mean, key=lambda letter: mean[letter]) == sequence[base]
        for token in asked:
            assert texts[labels[token + 1]] == sequence[token : token + k]
            loss += math.log(np.exp(values[token + 1]).sum()) - values[token + 1, words[sequence[token : token + k]]]
        sums.append((int(hidden.sum()), bits, correct, loss, len(asked)))
    return sums


def token_probabilities(
    values: np.ndarray, token: int, sequence: str, hidden: np.ndarray, words: dict[str, int], k: int
) -> dict[int, dict[str, float]]:
    """p of the four letters at each hidden base under one masked token."""
    places = [place for place in range(k) if hidden[token + place]]
    weights = {place: dict.fromkeys(BASES, 0.0) for place in places}
    for word, number in words.items():
        if all(word[place] == sequence[token + place] for place in range(k) if place not in places):
            for place in places:
                weights[place][word[place]] += math.exp(values[number])
    return {
        token + place: {letter: weight / sum(one.values()) for letter, weight in one.items()}
        for place, one in weights.items()
    }


def rows_of(sums: ChunkSums) -> list[tuple[float, ...]]:
    return [tuple(row) for row in sums.sums_CQ.tolist()]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("k", [2, 3, 6])
def test_numbers_equal_loops_over_all_words(k: int, layout: str) -> None:
    tokenizer = KmerTokenizer(k, stride=1, layout=layout)
    batch = evaluation_batch(tokenizer)
    logits = random_logits(batch, tokenizer.vocab_size)
    sums = rows_of(sums_of(logits, batch, tokenizer))
    for mine, slow in zip(sums, by_hand(logits, batch, tokenizer), strict=True):
        assert mine == pytest.approx(slow, rel=1e-5)


def test_the_samples_hold_single_spans_and_merged_ones_and_n() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    widths = [
        len(run) for hidden in hidden_bases(tokenizer) for run in "".join("x" if one else " " for one in hidden).split()
    ]
    assert {1} < set(widths) and max(widths) > 6
    batch = evaluation_batch(tokenizer)
    assert (batch.tokens_BS == tokenizer.unk_id).any()


def test_bases_that_only_unknown_tokens_cover_are_not_asked() -> None:
    """N A C N: no token shows A and C, and none asks for them; elsewhere [UNK] shows nothing beside [MASK]."""
    tokenizer = KmerTokenizer(6, stride=1, layout="dnabert")
    for letters, hidden in zip(sequences(), hidden_bases(tokenizer), strict=True):
        sequence = letters.tobytes().decode().upper()
        unknown = [token for token in range(len(sequence) - 5) if "N" in sequence[token : token + 6]]
        for base in np.flatnonzero(hidden).tolist():
            assert set(range(max(0, base - 5), base + 1)) - set(unknown)
    assert sequences()[1][71:73].tobytes().isalpha() and not hidden_bases(tokenizer)[1][71:73].any()


def test_all_mass_on_the_true_word_gives_no_bits() -> None:
    tokenizer = KmerTokenizer(6, stride=1, layout="multimolecule")
    batch = evaluation_batch(tokenizer)
    for low in (-1e4, float("-inf")):
        logits = torch.full((*batch.labels_BS.shape, tokenizer.vocab_size), low)
        logits.scatter_(2, batch.labels_BS.clamp_min(0)[..., None], 0.0)
        score = sums_of(logits, batch, tokenizer).score()
        assert (score.bits_per_base, score.accuracy, score.loss) == pytest.approx((0.0, 1.0, 0.0), abs=1e-6)


@pytest.mark.parametrize("k", [3, 6])
def test_uniform_logits_give_two_bits_and_a_quarter(k: int) -> None:
    tokenizer = KmerTokenizer(k, stride=1, layout="dnabert")
    batch = evaluation_batch(tokenizer)
    logits = torch.zeros(*batch.labels_BS.shape, tokenizer.vocab_size)
    score = sums_of(logits, batch, tokenizer).score()
    assert score.bits_per_base == pytest.approx(2.0, abs=1e-6)
    assert score.accuracy == pytest.approx(0.25)
    assert score.loss == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)  # a mean over masked tokens


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_one_base_a_token_is_the_score_of_single_bases(layout: str) -> None:
    tokenizer = KmerTokenizer(1, stride=1, layout=layout)
    batch = evaluation_batch(tokenizer)
    logits = random_logits(batch, tokenizer.vocab_size)
    score = sums_of(logits, batch, tokenizer).score()
    nucleotides = NucleotideTokenizer()
    moved = torch.zeros(*batch.labels_BS.shape, nucleotides.vocab_size)
    moved[..., nucleotides.base_ids] = logits[..., tokenizer.base_ids]
    single = sums_of(moved, batch_of(samples_of(nucleotides))[0], nucleotides).score()
    assert (score.hidden_bases, score.accuracy) == (single.hidden_bases, single.accuracy)
    assert score.bits_per_base == pytest.approx(single.bits_per_base, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 3])
def test_padding_columns_and_visible_tokens_are_not_read(stride: int) -> None:
    tokenizer = KmerTokenizer(3, stride=stride, layout="dnabert")
    batch = evaluation_batch(tokenizer)

    def rows(logits: torch.Tensor) -> list[tuple[float, ...]]:
        return rows_of(sums_of(logits, batch, tokenizer))

    plain = random_logits(batch, 128)
    for padding in (float("-inf"), 50.0, float("nan")):
        spoiled = plain.clone()
        spoiled[batch.labels_BS < 0] = float("nan")
        spoiled[..., tokenizer.vocab_size :] = padding
        assert rows(spoiled) == rows(plain[..., : tokenizer.vocab_size])


def test_a_masked_token_over_n_is_refused() -> None:
    tokenizer = KmerTokenizer(3, stride=1, layout="dnabert")
    batch = evaluation_batch(tokenizer)
    batch.labels_BS[0, 1] = tokenizer.unk_id
    logits = random_logits(batch, tokenizer.vocab_size)
    hidden = batch_of(samples_of(tokenizer))[1]
    for protocol in ("base", "block"):
        with pytest.raises(ValueError, match="not A, C, G or T"):
            score_batch(logits, batch.labels_BS, hidden, BLOCKS if protocol == "block" else tokenizer, protocol)


@pytest.mark.parametrize("stride", [1, 3])
def test_rows_with_nothing_masked_add_nothing(stride: int) -> None:
    tokenizer = KmerTokenizer(3, stride=stride, layout="dnabert")
    batch = evaluation_batch(tokenizer)
    batch.labels_BS.fill_(-100)
    logits = random_logits(batch, tokenizer.vocab_size)
    none = HiddenBases(*(np.zeros(0, dtype=kind) for kind in (int, int, np.uint8, bool)))
    sums = score_batch(logits, batch.labels_BS, none, tokenizer, protocol_of(tokenizer))
    assert rows_of(by_row(sums)) == [(0, 0, 0, 0, 0)] * 4


def test_blocks_of_k_equal_loops_and_uniform_gives_two_bits() -> None:
    tokenizer = KmerTokenizer(6, stride=6, layout="dnabert")
    assert protocol_of(tokenizer) == "block6"
    batch = evaluation_batch(tokenizer)
    uniform = sums_of(torch.zeros(*batch.labels_BS.shape, tokenizer.vocab_size), batch, tokenizer)
    assert uniform.sums_CQ[:, 0].tolist() == [int(hidden.sum()) for hidden in hidden_bases(tokenizer)]
    assert uniform.score().bits_per_base == pytest.approx(2.0)
    assert uniform.score().accuracy == pytest.approx(4.0**-6)
    assert uniform.score().loss == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-6)
    logits = random_logits(batch, tokenizer.vocab_size)
    score = sums_of(logits, batch, tokenizer).score()
    assert (score.bits_per_base, score.accuracy) == pytest.approx(blocks_by_hand(logits, batch, tokenizer))


def blocks_by_hand(logits: torch.Tensor, batch: Batch, tokenizer: KmerTokenizer | BpeTokenizer) -> tuple[float, float]:
    """Bits per base, and the share of bases in tokens that are right."""
    texts = tokenizer.tokens()
    allowed = [number for number, text in enumerate(texts) if set(text) <= set(BASES)]
    bits = correct = bases = 0.0
    for row, place in product(*map(range, batch.labels_BS.shape)):
        label, values = int(batch.labels_BS[row, place]), logits[row, place].double()
        if label >= 0:
            bits -= (values[label] - values[allowed].logsumexp(0)).item() / math.log(2)
            correct += len(texts[label]) * (values[allowed].max() == values[label]).item()
            bases += len(texts[label])
    return bits / bases, correct / bases


def test_pieces_weigh_the_bases_they_cover(tmp_path: Path) -> None:
    train_bpe(sequences(), tmp_path, vocab_size=40, max_piece_length=8, info={})
    tokenizer = BpeTokenizer(tmp_path)
    assert protocol_of(tokenizer) == "block"
    batch, hidden = batch_of(samples_of(tokenizer, 120))
    lengths = {len(tokenizer.tokens()[label]) for label in batch.labels_BS[batch.labels_BS >= 0].tolist()}
    assert len(lengths) > 1
    logits = random_logits(batch, tokenizer.vocab_size)
    logits.scatter_add_(2, batch.labels_BS.clamp_min(0)[..., None], torch.full((*batch.labels_BS.shape, 1), 4.0))
    score = score_batch(logits, batch.labels_BS, hidden, tokenizer, "block").score()
    assert (score.bits_per_base, score.accuracy) == pytest.approx(blocks_by_hand(logits, batch, tokenizer))


def test_one_base_of_a_block_is_asked_as_the_words_that_agree_with_the_others() -> None:
    """Protocol base, 3-mers side by side: p of the four words that differ at the hidden base alone."""
    samples = samples_of(BLOCKS, protocol="base")
    batch, hidden = batch_of(samples)
    logits = random_logits(batch, BLOCKS.vocab_size)
    score = score_batch(logits, batch.labels_BS, hidden, BLOCKS, "base").score()
    texts, bits = BLOCKS.tokens(), []
    for row, place in zip(hidden.row_H.tolist(), hidden.position_H.tolist(), strict=True):
        token, inside = 1 + place // 3, place % 3
        word = texts[int(batch.labels_BS[row, token])]
        options = {base: texts.index(word[:inside] + base + word[inside + 1 :]) for base in BASES}
        p = torch.softmax(logits[row, token, list(options.values())].double(), 0)
        bits.append(-math.log2(p[BASES.index(word[inside])]))
    assert len(bits) == score.hidden_bases == 9  # 4 x 3 cells of 48 bases, of which N spoils three
    assert score.bits_per_base == pytest.approx(np.mean(bits))


@pytest.mark.parametrize("stride", [1, 2, 3, 6])
def test_block6_of_uniform_logits_is_two_bits_and_one_word_in_4096(stride: int) -> None:
    tokenizer: Tokenizer = (
        NucleotideTokenizer() if stride == 1 else KmerTokenizer(stride, stride=stride, layout="bionemo")
    )
    batch, hidden = batch_of(samples_of(tokenizer, protocol="block6"))
    logits = torch.zeros(*batch.labels_BS.shape, tokenizer.vocab_size)
    score = score_batch(logits, batch.labels_BS, hidden, tokenizer, "block6").score()
    assert score.hidden_bases == 54 and score.bits_per_base == pytest.approx(2.0)
    assert score.accuracy == pytest.approx(4.0**-6)


def test_block6_by_hand() -> None:
    """One cell of 48 bases: its hidden block is named with p 1/2 at five bases and 1/4 at the sixth."""
    tokenizer = NucleotideTokenizer()
    windows: Any = Windows([dna_of("ACGTTG" * 8)])
    samples = EvaluationSamples(windows, tokenizer, sequence_length=50, samples=1, seed=1, protocol="block6")
    batch, hidden = batch_of(samples)
    assert hidden.base_H.tolist() == [0, 1, 2, 3, 3, 2] and hidden.position_H[0] % 6 == 0
    logits = torch.zeros(1, 50, tokenizer.vocab_size)
    for place, base in list(zip(hidden.position_H.tolist(), hidden.base_H.tolist(), strict=True))[:5]:
        logits[0, place + 1, tokenizer.base_ids[base]] = math.log(3.0)  # 3 to 1 to 1 to 1
    score = score_batch(logits, batch.labels_BS, hidden, tokenizer, "block6").score()
    assert score.bits_per_base == pytest.approx((5 * 1 + 2) / 6)
    assert score.accuracy == pytest.approx(1 / 4)  # a tie of four at the sixth base
    assert score_batch(logits, batch.labels_BS, hidden, tokenizer, "base").score().accuracy == pytest.approx(5.25 / 6)


def kmer_config(dataset: Path, *, k: int, stride: int, **parallel: int) -> Config:
    """DNABERT's shape at toy size: 2 post-LN layers, learned positions."""
    return replace(
        toy_config(dataset, **parallel),
        tokenizer=TokenizerConfig(kind="kmer", k=k, stride=stride),
        model=ModelConfig(
            num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, activation="gelu",
            norm_placement="post", positions="learned", token_types=2,
        ),
        train=TrainConfig(steps=4, micro_batch_size=2, global_batch_size=4, lr=1e-3, warmup_steps=1),
        validation=ValidationConfig(interval=2, samples=8, micro_batch_size=4),
    )  # fmt: skip


def what_evaluate_says(arguments: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as said:
        evaluate.main(arguments)
    return said.getvalue()


def valid_lines(run: Path) -> list[dict[str, float]]:
    return [line for line in metrics(run) if "valid_bits_per_base" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("k", "stride", "protocol"), [(6, 1, "base"), (4, 4, "block4")])
def test_a_k_mer_run_validates_and_is_evaluated(
    toy_dataset: Path, tmp_path: Path, k: int, stride: int, protocol: str
) -> None:
    run = tmp_path / "run"
    run_ranks(run_training, 1, kmer_config(toy_dataset, k=k, stride=stride), run)
    lines = valid_lines(run)
    assert [line["step"] for line in lines] == [2, 4]
    assert all(1.8 < line["valid_bits_per_base"] < 2.3 for line in lines)
    state = json.loads((run / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["valid_protocol"] == protocol
    [said] = run_ranks(what_evaluate_says, 1, ["--model", str(run), "--split", "valid", "--samples", "8"])
    result = json.loads((run / "evaluation-valid.json").read_text())
    assert result["protocol"] == protocol
    assert result["model"]["bits_per_base"] == pytest.approx(lines[-1]["valid_bits_per_base"], rel=1e-6)
    assert list(result["baselines"]) == (["uniform", "composition", "markov"] if protocol == "base" else [])
    assert ("reverse_complement_divergence" in result["model"]) == (protocol == "base")
    assert ("no baselines" in said) == (protocol != "base")


@pytest.mark.parametrize(("protocol", "end"), [("base", "0.2500"), ("block4", "0.2500, protocol block4")])
def test_the_line_shown_names_the_protocol(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol: str, end: str
) -> None:
    sums = ChunkSums(np.array([[4.0, 8, 1, 0, 0]]))
    config = Config(log=LogConfig(tensorboard=False))
    sinks = Metrics(tmp_path, config, first_step=0)
    evaluation = Evaluation(score=sums.score(), more={}, groups={})
    with caplog.at_level(logging.INFO, logger="megadna.train.metrics"):
        sinks.validation(1, evaluation.line("valid_"), protocol)
    sinks.close()
    assert caplog.messages[-1].endswith(f"accuracy {end}")


@pytest.mark.slow
@pytest.mark.parametrize(("k", "stride"), [(6, 1), (4, 4)])
def test_validation_is_the_same_on_two_tensor_ranks(toy_dataset: Path, tmp_path: Path, k: int, stride: int) -> None:
    lines = []
    for tensor in (1, 2):
        run = tmp_path / str(tensor)
        run_ranks(run_training, tensor, kmer_config(toy_dataset, k=k, stride=stride, tensor=tensor), run)
        lines.append(valid_lines(run))
    for one, two in zip(*lines, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
