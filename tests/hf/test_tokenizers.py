"""k-mer and byte-pair tokenizers in Hugging Face form: the same ids as training, on real genomes and on oddities."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megadna.alphabet import dna_of
from megadna.errors import UserError
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.bpe import BpeTokenizer, train_bpe
from megadna.tokenizer.kmer import KmerTokenizer

DATA = Path(__file__).parents[1] / "data"
ODDITIES = ["", "A", "ACGTA", "ACGTAC", "acgtacgtNNNNNacgtacgtacgt", "ACRYKMGTACGTACGTAC", "N" * 20, " ACGTACGTACGT "]
ODDITIES += ["AC GT\n-*éACGTACGTACGTACGTAC", "uUuUACGTACGTACGTACG", "A" * 61, "AT" * 40, "AAT" * 30, "N"]
KINDS = {
    "dnabert-6": KmerTokenizer(6, stride=1, layout="dnabert"),
    "bionemo-3": KmerTokenizer(3, stride=1, layout="bionemo"),
    "multimolecule-4": KmerTokenizer(4, stride=1, layout="multimolecule"),
    "blocks-6": KmerTokenizer(6, stride=6, layout="dnabert"),
    "byte-pairs": None,
}


def genome(name: str) -> str:
    lines = gzip.decompress((DATA / name).read_bytes()).decode().splitlines()
    return "".join(line for line in lines if not line.startswith(">"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    letters = dna_of(genome("mgenitalium_G37.fa.gz"))
    train_bpe(np.array_split(letters, 600), folder, vocab_size=600, max_piece_length=16, info={})
    return BpeTokenizer(folder)


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, bpe: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory):
    tokenizer = KINDS[request.param] or bpe
    folder = tmp_path_factory.mktemp("hf")
    write_tokenizer(tokenizer, folder, 512)
    return tokenizer, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def test_ids_masks_and_decoding_are_the_same(pair: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    tokenizer, hugging_face = pair
    sequences = [*ODDITIES, genome("human_mt.fa.gz"), genome("lambda.fa.gz"), genome("mgenitalium_G37.fa.gz")[:100_000]]
    for sequence in sequences:
        encoded = hugging_face(sequence, return_special_tokens_mask=True)
        ids = tokenizer.encode(dna_of(sequence)).tolist()
        assert encoded["input_ids"] == [tokenizer.cls_id, *ids, tokenizer.sep_id], sequence[:40]
        assert encoded["special_tokens_mask"] == [1, *[0] * len(ids), 1]
        assert hugging_face.decode(ids) == tokenizer.decode(ids)


@pytest.mark.slow
def test_ids_are_the_same_on_a_whole_genome(pair: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    tokenizer, hugging_face = pair
    sequence = genome("ecoli_K12_MG1655.fna.gz")
    for start in range(0, len(sequence), 10_000):
        part = sequence[start : start + 10_000]
        assert hugging_face(part, add_special_tokens=False)["input_ids"] == tokenizer.encode(dna_of(part)).tolist()


def test_padding_truncation_and_special_ids(pair: tuple[Tokenizer, PreTrainedTokenizerBase]) -> None:
    tokenizer, hugging_face = pair
    sequences = ["ACGTTGCA" * 10, "ACGTTGCA" * 2]
    batch = hugging_face(sequences, padding=True, truncation=True, max_length=10)
    for sequence, ids, mask in zip(sequences, batch["input_ids"], batch["attention_mask"], strict=True):
        expected = [tokenizer.cls_id, *tokenizer.encode(dna_of(sequence)).tolist()[:8], tokenizer.sep_id]
        width = len(batch["input_ids"][0])
        assert ids == expected + [tokenizer.pad_id] * (width - len(expected))
        assert mask == [1] * len(expected) + [0] * (width - len(expected))
    ids = (hugging_face.pad_token_id, hugging_face.cls_token_id, hugging_face.sep_token_id, hugging_face.unk_token_id)
    assert ids == (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id)
    assert hugging_face.mask_token_id == tokenizer.mask_id and len(hugging_face) == tokenizer.vocab_size
    with_mask = hugging_face("ACGTACGT" + hugging_face.mask_token + "ACGTACGT")["input_ids"]
    half = tokenizer.encode(dna_of("ACGTACGT")).tolist()
    assert with_mask == [tokenizer.cls_id, *half, tokenizer.mask_id, *half, tokenizer.sep_id]


def test_byte_pairs_cover_the_sequence(bpe: BpeTokenizer) -> None:
    letters = dna_of("acgtN" + genome("human_mt.fa.gz")[:2000] + "RU-")
    ids = bpe.encode(letters)
    starts, stops = bpe.spans(ids)
    text = letters.tobytes().decode().upper()
    text = text[:-3] + "NNN"
    assert starts[0] == 0 and stops[-1] == len(letters) and np.array_equal(starts[1:], stops[:-1])
    assert bpe.decode(ids) == text
    assert all(bpe.tokens()[i] == text[a:b] for i, a, b in zip(ids, starts, stops, strict=True))
    assert (ids == bpe.n_id).sum() == text.count("N") and bpe.unk_id not in ids
    assert 2 < bpe.mean_bases < 6


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train-tokenizer"):
        BpeTokenizer(tmp_path)


def test_a_sample_too_small_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample_bases"):
        train_bpe([dna_of("ACGTACGTAC")], tmp_path, vocab_size=5000, max_piece_length=16, info={})
