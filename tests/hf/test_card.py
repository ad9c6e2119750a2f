"""The model card's table of data: names cannot break it, and it says what lies in which split."""

from pathlib import Path

import pytest

from megadna.commands import preprocess
from megadna.config import Config
from megadna.data.manifest import load_manifest
from megadna.hf.card import Provenance, _contigs, model_card

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
