"""Evaluation samples: fixed, the same under any ranks, and baselines see exactly what the model sees."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megadna.config import TokenizerConfig
from megadna.data.dataset import ChunkDataset
from megadna.data.evaluation import EvaluationWindows, evaluation_batches, evaluation_chunks, evaluation_sample
from megadna.tokenizer.alphabet import OTHER, base_codes
from megadna.tokenizer.build import build_tokenizer

KINDS = {
    "nucleotide": TokenizerConfig(),
    "overlapping": TokenizerConfig(kind="kmer", k=6),
    "blocks": TokenizerConfig(kind="kmer", k=6, stride=6),
}


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path) -> ChunkDataset:
    return ChunkDataset(toy_dataset, "valid")


def batches(dataset: ChunkDataset, kind: str, *, rank: int = 0, size: int = 1, samples: int = 20, seed: int = 3):
    return list(
        evaluation_batches(
            dataset, build_tokenizer(KINDS[kind]), sequence_length=400, samples=samples, seed=seed,
            micro_batch_size=3, rank=rank, size=size,
        )
    )  # fmt: skip


def test_windows_cover_a_chunk_as_often_as_it_holds_the_context(dataset: ChunkDataset) -> None:
    tokenizer = build_tokenizer(KINDS["nucleotide"])
    windows = EvaluationWindows(dataset, tokenizer, 128)  # 126 bases; chunks of 512 hold four of them
    assert len(windows) == sum(max(1, length // 126) for length in dataset.lengths.tolist())
    assert windows.chunks(np.array([0, 3, 4])).tolist() == [0, 0, 1]
    assert windows[5].tobytes() == dataset[1][126:252].tobytes()
    whole = EvaluationWindows(dataset, tokenizer, 512)
    assert len(whole) == len(dataset) and whole[3].tobytes() == dataset[3][:510].tobytes()


def test_chunks_are_spread_evenly() -> None:
    assert evaluation_chunks(100, 4).tolist() == [12, 37, 62, 87]
    assert evaluation_chunks(3, 10).tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_set_is_the_same_under_any_ranks(dataset: ChunkDataset, kind: str) -> None:
    def rows(size: int) -> dict[int, tuple]:
        return {
            int(number): (batch.tokens_BS[row].tolist(), batch.labels_BS[row].tolist())
            for rank in range(size)
            for batch in batches(dataset, kind, rank=rank, size=size)
            for row, number in enumerate(batch.samples_B)
        }

    reference = rows(1)
    assert sorted(reference) == evaluation_chunks(len(dataset), 20).tolist()
    assert all(rows(size) == reference for size in (2, 3, 7))
    assert len(batches(dataset, kind, rank=2, size=3, samples=2)) == 0


def test_all_chosen_bases_are_hidden_and_none_is_n(dataset: ChunkDataset) -> None:
    tokenizer = build_tokenizer(KINDS["nucleotide"])
    for batch in batches(dataset, "nucleotide"):
        for row, chunk in enumerate(batch.samples_B.tolist()):
            codes, hidden = evaluation_sample(dataset, chunk, tokenizer, sequence_length=400, seed=3)
            assert np.array_equal(codes, base_codes(dataset[chunk][:398]))
            asked = (batch.labels_BS[row] >= 0).numpy()[1 : 1 + len(codes)]
            assert np.array_equal(asked, hidden) and not (codes[hidden] == OTHER).any()
            assert hidden.sum() == round(0.15 * int((codes != OTHER).sum()))
            tokens = batch.tokens_BS[row, 1 : 1 + len(codes)]
            assert (tokens[asked] == tokenizer.mask_id).all()
            visible = torch.from_numpy(tokenizer.encode(dataset[chunk][:398]).astype(int))[~asked]
            assert torch.equal(tokens[~asked], visible)


@pytest.mark.parametrize("kind", ["overlapping", "blocks"])
def test_hidden_bases_of_k_mers_stand_in_no_visible_token(dataset: ChunkDataset, kind: str) -> None:
    tokenizer = build_tokenizer(KINDS[kind])
    shares = []
    for batch in batches(dataset, kind):
        for row, chunk in enumerate(batch.samples_B.tolist()):
            codes, hidden = evaluation_sample(dataset, chunk, tokenizer, sequence_length=400, seed=3)
            count = tokenizer.num_tokens(len(codes))
            tokens = batch.tokens_BS[row, 1 : 1 + count].numpy()
            shares.append((tokens == tokenizer.mask_id).mean())
            starts = np.arange(count) * tokenizer.stride
            shown = np.zeros(len(codes), dtype=bool)
            for place in range(6):
                shown[starts[tokens != tokenizer.mask_id] + place] = True
            shown[starts[-1] + 6 :] = True
            assert np.array_equal(hidden, ~shown & (codes != OTHER)) and hidden.any()
    assert abs(np.mean(shares) - 0.15) < 0.02


def test_the_mask_follows_from_seed_and_chunk(dataset: ChunkDataset) -> None:
    tokenizer = build_tokenizer(KINDS["nucleotide"])
    masks = {
        evaluation_sample(dataset, chunk, tokenizer, sequence_length=400, seed=seed)[1].tobytes()
        for chunk in (0, 1)
        for seed in (3, 4, 3)
    }
    assert len(masks) == 4
