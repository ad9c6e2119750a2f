"""The nucleotide tokenizer: AIDO.DNA's ids, any byte, and the same ids from the exported Hugging Face tokenizer."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megadna.alphabet import base_codes, dna_of, reverse_complement
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import NucleotideTokenizer

DATA = Path(__file__).parents[1] / "data"
ODDITIES = ["", "A", "acgtnACGTN", "ACRYSWKMBDHVNGT", "acryswkmbdhvngt", "NNNN", "uU", "AC GT\n-*.x?", "ACéGT"]


@pytest.fixture(scope="module")
def tokenizer() -> NucleotideTokenizer:
    return NucleotideTokenizer()


@pytest.fixture(scope="module")
def hugging_face(tokenizer: NucleotideTokenizer, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(tokenizer, folder, 4000)
    return AutoTokenizer.from_pretrained(folder)


def genome(name: str) -> str:
    lines = gzip.decompress((DATA / name).read_bytes()).decode().splitlines()
    return "".join(line for line in lines if not line.startswith(">"))


def test_ids_are_those_of_aido_dna(tokenizer: NucleotideTokenizer) -> None:
    assert tokenizer.encode(dna_of("ACGTUN")).tolist() == [5, 7, 6, 8, 9, 10]
    assert tokenizer.base_ids.tolist() == [5, 7, 6, 8]
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.unk_id) == (
        0,
        1,
        2,
        3,
        4,
    )
    assert tokenizer.vocab_size == 16


def test_case_and_iupac_codes_keep_positions(tokenizer: NucleotideTokenizer) -> None:
    ids = tokenizer.encode(dna_of("acRYkGT-"))
    assert ids.tolist() == [5, 7, 10, 10, 10, 6, 8, 4]
    assert tokenizer.decode(ids) == "ACNNNGT[UNK]"


def test_every_byte_has_an_id(tokenizer: NucleotideTokenizer) -> None:
    ids = tokenizer.encode(np.arange(256, dtype=np.uint8))
    assert ids.shape == (256,) and ids.max() < 16
    assert (ids != tokenizer.unk_id).sum() == 2 * (5 + 11)


def test_reverse_complement_keeps_case_and_is_its_own_inverse() -> None:
    letters = dna_of("aaCGTNrykmbdhvswACGT")
    assert bytes(reverse_complement(letters)) == b"ACGTwsbdhvkmryNACGtt"
    assert np.array_equal(reverse_complement(reverse_complement(letters)), letters)
    assert base_codes(dna_of("ACGTacgtNR")).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    "sequence", [*ODDITIES, *map(genome, ["lambda.fa.gz", "human_mt.fa.gz"])], ids=lambda s: s[:20]
)
def test_hugging_face_gives_the_same_ids(
    tokenizer: NucleotideTokenizer, hugging_face: PreTrainedTokenizerBase, sequence: str
) -> None:
    encoded = hugging_face(sequence, return_special_tokens_mask=True)
    ids = tokenizer.encode(dna_of(sequence)).tolist()
    assert encoded["input_ids"] == [tokenizer.cls_id, *ids, tokenizer.sep_id]
    assert encoded["special_tokens_mask"] == [1, *[0] * len(ids), 1]
    assert hugging_face.decode(ids) == tokenizer.decode(ids)


def test_hugging_face_pads_truncates_and_keeps_mask_tokens(hugging_face: PreTrainedTokenizerBase) -> None:
    batch = hugging_face(["ACGTACGT", "A"], padding=True, truncation=True, max_length=6)
    assert batch["input_ids"] == [[2, 5, 7, 6, 8, 3], [2, 5, 3, 0, 0, 0]]
    assert batch["attention_mask"] == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert hugging_face("AC[MASK]gt")["input_ids"] == [2, 5, 7, 1, 6, 8, 3]
    assert (hugging_face.mask_token_id, hugging_face.pad_token_id, hugging_face.model_max_length) == (1, 0, 4000)
