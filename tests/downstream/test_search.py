"""Nearest windows against an independent loop over embeddings; strands, formats, resumption, mistakes."""

import gzip
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import kmer_folder, megadna_folder

from megadna import embed, search
from megadna.cli import main
from megadna.downstream import inference, outputs
from megadna.downstream import search as search_module
from megadna.downstream.inputs import REGION
from megadna.errors import UserError
from megadna.genome.bed import read_bed
from megadna.genome.records import reverse_complement

DATA = Path(__file__).parents[1] / "data"
LAMBDA = DATA / "lambda.fa.gz"


@pytest.fixture(scope="module")
def bases() -> str:
    with gzip.open(LAMBDA, "rt") as lines:
        return "".join(line.strip() for line in lines if not line.startswith(">"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(megadna_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def small(bases, tmp_path) -> Path:
    """Two contigs, the second shorter than a window."""
    path = tmp_path / "g.fa"
    path.write_text(f">one x\n{bases[:1130]}\n>two\n{bases[5000:5060]}\n")
    return path


def fasta(path: Path, *sequences: str) -> Path:
    path.write_text("".join(f">q{number}\n{text}\n" for number, text in enumerate(sequences)))
    return path


def vectors(model: str, path: Path) -> np.ndarray:
    found = np.stack(embed(model, path)["embedding"].to_list()).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("make", [megadna_folder, kmer_folder])
def test_a_query_finds_its_own_window_on_its_own_strand(make, bases, tmp_path):
    """In the whole genome of phage lambda."""
    folder = make(tmp_path / "model")
    starts = [0, 4000, 20_050, 48_502 - 100]  # the last window is moved back to the contig's end
    cut = [bases[start : start + 100] for start in starts]
    queries = fasta(tmp_path / "q.fa", *cut, *map(reverse_complement, cut))
    found = search(folder, LAMBDA, queries, top=2, step=50)
    best = found[found["rank"] == 1]
    assert best["start"].tolist() == starts * 2 and (best["end"] - best["start"] == 100).all()
    assert best["strand"].tolist() == ["+"] * 4 + ["-"] * 4
    assert best["query"].tolist() == [f"q{number}" for number in range(8)]
    assert (best["similarity"] > 0.99999).all() and found["rank"].tolist() == [1, 2] * 8


def test_hits_equal_a_loop_over_all_windows(model, small, bases, tmp_path, monkeypatch):
    texts = [bases[310:410], reverse_complement(bases[777:860]), bases[30_000:30_090]]
    queries = fasta(tmp_path / "q.fa", *texts)
    genome = {"one": bases[:1130], "two": bases[5000:5060]}
    places = [("one", start, start + 100) for start in [*range(0, 1030, 30), 1030]] + [("two", 0, 60)]
    windows = [genome[contig][start:end] for contig, start, end in places]
    forward = vectors(model, fasta(tmp_path / "f.fa", *windows))
    backward = vectors(model, fasta(tmp_path / "b.fa", *map(reverse_complement, windows)))
    expected = []
    for name, query in enumerate(vectors(model, queries)):
        rows = []
        for place, plus, minus in zip(places, forward @ query, backward @ query, strict=True):
            rows.append((f"q{name}", *place, "-" if minus > plus else "+", max(plus, minus)))
        expected += sorted(rows, key=lambda row: -row[-1])[:7]
    whole = search(model, small, queries, window=100, step=30, top=7)
    monkeypatch.setattr(inference, "MAX_STRETCHES", 5)
    monkeypatch.setattr(search_module, "_QUERIES_AT_ONCE", 2)
    monkeypatch.setattr(search_module, "_MAX_WAITING", 1)
    divided = search(model, small, queries, window=100, step=30, top=7)
    for found in (whole, divided):
        assert found[["query", "contig", "start", "end", "strand"]].to_numpy().tolist() == [
            [query, contig, start, end, strand] for query, contig, start, end, strand, _ in expected
        ]
        np.testing.assert_allclose(found["similarity"], [row[-1] for row in expected], atol=1e-6)
        assert found["rank"].tolist() == [*range(1, 8)] * 3


def test_more_windows_wanted_than_there_are(model, small, bases, tmp_path):
    found = search(model, small, fasta(tmp_path / "q.fa", bases[:400]), top=50)
    assert len(found) == found["rank"].iloc[-1] == 10  # 0, 100 ... 700, 730 and contig two
    assert found.columns.tolist() == list(search_module.COLUMNS)
    assert set(found["contig"]) == {"one", "two"} and set(REGION) - {"name"} <= set(found.columns)


def test_formats_agree_and_a_stopped_command_is_resumed(model, small, bases, tmp_path, monkeypatch):
    queries = fasta(tmp_path / "q.fa", bases[100:200], reverse_complement(bases[600:700]))
    run = ["search", "--model", model, "--genome", str(small), "--input", str(queries), "--top", "4", "--output"]
    for ending in ("bed", "tsv", "parquet"):
        main([*run, str(tmp_path / f"h.{ending}")])
    table = pd.read_parquet(tmp_path / "h.parquet")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "h.tsv", sep="\t"), table, check_dtype=False)
    regions = list(read_bed(tmp_path / "h.bed", stranded=True))
    rows = [(r.contig, r.start, r.end, r.name, r.strand) for r in regions]
    columns = ["contig", "start", "end", "query", "strand"]
    assert rows == list(table[columns].itertuples(index=False, name=None))
    assert [int(region.score) for region in regions] == (1000 * table["similarity"]).round().astype(int).tolist()
    last = [float(line.split("\t")[6]) for line in (tmp_path / "h.bed").read_text().splitlines()]
    np.testing.assert_allclose(last, table["similarity"], rtol=1e-6)
    monkeypatch.setattr(inference, "MAX_STRETCHES", 10)
    write, computed = outputs.parquet.write_table, []

    def stop_at_the_third(part_table, part, **options):
        computed.append(str(part))
        if len(computed) == 3:
            raise KeyboardInterrupt
        write(part_table, part, **options)

    monkeypatch.setattr(outputs.parquet, "write_table", stop_at_the_third)
    with pytest.raises(SystemExit):
        main([*run, str(tmp_path / "r.tsv")])
    with pytest.raises(SystemExit) as other:
        main([*run, str(tmp_path / "r.tsv"), "--layer", "0"])
    assert other.value.code == 2 and not (tmp_path / "r.tsv").exists()
    main([*run, str(tmp_path / "r.tsv")])
    assert sum("part-000000" in name for name in computed) == 1
    again = pd.read_csv(tmp_path / "r.tsv", sep="\t")
    pd.testing.assert_frame_equal(again, table, check_dtype=False, rtol=1e-6)


def test_mistakes_are_one_line(model, small, bases, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    queries = {name: tmp_path / f"{name}.fa" for name in ("good", "n", "empty")}
    queries["good"].write_text(f">a\n{bases[:150]}\n>b\n{bases[:60]}\n")
    queries["n"].write_text(f">a\n{bases[:150]}\n>b\nNNNN\n")
    queries["empty"].write_text("")
    start = ["search", "--model", model, "--output", str(tmp_path / "o.bed"), "--genome"]
    good = str(queries["good"])
    cases = {
        (str(small), "--input", good, "--window", "100"): "query a has 150 bases, more than --window 100; cut it",
        (str(small), "--input", str(queries["n"])): "query b has no A, C, G or T; leave it out",
        (str(small), "--input", str(queries["empty"])): "empty: holds no sequence",
        (str(small),): "input",
        (str(queries["empty"]), "--input", good): "empty: holds no sequence",
        (str(small), "--input", good, "--step", "151"): "--step 151 is longer than the windows, which have 150 bases",
        (str(small), "--input", good, "--top", "0"): "--top must be positive",
        (str(small), "--input", good, "--circular", "three"): "--circular three: no such record",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as error:
            main([*start, *arguments])
        text = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.value.code == 2 and message in text, text
    assert "1 of 2 queries with less than half the bases of a window (150)" in caplog.text
    assert "1 contig shorter than a window (150 bases), one window each: two" in caplog.text
    with pytest.raises(UserError, match="--layers 9"):
        search(model, small, queries["good"], layer=9)
