"""Evaluation samples: fixed, the same under any ranks, and baselines see exactly what the model sees."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megadna.alphabet import OTHER, base_codes, dna_of, reverse_complement
from megadna.commands import preprocess
from megadna.config import TokenizerConfig
from megadna.data.dataset import ChunkPool, open_chunks
from megadna.data.evaluation import CELL, EvaluationSamples, Sample, evaluation_chunks, hide_in_cells
from megadna.errors import UserError
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.bpe import BpeTokenizer, train_bpe
from megadna.tokenizer.build import build_tokenizer

KINDS = {
    "nucleotide": TokenizerConfig(),
    "overlapping": TokenizerConfig(kind="kmer", k=6),
    "blocks": TokenizerConfig(kind="kmer", k=6, stride=6),
}


@pytest.fixture(scope="module")
def pool(toy_dataset: Path) -> ChunkPool:
    return open_chunks(str(toy_dataset), "valid")


@pytest.fixture(scope="module")
def pieces(pool: ChunkPool, tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    train_bpe([pool[chunk] for chunk in range(40)], folder, vocab_size=100, max_piece_length=8, info={})
    return BpeTokenizer(folder)


def samples_of(pool: ChunkPool, kind: str, *, length: int = 400, seed: int = 3, samples: int = 20) -> EvaluationSamples:
    tokenizer = build_tokenizer(KINDS[kind])
    return EvaluationSamples(pool, tokenizer, sequence_length=length, samples=samples, seed=seed)


def all_of(samples: EvaluationSamples) -> list[Sample]:
    return [samples[index] for index in range(len(samples))]


def test_windows_cover_a_chunk_as_often_as_it_holds_the_context(pool: ChunkPool) -> None:
    samples = samples_of(pool, "nucleotide", length=128, samples=10**6)  # 126 bases; chunks of 512 hold four of them
    assert len(samples) == sum(max(1, length // 126) for length in pool.lengths.tolist())
    assert samples.chunks[[0, 3, 4]].tolist() == [0, 0, 1]
    assert samples[5].bases.tobytes() == pool[1][126:252].tobytes()
    whole = samples_of(pool, "nucleotide", length=512, samples=10**6)
    assert len(whole) == len(pool) and whole[3].bases.tobytes() == pool[3][:510].tobytes()


def test_chunks_are_spread_evenly(pool: ChunkPool) -> None:
    assert evaluation_chunks(100, 4).tolist() == [12, 37, 62, 87]
    assert evaluation_chunks(3, 10).tolist() == [0, 1, 2]
    assert samples_of(pool, "nucleotide", length=512).chunks.tolist() == evaluation_chunks(len(pool), 20).tolist()


def test_all_chosen_bases_are_hidden_and_none_is_n(pool: ChunkPool) -> None:
    samples = samples_of(pool, "nucleotide")
    tokenizer, everything = samples.tokenizer, all_of(samples)
    batch, hidden = samples.batch(everything, np.arange(20))
    for row, sample in enumerate(everything):
        codes = base_codes(sample.bases)
        asked = (batch.labels_BS[row] >= 0).numpy()[1 : 1 + len(codes)]
        assert np.array_equal(asked, sample.hidden) and not (codes[sample.hidden] == OTHER).any()
        assert sample.hidden.sum() == round(0.15 * int((codes != OTHER).sum()))
        tokens = batch.tokens_BS[row, 1 : 1 + len(codes)]
        assert (tokens[asked] == tokenizer.mask_id).all()
        assert torch.equal(tokens[~asked], torch.from_numpy(tokenizer.encode(sample.bases).astype(int))[~asked])
        mine = hidden.row_H == row
        assert np.array_equal(hidden.position_H[mine], np.flatnonzero(sample.hidden))
        assert np.array_equal(hidden.base_H[mine], codes[sample.hidden])


@pytest.mark.parametrize("kind", ["overlapping", "blocks"])
def test_hidden_bases_of_k_mers_stand_in_no_visible_token(pool: ChunkPool, kind: str) -> None:
    samples = samples_of(pool, kind)
    shares = []
    for sample in all_of(samples):
        masked = sample.masked.tokens == samples.tokenizer.mask_id
        assert np.array_equal(masked, sample.masked.chosen)
        shares.append(masked.mean())
        starts = np.arange(len(masked)) * samples.tokenizer.stride
        shown = np.zeros(len(sample.bases), dtype=bool)
        for place in range(6):
            shown[starts[~masked] + place] = True
        shown[starts[-1] + 6 :] = True
        known = base_codes(sample.bases) != OTHER
        assert np.array_equal(sample.hidden, ~shown & known) and sample.hidden.any()
    assert abs(np.mean(shares) - 0.15) < 0.02


def test_the_mask_follows_from_seed_and_chunk(pool: ChunkPool) -> None:
    masks = {
        samples_of(pool, "nucleotide", seed=seed)[index].hidden.tobytes() for index in (0, 1) for seed in (3, 4, 3)
    }
    assert len(masks) == 4


def test_one_base_or_block_of_each_cell_is_hidden() -> None:
    letters = dna_of("ACGT" * 36 + "A" * 50)  # 194 bases: four cells and two bases
    letters = np.where(np.arange(len(letters)) == 60, ord("N"), letters).astype(np.uint8)
    for width in (1, 6):
        hidden = hide_in_cells(letters, np.random.default_rng(0), width)
        assert hidden[: 4 * CELL].reshape(4, CELL).sum(axis=1).tolist() == [width, 0, width, width]
        assert not hidden[4 * CELL :].any() and (np.flatnonzero(hidden)[::width] % width == 0).all()
        again = hide_in_cells(letters.clip(max=ord("T")), np.random.default_rng(0), width)
        assert np.array_equal(again[:CELL], hidden[:CELL]) and np.array_equal(again[2 * CELL :], hidden[2 * CELL :])


def named(samples: EvaluationSamples) -> dict[int, bytes]:
    """Hidden bases of each chunk, joined from its windows, and nothing else than what the model must name."""
    found = {chunk: np.zeros(samples.dataset.lengths[chunk], dtype=bool) for chunk in samples.chunks.tolist()}
    for index, (_, chunk, start, stop) in enumerate(samples._windows.tolist()):
        sample = samples[index]
        assert len(sample.masked.tokens) <= samples.sequence_length - 2
        assert np.array_equal(sample.bases, samples.dataset[chunk][start:stop])
        starts, stops = samples.tokenizer.spans(sample.masked.targets)
        under = np.zeros(len(sample.bases), dtype=bool)
        for token in np.flatnonzero(sample.masked.chosen):
            assert sample.hidden[starts[token] : stops[token]].any()
            under[starts[token] : stops[token]] = True
        assert under[sample.hidden].all()
        found[chunk][start:stop] |= sample.hidden
    return {chunk: hidden.tobytes() for chunk, hidden in found.items()}


@pytest.mark.parametrize("protocol", ["base", "block6"])
def test_a_protocol_hides_the_same_bases_for_every_tokenizer_and_context(
    pool: ChunkPool, pieces: BpeTokenizer, protocol: str
) -> None:
    others = [TokenizerConfig(kind="kmer", k=k, stride=stride) for k, stride in ((3, 1), (8, 1), (3, 3), (1, 1))]
    tokenizers: list[Tokenizer] = [build_tokenizer(config) for config in (*KINDS.values(), *others)]
    cases = [(tokenizer, length) for tokenizer in tokenizers for length in (60, 300)]
    cases += [(pieces, length) for length in (60, 200)] if protocol == "block6" else []
    sets = []
    for tokenizer, length in cases:
        options = {"sequence_length": length, "samples": 7, "seed": 5, "protocol": protocol}
        samples = EvaluationSamples(pool, tokenizer, **options)
        sets.append(named(samples))
        bases, hidden = next(samples.for_baselines()[0])
        assert np.array_equal(bases, pool[int(samples.chunks[0])])
        assert hidden.tobytes() == sets[0][int(samples.chunks[0])]
    assert all(one == sets[0] for one in sets) and len(sets[0]) == 7


def test_a_piece_never_reaches_over_the_edge_of_a_block(pool: ChunkPool, pieces: BpeTokenizer) -> None:
    samples = EvaluationSamples(pool, pieces, sequence_length=200, samples=30, seed=5, protocol="block6")
    neighbours = 0
    for sample in all_of(samples):
        starts, stops = pieces.spans(sample.masked.targets)
        chosen = sample.masked.chosen
        assert (starts[chosen] // 6 == (stops[chosen] - 1) // 6).all()
        assert (stops - starts)[chosen].sum() == sample.hidden.sum()
        neighbours += int((sample.hidden[CELL - 1 :: CELL][:-1] & sample.hidden[CELL::CELL]).sum())
    assert neighbours > 0


def test_the_other_strand_hides_the_same_bases(pool: ChunkPool) -> None:
    for kind in ("nucleotide", "overlapping"):
        samples = samples_of(pool, kind)
        sample = samples[0]
        other = sample.other_strand(samples.tokenizer)
        assert np.array_equal(other.bases, reverse_complement(sample.bases))
        assert np.array_equal(other.hidden[::-1], sample.hidden)
        assert np.array_equal(other.masked.chosen[::-1], sample.masked.chosen)
        back = other.other_strand(samples.tokenizer)
        assert np.array_equal(back.masked.tokens, sample.masked.tokens)


def test_groups_are_species_or_sources(tmp_path: Path) -> None:
    data = Path(__file__).parents[1] / "data"
    sheet = tmp_path / "sheet.tsv"
    sheet.write_text(
        f"path\tgenome\tspecies\n{data / 'lambda.fa.gz'}\tlam\tphage\n{data / 'mgenitalium_G37.fa.gz'}\tmg\t\n"
        f"{data / 'human_mt.fa.gz'}\tmt\tphage\n"
    )
    options = ["--chunk_length", "500", "--valid_fraction", "0.2", "--test_fraction", "0", "--allow_related"]
    preprocess.main(["--sample_sheet", str(sheet), "--output", str(tmp_path / "d"), *options])
    pool = open_chunks(str(tmp_path / "d"), "valid")
    samples = samples_of(pool, "nucleotide", samples=10**6)
    expected = ["mg" if pool.datasets[0].locate(chunk).source == "mg" else "phage" for chunk in samples.chunks.tolist()]
    assert samples.groups() == expected and set(expected) == {"mg", "phage"}


@pytest.mark.parametrize(
    ("config", "protocol", "length", "message"),
    [
        (TokenizerConfig(), "word", 100, "no protocol 'word'; one of base, block6"),
        (TokenizerConfig(kind="kmer", k=4, stride=4), "block6", 100, "tokens that tile 6 bases"),
        (TokenizerConfig(kind="kmer", k=5, stride=5), "base", 100, "tokens that tile 48 bases"),
        (TokenizerConfig(), "base", 40, "rows of 40 tokens are too short"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused(
    pool: ChunkPool, config: TokenizerConfig, protocol: str, length: int, message: str
) -> None:
    options = {"sequence_length": length, "samples": 2, "seed": 1, "protocol": protocol}
    with pytest.raises(UserError, match=message):
        EvaluationSamples(pool, build_tokenizer(config), **options)


def test_single_bases_of_pieces_are_refused(pool: ChunkPool, pieces: BpeTokenizer) -> None:
    with pytest.raises(UserError, match="use block6"):
        EvaluationSamples(pool, pieces, sequence_length=100, samples=2, seed=1, protocol="base")
