"""A name, pattern or interval of the user that fits nothing is an error with the right name, over all inputs."""

import gzip
import io
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import DATA, _sheet, build, chunks, fasta, genome

from megadna.cli import main
from megadna.data.manifest import load_manifest
from megadna.errors import UserError

YEAST = DATA / "yeast_I_VI_VIII.fa.gz"
BACS = DATA / "arabidopsis_bacs.fa.gz"
LENGTHS = {"I": 230218, "VI": 270161, "VIII": 562643}


def refused(folder, *inputs, match, **values):
    with pytest.raises(UserError, match=match) as caught:
        build(folder, *inputs, **values)
    assert len(str(caught.value).splitlines()) == 1
    assert not (folder / "out").exists() and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"valid_contigs": "chrVI"}, r"--valid_contigs chrVI: chrVI fits no contig; did you mean VI\?"),
        ({"test_contigs": "VI|chrI"}, r"--test_contigs VI\|chrI: chrI fits no contig; did you mean I\?"),
        ({"valid_contigs": "Mito"}, "--valid_contigs Mito: Mito fits no contig; there are I, VI, VIII"),
        ({"valid_contigs": "VI", "test_contigs": "V.*"}, "contig VI fits both --valid_contigs and --test_contigs"),
        (
            {"valid_contigs": "VI", "chunk_length": 600_000, "min_tail": 300_000},
            "valid: no chunk is left of VI; left out: short_tail 500,379",
        ),
        ({"contigs": "chr.*", "split": "region"}, r"--contigs chr\.\*: chr\.\* fits no contig; did you mean I or VI"),
        ({"contigs": "I|VII", "split": "region"}, r"--contigs I\|VII: VII fits no contig; did you mean VIII\?"),
    ],
)
def test_a_pattern_that_fits_no_contig(tmp_path, values, match):
    refused(tmp_path, YEAST, match=match, **{"split": "contig", "chunk_length": 4000} | values)


def test_a_contig_may_be_in_any_file_and_its_name_may_hold_a_bar(tmp_path):
    named = {"split": "contig", "chunk_length": 4000, "valid_contigs": "gi|68711", "test_contigs": "VI|VIII"}
    build(tmp_path, BACS, YEAST, **named)
    held = {key[1]: split for key, (_, split) in chunks(tmp_path).items() if split != "train"}
    assert held == {"gi|68711": "valid", "VI": "test", "VIII": "test"}
    build(tmp_path, BACS, contigs="gi|68711", chunk_length=4000, overwrite=True)
    assert {key[1] for key in chunks(tmp_path)} == {"gi|68711"}
    with pytest.raises(UserError, match=r"--valid_contigs gi\|687: gi fits no contig"):
        build(tmp_path, BACS, output="b", **named | {"valid_contigs": "gi|687"})


BED = "track name=x\nchrI\t1000\t2000\nchrVI\t0\t500\nchrVI\t400\t900\nchrVIII\t562000\t562643\n"


def test_bed_names_are_matched_and_said(tmp_path, capsys):
    """The same dataset as with the genome's own names; what is left out is exactly what the file names."""
    (tmp_path / "chr.bed.gz").write_bytes(gzip.compress(BED.encode()))
    (tmp_path / "own.bed").write_text(BED.replace("chr", "").replace("\n", "\r\n"))
    plain = {"chunk_length": 4000, "valid_fraction": 0.0, "test_fraction": 0.0}
    own = build(tmp_path, YEAST, exclude_bed=tmp_path / "own.bed", output="own", **plain)
    main(["preprocess", "--input", str(YEAST), "--exclude_bed", str(tmp_path / "chr.bed.gz"), "--output",
          str(tmp_path / "out"), "--valid_fraction", "0", "--test_fraction", "0"])  # fmt: skip
    printed = capsys.readouterr().out
    matched = load_manifest(tmp_path / "out")
    assert matched.dataset_id == own.dataset_id and matched.sources[0].dropped == {"bed": 2543}
    assert "contig names matched in yeast_I_VI_VIII: chrI -> I, chrVI -> VI, chrVIII -> VIII" in printed
    total = sum(LENGTHS.values())
    assert f"chr.bed.gz: covers 2,543 of {total:,} bases (0.24%), which are left out" in printed
    assert not any("names matched" in note for note in own.notes)
    taken = build(tmp_path, YEAST, include_bed=tmp_path / "chr.bed.gz", output="included", **plain)
    assert sum(taken.bases.values()) == taken.sources[0].kept == 2543
    assert any(f"covers 2,543 of {total:,} bases (0.24%), all others are left out" in note for note in taken.notes)
    places = {
        (contig, start, start + len(text)) for (_, contig, start), (text, _) in chunks(tmp_path, "included").items()
    }
    assert places == {("I", 1000, 2000), ("VI", 0, 900), ("VIII", 562000, 562643)}


@pytest.mark.parametrize("option", ["include_bed", "exclude_bed"])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("chrI\t1\t5\nchrVII\t0\t9\n", r"x.bed: line 2: no contig chrVII in the input; did you mean VIII\?"),
        ("I\t1\t5\n2\t0\t9\n", "x.bed: line 2: no contig 2 in the input; there are I, VI, VIII"),
        ("I\t0\t9\nI\t230000\t230219\n", "x.bed: line 2: I ends at 230,218, the interval at 230,219; .* build"),
        ("chrI\t230000\t230219\n", "x.bed: line 1: chrI ends at 230,218, the interval at 230,219"),
        ("I\t5\t5\n", "x.bed: line 1: the interval 5-5 holds no base"),
    ],
)
def test_bed_mistakes(tmp_path, option, text, match):
    (tmp_path / "x.bed").write_text(text)
    (tmp_path / "b.fa").write_bytes(fasta({"b": genome(500)}))
    refused(tmp_path, YEAST, tmp_path / "b.fa", match=match, **{option: tmp_path / "x.bed"})


def test_bed_regions_without_a_chunk_do_not_blame_the_chunk_length(tmp_path):
    (tmp_path / "x.fa").write_bytes(fasta({"a": b"N" * 300 + genome(300)}))
    (tmp_path / "x.bed").write_text("a\t0\t200\n")
    match = r"no chunk is left for train \(left out: bed 400, mostly_n 200 bases\)"
    refused(
        tmp_path, tmp_path / "x.fa", match=match, include_bed=tmp_path / "x.bed", valid_fraction=0.0, test_fraction=0.0
    )


def test_each_file_of_several_has_its_own_names(tmp_path):
    """A name that one file has is matched nowhere else; one that none has, in every file where there is one choice."""
    (tmp_path / "a.fa").write_bytes(fasta({"chr1": genome(500), "chr2": genome(500)}))
    (tmp_path / "b.fa").write_bytes(fasta({"1": genome(500), "2": genome(500)}))
    (tmp_path / "x.bed").write_text("chr1\t0\t100\nChr2\t0\t50\n")
    plain = {"valid_fraction": 0.0, "test_fraction": 0.0, "exclude_bed": tmp_path / "x.bed"}
    manifest = build(tmp_path, tmp_path / "a.fa", tmp_path / "b.fa", **plain)
    assert [source.dropped for source in manifest.sources] == [{"bed": 150}, {"bed": 50}]


def test_names_by_the_assembly_report_beside_the_genome(tmp_path):
    row = "{}\tassembled-molecule\t1\tChromosome\tCM{}.1\t=\tNC_{}.1\tPrimary\t600\tchr{}\n"
    report = tmp_path / "x_assembly_report.txt"
    report.write_text("".join(row.format(n, n, n, n) for n in "12"))
    (tmp_path / "x.fna").write_bytes(fasta({"NC_1.1": genome(600), "NC_2.1": genome(600)}))
    (tmp_path / "x.bed").write_text("chr2\t0\t100\n")
    plain = {"valid_fraction": 0.0, "test_fraction": 0.0}
    manifest = build(tmp_path, tmp_path / "x.fna", exclude_bed=tmp_path / "x.bed", **plain)
    assert any("matched in x: chr2 -> NC_2.1" in note for note in manifest.notes)
    report.write_text(row.format(7, 7, 7, 7))
    manifest = build(tmp_path, tmp_path / "x.fna", output="b", **plain)
    assert any(f"{report}: names no record of x" in note for note in manifest.notes)


def test_standard_input_needs_equal_names(tmp_path, monkeypatch):
    def piped(**values):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.decompress(YEAST.read_bytes()))))
        return {"input": [Path("-")], "chunk_length": 4000, **values}

    (tmp_path / "x.bed").write_text("chrI\t0\t9\n")
    (tmp_path / "y.bed").write_text("I\t0\t9\n")
    match = "standard input is read once, so contig names must be equal, not --exclude_bed .*: chrI -> I"
    refused(tmp_path, match=match, **piped(exclude_bed=tmp_path / "x.bed"))
    refused(tmp_path, match=r"chrI fits no contig; did you mean I\?", **piped(split="contig", valid_contigs="chrI"))
    assert build(tmp_path, **piped(exclude_bed=tmp_path / "y.bed")).sources[0].dropped == {"bed": 9}


def test_a_source_without_a_chunk_is_noted(tmp_path):
    (tmp_path / "a.fa").write_bytes(fasta({"chr1": genome(900)}))
    (tmp_path / "b.fa").write_bytes(fasta({"1": genome(500)}))
    manifest = build(tmp_path, tmp_path / "a.fa", tmp_path / "b.fa", contigs="chr.")
    assert "b gave no chunk; left out: contig_pattern 500 bases" in manifest.notes


GOOD = (("a.fa", "ga", "Aa aa", "train", "no"), ("b.fa", "gb", "Bb bb", "test", "yes"))
COLUMNS = ("path", "genome", "species", "split", "circular")


@pytest.mark.parametrize(
    ("columns", "row", "match"),
    [
        (("path", "genome", "species", "Split", "circular"), GOOD[0], r"column 'Split'; did you mean split\?"),
        (("path", "genome", "specie", "split", "circular"), GOOD[0], r"column 'specie'; did you mean species\?"),
        (("path", "genome", "clade", "clade", "circular"), GOOD[0], "two columns are named 'clade'"),
        (("file", "genome", "species", "split", "x"), GOOD[0], "a column path"),
        (
            COLUMNS,
            ("a.fa", "ga", "", "held-out", ""),
            "line 3: split 'held-out' is none of train, valid, validation, test",
        ),
        (COLUMNS, ("a.fa", "ga", "", "", "maybe"), "line 3: circular 'maybe' is none of yes, true, 1, no, false, 0"),
        (COLUMNS, ("b.fa", "ga", "", "", ""), "line 3: b.fa is in line 2 too"),
        (COLUMNS, ("c.fa", "ga", "", "", ""), r"sheet.tsv: line 3: \S*c.fa: no such file"),
        (COLUMNS, ("a.fa", "ga", "", ""), "line 3: not as many columns"),
    ],
)
def test_sample_sheet_mistakes(tmp_path, columns, row, match):
    for name in "ab":
        (tmp_path / f"{name}.fa").write_bytes(fasta({"c": genome(600)}))
    refused(tmp_path, match=match, sample_sheet=_sheet(tmp_path, [GOOD[1], row], columns))


def test_the_sheet_goes_before_globs_and_blanks_are_no_group(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.fa").write_bytes(fasta({"c": genome(600)}))
    rows = [*GOOD, ("c.fa", "gc", "", "", "")]
    sheet = _sheet(tmp_path, rows, COLUMNS)
    manifest = build(tmp_path, sample_sheet=sheet, split="genome", valid=["gc"])
    assert [source.split for source in manifest.sources] == ["train", "test", "valid"]
    assert [source.name for source in manifest.sources if source.chunks["test"]] == ["gb"]
    values = {"sample_sheet": sheet, "split": "genome", "output": "b"}
    with pytest.raises(UserError, match=r"--valid g\?: ga is in train already; name it once"):
        build(tmp_path, valid=["g?"], **values)
    with pytest.raises(UserError, match=r"--test GC: fits no genome; did you mean gc\?"):
        build(tmp_path, test=["GC"], **values)
    with pytest.raises(UserError, match="line 4: no species, which --split_by names"):
        build(tmp_path, sample_sheet=sheet, split="column", split_by="species", output="b")
    (tmp_path / "c.fa").write_bytes(fasta({"c": b"N" * 600}))
    with pytest.raises(UserError, match="valid: no chunk is left of gc; left out: mostly_n 600 bases"):
        build(tmp_path, valid=["gc"], **values)


def test_intervals_of_a_benchmark_in_a_dataset(tmp_path, capsys):
    build(tmp_path, YEAST, chunk_length=4000, valid_fraction=0.0, test_fraction=0.0)
    command = ["leakage", "--data", str(tmp_path / "out"), "--input"]
    for name, text, words in (
        ("a.bed.gz", "chrI\t0\t1000\nchrVI\t10\t20\n", None),
        ("b.bed", "I\t0\t10\nchrX\t0\t10\n", "b.bed: line 2: no contig chrX"),
        ("c.narrowPeak", "I\t0\t230219\n", "c.narrowPeak: line 1: I ends at 230,218"),
    ):
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        if words is None:
            main([*command, str(tmp_path / name)])
            assert "2 of 2 sequences (100.00 %)" in capsys.readouterr().out
        else:
            with pytest.raises(SystemExit) as ended:
                main([*command, str(tmp_path / name)])
            error = capsys.readouterr().err
            assert ended.value.code == 2 and words in error
