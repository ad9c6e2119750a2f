"""Windows around peaks and start sites, and with bigWig values; negatives that match them."""

import gzip
import itertools
import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyBigWig
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megadna import windows
from megadna.cli import main
from megadna.downstream.windows import shuffle_dinucleotides
from megadna.genome.records import read_genome, reverse_complement

DATA = Path(__file__).parents[1] / "data"
HUMAN = DATA / "human_GRCh38_chr9_1-1000000_sm.fa.gz"
HUMAN_GTF = DATA / "human_GRCh38.91_chr9_1-1000000.gtf.gz"
YEAST = DATA / "yeast_I_VI_VIII.fa.gz"
YEAST_GTF = DATA / "yeast_I_VI_VIII.gtf.gz"
PEAKS = [("chr9", 20_000 + 4_000 * n, 20_300 + 4_000 * n, "+-."[n % 3]) for n in range(100)]


@pytest.fixture
def bed(tmp_path: Path) -> Path:
    """100 peaks of 300 bases, named as UCSC does, with a track line."""
    path = tmp_path / "peaks.bed"
    lines = [f"{contig}\t{start}\t{end}\tpeak\t0\t{strand}\n" for contig, start, end, strand in PEAKS]
    path.write_text("track name=peaks\n" + "".join(lines))
    return path


@pytest.fixture(scope="module")
def chromosome() -> str:
    return read_genome(HUMAN).bases["9"].tobytes().decode()


def pairs(text: str) -> Counter:
    return Counter(itertools.pairwise(text))


@given(text=st.text("ACGT", min_size=1, max_size=60), seed=st.integers(0, 1000))
def test_shuffling_keeps_every_dinucleotide(text: str, seed: int) -> None:
    shuffled = shuffle_dinucleotides(text, np.random.default_rng(seed))
    assert pairs(shuffled) == pairs(text) and Counter(shuffled) == Counter(text)
    assert (shuffled[0], shuffled[-1]) == (text[0], text[-1])


def test_every_shuffling_is_as_likely() -> None:
    text, draws = "ACACGATGCA", 3000
    orders = {text[0] + "".join(order) + text[-1] for order in itertools.permutations(text[1:-1])}
    possible = {order for order in orders if pairs(order) == pairs(text)}
    rng = np.random.default_rng(0)
    found = Counter(shuffle_dinucleotides(text, rng) for _ in range(draws))
    assert set(found) == possible and len(possible) == 15
    expected = draws / len(possible)
    chi_square = sum((count - expected) ** 2 / expected for count in found.values())
    freedom = len(possible) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_peaks_and_matched_negatives(bed: Path, chromosome: str) -> None:
    table = windows(genome=HUMAN, positives=bed, length=200, split="region")
    positives, negatives = table[table["label"] == 1], table[table["label"] == 0]
    assert len(positives) == len(negatives) == 100
    known = {
        (start + 50, start + 250): "-" if strand == "-" else "+" for _, start, _, strand in PEAKS
    }  # 200 in the middle
    assert {(row.start, row.end): row.strand for row in positives.itertuples()} == known
    for row in table.itertuples():
        text = chromosome[row.start : row.end].upper()
        assert row.sequence == (text if row.strand == "+" else reverse_complement(text))
    for row in negatives.itertuples():
        assert all(row.end <= start or row.start >= end for _, start, end, _ in PEAKS)
        (own,) = positives[positives["name"] == row.name].itertuples()
        assert (own.strand, own.split) == (row.strand, row.split)
        soft = [sum(base.islower() for base in chromosome[at.start : at.end]) / 200 for at in (own, row)]
        gc = [sum(base in "GC" for base in at.sequence) / 200 for at in (own, row)]
        assert abs(gc[0] - gc[1]) < 0.1 and abs(soft[0] - soft[1]) < 0.15
    starts = np.sort(negatives["start"])
    assert (np.diff(starts) >= 200).all()
    difference = table.attrs["manifest"]["counts"]["mean difference to the matched positive"]
    assert difference["gc"] < 0.02 and difference["repeats"] < 0.02


def test_a_peak_keeps_the_name_that_is_its_alone(tmp_path: Path) -> None:
    names = ["NA", "twice", "twice", ".", *map(str, range(96))]
    rows = zip(PEAKS, names, strict=True)
    (tmp_path / "p.bed").write_text("".join(f"{c}\t{s}\t{e}\t{n}\t0\t{sign}\n" for (c, s, e, sign), n in rows))
    table = windows(genome=HUMAN, positives=tmp_path / "p.bed", length=200, negatives="none", split="region")
    assert table.columns.tolist() == ["sequence", "label", "contig", "start", "end", "name", "strand", "kind", "split"]
    found = dict(zip(table["start"] - 50, table["name"], strict=True))
    expected = {s: n if n not in ("twice", ".") else f"9:{s}-{e}" for (_, s, e, _), n in zip(PEAKS, names, strict=True)}
    assert found == expected


def test_shuffled_negatives_stay_with_their_positive(bed: Path) -> None:
    table = windows(genome=HUMAN, positives=bed, negatives="shuffled", length=200, split="region")
    for _, rows in table.groupby("name"):
        first, second = rows.sort_values("label")["sequence"]
        assert pairs(first) == pairs(second) and first != second
        assert rows["split"].nunique() == 1
    assert table["kind"].value_counts().to_dict() == {"peak": 100, "shuffled": 100}


def test_summits_of_narrow_peaks(tmp_path: Path) -> None:
    path = tmp_path / "a.narrowPeak.gz"
    rows = [f"9\t{start}\t{end}\tp\t0\t.\t1\t2\t3\t{n if n % 2 else -1}" for n, (_, start, end, _) in enumerate(PEAKS)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    table = windows(genome=HUMAN, positives=path, negatives="none", length=200, upstream=20, split="region")
    expected = {start + (n if n % 2 else 150) - 20 for n, (_, start, _, _) in enumerate(PEAKS)}
    assert set(table["start"]) == expected and set(table["label"]) == {1}


def test_peaks_of_any_kind_of_file(bed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blanks for tabs, gzip; a narrowPeak without a summit in column 10 is not laid around its middle in silence."""
    whole = windows(genome=HUMAN, positives=bed, negatives="none", length=200, split="region")
    blanks = tmp_path / "b.bed.gz"
    blanks.write_bytes(gzip.compress(bed.read_bytes().replace(b"\t", b"  ").replace(b"\n", b"\r\n")))
    pd.testing.assert_frame_equal(
        windows(genome=HUMAN, positives=blanks, negatives="none", length=200, split="region"), whole
    )
    narrow = tmp_path / "a.narrowPeak"
    for summit, words in (("", "summit '' (column 10)"), ("\t1\t2\t3\t300", "summit '300' (column 10) is no base of")):
        narrow.write_text(f"9\t20000\t20300\tp\t0\t.{summit}\n")
        line = mistake(capsys, "--output", tmp_path / "out", "--positives", narrow)
        assert f"a.narrowPeak: line 1: {words}" in line


def test_start_sites_of_both_strands(chromosome: str) -> None:
    """WASHC1's ENST00000442898 begins at 29,739 of the minus strand (1-based, Ensembl 91); -249 to +50 around it."""
    table = windows(genome=HUMAN, annotation=HUMAN_GTF, length=300, upstream=249, negatives="none", split="region")
    (row,) = table[table["end"] == 29_738 + 250].itertuples()
    assert (row.strand, row.kind, row.name) == ("-", "tss", "ENSG00000181404")
    assert row.sequence == reverse_complement(chromosome[29_688:29_988].upper())
    assert row.sequence[249] == reverse_complement(chromosome[29_738].upper())
    plus = table[table["strand"] == "+"]
    starts = {
        int(columns[3]) - 1
        for columns in (line.split("\t") for line in gzip.decompress(HUMAN_GTF.read_bytes()).decode().splitlines())
        if len(columns) == 9 and columns[2] == "transcript" and columns[6] == "+" and "protein_coding" in columns[8]
        if 'gene_biotype "protein_coding"' in columns[8]
    }
    assert set(plus["start"] + 249) == starts


def test_chromosome_split_and_seed(tmp_path: Path) -> None:
    options = {"genome": YEAST, "annotation": YEAST_GTF, "count": 200, "length": 128}
    first, again = (windows(**options, output=tmp_path / name) for name in "ab")
    pd.testing.assert_frame_equal(first, again)
    assert (first.groupby("contig")["split"].nunique() == 1).all()
    assert first.groupby("split")["contig"].nunique().to_dict() == {"train": 1, "dev": 1, "test": 1}
    assert (first["label"] == 1).sum() == (first["label"] == 0).sum() == 199  # one of 200 passes its contig's end
    assert (tmp_path / "a" / "test.csv").read_bytes() == (tmp_path / "b" / "test.csv").read_bytes()
    other = windows(**options, seed=2)
    assert set(other["start"]) != set(first["start"])


@pytest.fixture
def bigwig(tmp_path: Path) -> Path:
    """Value at base n of chr9, for bases 100,000 to 600,000: n / 1000."""
    path = tmp_path / "signal.bw"
    file = pyBigWig.open(str(path), "w")
    file.addHeader([("chr9", 1_000_000)])
    values = (np.arange(100_000, 600_000) / 1000).tolist()
    file.addEntries("chr9", 100_000, values=values, span=1, step=1)
    file.close()
    return path


def test_bigwig_values_are_labels(bigwig: Path, bed: Path) -> None:
    options = {"genome": HUMAN, "bigwig": bigwig, "length": 500, "split": "region"}
    everywhere = windows(**options)
    peaks = windows(**options, positives=bed)
    for table, number in ((everywhere, 1000), (peaks, 81)):
        inside = table[(table["start"] >= 100_000) & (table["end"] <= 600_000)]
        assert 0 < len(table) <= number and len(inside) > 0.9 * len(table)
        middle = (inside["start"] + inside["end"] - 1) / 2000
        np.testing.assert_allclose(inside["label"], middle, rtol=1e-6)
    assert len(everywhere) == 1000 and set(everywhere["kind"]) == {"signal"}
    assert len(windows(**options, count=30)) <= 30


SIZES = {"I": 230_218, "VI": 270_161, "VIII": 562_643}  # of yeast
SPARSE = DATA / "sparse_coverage.bw"
Stored = dict[str, dict[int, float]]


def random_signal(path: Path, rng: np.random.Generator, *, zeros: bool, holes: bool) -> Stored:
    """A bigWig of VI and VIII in bedGraph, variableStep and fixedStep sections; value by base, NaN where NaN is
    stored. Values are float32 there."""
    stored: Stored = {"VI": {}, "VIII": {}}
    file = pyBigWig.open(str(path), "w")
    file.addHeader([(name, SIZES[name]) for name in stored])
    for name, bases in stored.items():
        at = 100
        for kind in range(9):
            count, span, step = 120, int(rng.integers(1, 6)), int(rng.integers(6, 40))
            values = np.float32(rng.integers(0 if zeros else 1, 5, count) / 4)
            if holes:
                values[rng.random(count) < 0.2] = np.nan
            starts = at + np.arange(count) * step
            ends = starts + span
            if kind % 3 == 0:
                ends = starts + rng.integers(1, step + 1, count)
                file.addEntries([name] * count, starts.tolist(), ends=ends.tolist(), values=values.tolist())
            elif kind % 3 == 1:
                file.addEntries(name, starts.tolist(), values=values.tolist(), span=span)
            else:
                file.addEntries(name, at, values=values.tolist(), span=span, step=step)
            for start, end, value in zip(starts.tolist(), ends.tolist(), values.tolist(), strict=True):
                bases |= dict.fromkeys(range(start, end), value)
            at = int(ends[-1]) + int(rng.integers(1, 3000))
    file.close()
    return stored


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("uncovered", ["zero", "missing"])
def test_labels_equal_a_loop_over_bases(uncovered: str, holes: bool, tmp_path: Path) -> None:
    path = tmp_path / "s.bw"
    stored = random_signal(path, np.random.default_rng(holes), zeros=True, holes=holes)
    table = windows(genome=YEAST, bigwig=path, length=64, split="random", uncovered=uncovered)
    labels = {(row.contig, row.start): row.label for row in table.itertuples()}
    left_out = Counter(
        {"on a contig that the bigWig lacks": SIZES["I"] // 64, "no base with a value": 0, "NaN alone": 0}
    )
    for name, bases in stored.items():
        for start in range(0, SIZES[name] - 63, 64):
            found = [bases[base] for base in range(start, start + 64) if base in bases]
            counted = [value for value in found if not np.isnan(value)]
            counted += [0.0] * (64 - len(found)) if uncovered == "zero" else []
            if counted:
                assert labels.pop((name, start)) == pytest.approx(sum(counted) / len(counted), rel=1e-9), (name, start)
            else:
                left_out["NaN alone" if found else "no base with a value"] += 1
    assert not labels
    counts = table.attrs["manifest"]["counts"]
    assert counts["left out for the bigWig"] == dict(left_out) and counts["uncovered"] == uncovered
    assert (left_out["no base with a value"] > 0) == (uncovered == "missing")
    assert left_out["NaN alone"] == 0 or holes


def test_zeros_that_a_coverage_track_leaves_out_count(caplog: pytest.LogCaptureFixture) -> None:
    options = {"genome": YEAST, "bigwig": SPARSE, "length": 500, "split": "chromosome"}
    logger = logging.getLogger("megadna.genome.bigwig")  # its parent may not propagate
    logger.addHandler(caplog.handler)
    with caplog.at_level("INFO", "megadna"):
        table = windows(**options)
    logger.removeHandler(caplog.handler)
    assert "sparse_coverage.bw: bases without a value count as 0, as it stores only values above 0" in caplog.text
    assert "(else: --uncovered missing)" in caplog.text
    assert len(table) == sum(size // 500 for size in SIZES.values())
    first = table[table["start"] == 0]
    assert set(first["label"]) == {100 / 500} and set(table["label"]) == {0.0, 100 / 500}
    assert table.attrs["manifest"]["counts"]["uncovered"] == "zero"
    alone = windows(**options, uncovered="missing")
    assert set(alone["start"]) == {0} and set(alone["label"]) == {100.0} and len(alone) == 3


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0, 2.0], 0.1, "zero"),
        ([1.0, 0.0], 0.1, "missing"),
        ([1.0, -2.0], 0.1, "missing"),
        ([1.0, 2.0], 0.9, "missing"),
        ([0.25, np.nan], 0.1, "zero"),
        ([np.nan, 0.0], 0.1, "missing"),
    ],
)
def test_what_is_stored_decides(values: list[float], share: float, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "s.bw"
    file = pyBigWig.open(str(path), "w")
    file.addHeader([("chrVI", SIZES["VI"])])
    half = int(SIZES["VI"] * share / 2)
    file.addEntries(["chrVI"] * 2, [0, half], ends=[half, 2 * half], values=values)
    file.close()
    table = windows(genome=YEAST, bigwig=path, length=1000, split="random")
    assert table.attrs["manifest"]["counts"]["uncovered"] == expected


def test_bigwigs_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def signal(name: str, size: int, values: list[float]) -> Path:
        file = pyBigWig.open(str(tmp_path / "s.bw"), "w")
        file.addHeader([(name, size)])
        file.addEntries(name, 1000, values=values, span=9, step=9)
        file.close()
        return tmp_path / "s.bw"

    base = ["--split", "random", "--output", tmp_path / "out", "--bigwig"]
    for size in (999_999, 1_000_001):
        line = mistake(capsys, *base, signal("chr9", size, [1.0]))
        assert (
            f"chromosome chr9 has {size:,} bases, and 1,000,000 in {HUMAN}: it belongs to another genome build" in line
        )
    assert "unknown: chr8; the genome has 9" in mistake(capsys, *base, signal("chr8", 2000, [1.0]))
    assert "no value but NaN on the contigs" in mistake(capsys, *base, signal("9", 1_000_000, [np.nan] * 20_000))
    lost = mistake(capsys, *base, signal("9", 1_000_000, [1.0]))  # N there
    why = "none has a base with a value, and those without count as 0"
    assert f"no value in any of 1933 windows ({why}); take more windows" in lost
    lost = mistake(capsys, "--uncovered", "missing", *base, tmp_path / "s.bw")
    assert "no value in any of 1933 windows (1933 no base with a value); take more windows" in lost
    whole = SPARSE.read_bytes()
    (tmp_path / "s.bw").write_bytes(whole[: len(whole) // 2])
    assert "s.bw: not a bigWig file" in mistake(capsys, *base, tmp_path / "s.bw")
    peaks = tmp_path / "p.bed"
    peaks.write_text("9\t20000\t20300\n")
    line = mistake(capsys, "--output", tmp_path / "out", "--positives", peaks, "--uncovered", "zero")
    assert "--uncovered zero applies to a --bigwig only" in line
    assert not (tmp_path / "out").exists()


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line that the command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in ("windows", "--genome", HUMAN, *arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


def test_the_command_writes_and_refuses(
    bed: Path, bigwig: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    base = ["--output", output]
    assert "give the windows' source" in mistake(capsys, *base)
    assert "exclude each other" in mistake(capsys, *base, "--positives", bed, "--annotation", HUMAN_GTF)
    assert "another --split" in mistake(capsys, *base, "--positives", bed)  # one chromosome cannot be three splits
    assert "not a bigWig file" in mistake(capsys, *base, "--bigwig", bed)
    bad = tmp_path / "bad.bed"
    for text, words in (
        ("", "bad.bed: empty"),
        ("9\t100\t50\n", "line 1"),
        ("9\t100\t200\nchr9 100 x\n", "line 2: not a BED interval"),
        ("9\t100\t200\n" * 20 + "7\t100\t200\n", f"line 21: no contig 7 in {HUMAN}; there is 9"),
        ("9\t999900\t1000100\n", "line 1: 9 ends at 1,000,000, the interval at 1,000,100"),
        ("9\t100\t200\tp\t0\t?\n", "line 1: strand '?' (column 6) is none of + - ."),
    ):
        bad.write_text(text)
        assert words in mistake(capsys, *base, "--positives", bad), text
    bad.write_text("9\t100\t200\n")  # N alone
    assert "no window of 512 bases is left" in mistake(capsys, *base, "--positives", bad)
    assert not output.exists()
    main(["windows", "--genome", str(HUMAN), "--positives", str(bed), "--output", str(output), "--split", "region"])
    assert sorted(path.name for path in output.iterdir()) == ["dev.csv", "manifest.json", "test.csv", "train.csv"]
    assert json.loads((output / "manifest.json").read_text())["counts"]["negatives"] == 100
    assert (output / "train.csv").read_text().startswith("sequence,label,contig,start,end,name,strand,kind\n")
    assert "not empty" in mistake(capsys, *base, "--positives", bed)


def test_a_missing_library_names_the_extra(tmp_path: Path) -> None:
    """Help needs no extra; the verb itself names the one that is missing."""
    start = "import sys; sys.modules['pyBigWig'] = None; from megadna.cli import main; main(sys.argv[1:])"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", start, "windows", *words], capture_output=True, text=True)

    helped = run("--help")
    assert helped.returncode == 0 and "--positives" in helped.stdout
    (bed := tmp_path / "peaks.bed").write_text("9\t100\t200\n")
    result = run("--genome", str(HUMAN), "--positives", str(bed), "--output", str(tmp_path / "out"))
    assert result.returncode == 2
    remedy = "pip install 'megadna[downstream]' (in a clone: pip install -c constraints.txt -e '.[downstream]')"
    assert result.stderr.splitlines() == [f"megadna: error: pyBigWig is not installed; {remedy}"]
