"""The model card's table of data: names cannot break it, and it says what lies in which split."""

from pathlib import Path
from typing import Any

import pytest

from megadna.commands import preprocess
from megadna.config import Config
from megadna.data.dataset import HEADER
from megadna.data.manifest import load_manifest
from megadna.hf.card import SHOWN, Provenance, _contigs, model_card

WHOLE = ["--chunk_length", "100", "--valid_fraction", "0", "--test_fraction", "0"]
DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("splits", [("train", "valid", "test"), ("train",)])
def test_a_row_of_a_source_has_its_contigs_and_the_chunks_of_each_split(tmp_path: Path, splits: tuple[str]) -> None:
    sheet, folder = tmp_path / "samples.tsv", tmp_path / "dataset"
    sheet.write_text(f"path\tgenome\tspecies\n{DATA / 'lambda.fa.gz'}\tlambda|1\tphage | lambda\n")
    share = "0.2" if "test" in splits else "0"
    words = ["--sample_sheet", str(sheet), "--output", str(folder), "--chunk_length", "1000", "--block_chunks", "1"]
    preprocess.main([*words, "--valid_fraction", share, "--test_fraction", share])
    manifest = load_manifest(folder)
    provenance = Provenance(
        numbers={}, datasets=[manifest], contigs=_contigs(folder / "contigs.tsv"), evaluations=[], source={}
    )
    card = model_card("aido", Config(), provenance, parameters=1, dtype="fp32", license_name="")
    assert f"Training data: {manifest.bases['train']:,} bases of phage | lambda.\n" in card
    chunks = " / ".join(str(manifest.chunks[split]) for split in splits)
    assert (
        f"| source | species | records | bases | {' / '.join(splits)} chunks | contigs |\n|---|---|---|---|---|---|\n"
        in card
    )
    assert rf"| lambda\|1 | phage \| lambda | 1 | 48,502 | {chunks} | gi\|9626243\|ref\|NC_001416.1\| |" in card


def test_a_quote_in_a_record_name_is_a_letter(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text('>"one\n' + "ACGTTGCA" * 50 + "\n>two\n" + "ACCTTGCA" * 50 + "\n")
    preprocess.main(["--input", str(tmp_path / "a.fa"), "--output", str(tmp_path / "d"), *WHOLE])
    assert _contigs(tmp_path / "d" / "contigs.tsv") == {"a": ['"one', "two"]}


def provenance_of(numbers: dict[str, Any], *evaluations: dict[str, Any]) -> Provenance:
    return Provenance(numbers=numbers, datasets=[], contigs={}, evaluations=list(evaluations), source={})


def score(bits: float) -> dict[str, float]:
    return {"bits_per_base": bits, "standard_error": 0.01, "perplexity": 2**bits, "accuracy": 0.3}


@pytest.mark.parametrize(
    ("numbers", "bits", "expected"),
    [
        ({}, 1.90, ""),
        ({}, 1.97, "On test: no better than composition (1.9600) and markov (1.9400): the model needs 1.9700"),
        ({"valid_bits_per_base": 1.9}, None, ""),
        ({"valid_bits_per_base": 2.04}, None, "On valid: no better than guessing (2.0000): the model needs 2.0400"),
    ],
)
def test_the_card_says_where_the_model_is_no_better_than_a_baseline(
    numbers: dict[str, float], bits: float | None, expected: str
) -> None:
    baselines = {"uniform": score(2.0), "composition": score(1.96), "markov": score(1.94) | {"k": 5}}
    evaluations = [{"split": "test", "step": 3, "model": score(bits), "baselines": baselines}] if bits else []
    numbers = {"step": 3, "valid_bits_per_base_se": 0.01, "valid_accuracy": 0.3, **numbers}
    card = model_card(
        "aido", Config(), provenance_of(numbers, *evaluations), parameters=1, dtype="fp32", license_name=""
    )
    assert expected in card and ("no better than" in card) == bool(expected)
    first = (
        f"On the split test, which it was not trained on, it needs {bits or 0:.3f} bits for a hidden base (baselines: "
    )
    assert (f"{first}uniform 2.000, composition 1.960, markov 1.940; less is better)." in card) == (bits is not None)
    assert ("was not compared with baselines" in card) == (not evaluations)


def test_the_names_of_many_records_are_not_held(tmp_path: Path) -> None:
    """A name that begins with a quotation mark is one record like another."""
    lines = "".join(f'a\t"r{n}\t60\t{n}\t{n}\t\t\t\t\n' for n in range(1000))
    (tmp_path / "contigs.tsv").write_text(HEADER + lines)
    assert _contigs(tmp_path / "contigs.tsv") == {"a": [f'"r{n}' for n in range(SHOWN)]}
