"""The BED reader: what is an interval, in which file, and which line is none; merged and kept intervals."""

import gzip
import random
import sys
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from test_mistakes import bgzf

from megadna.errors import UserError
from megadna.genome.bed import BedLine, KeptIntervals, read_bed, read_regions

TEXT = (
    b"browser position chr1:1-100\ntrack name=x description=y z\n# c\n\nchr1\t10\t20\tname one\t7\t-\textra\n"
    b"chr1 5 12 n\ntracking_1\t20\t30\t.\n  \ntrack 4 6\n"
)
LINES = [
    BedLine(5, "chr1", 10, 20, "name one", "7", "-"),
    BedLine(6, "chr1", 5, 12, "n"),
    BedLine(7, "tracking_1", 20, 30),
    BedLine(9, "track", 4, 6),
]


def written(folder, text, name="x.bed"):
    (folder / name).write_bytes(text)
    return folder / name


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda text: bgzf(text, 17), zstandard.compress])
def test_every_kind_of_file_reads_the_same(tmp_path, pack, ends):
    text = TEXT.replace(b"\n", ends)
    for name, whole in (("x.bed", text), ("x.tsv", text[: -len(ends)])):  # without the last line end too
        assert list(read_bed(written(tmp_path, pack(whole), name))) == LINES


def test_lines_over_block_borders(tmp_path, monkeypatch):
    path = written(tmp_path, b"".join(b"chr%d\t%d\t%d\r\n" % (n, n, n + 1) for n in range(100)))
    whole = list(read_bed(path))
    for size in (1, 7, 64):
        monkeypatch.setattr("megadna.genome.sources.BLOCK", size)
        assert list(read_bed(path)) == whole and whole[-1] == BedLine(100, "chr99", 99, 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "empty: holds no interval"),
        (b"# c\ntrack x\n", "empty: holds no interval"),
        (b"chr1\t10\n", "line 1: not a BED interval (contig, start, end): 'chr1 10'"),
        (b"chrom\tstart\tend\nchr1\t1\t2\n", "line 1: not a BED interval"),
        (b"chr1\t1\t2\n\t1\t2\n", "line 2: not a BED interval"),
        (b"chr1\t-1\t2\n", "line 1: not a BED interval"),
        (b"chr1\t1.5\t2\n", "line 1: not a BED interval"),
        ("chr1\t\u0661\t\u0662\n".encode(), "line 1: not a BED interval"),
        (b"chr1\t20\t10\n", "line 1: the interval 20-10 holds no base"),
        (b"chr1\t1\t2\n\nchr1\t7\t7\n", "line 3: the interval 7-7 holds no base"),
        (b"chr1\t1\t" + b"9" * 5000 + b"\n", "line 1: a coordinate of more than 15 digits"),
        (bytes(range(256)), "line 1: not a BED interval"),
        (gzip.compress(TEXT)[:-9], "cut short or damaged"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        list(read_bed(path))
    assert str(path) in str(caught.value) and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
    with pytest.raises(UserError, match=r"no\.bed: no such BED file"):
        read_regions(tmp_path / "no.bed")


def test_random_bytes_are_intervals_or_one_line(tmp_path):
    rng = random.Random(5)
    good = failed = 0
    for _ in range(150):
        text = bytearray(TEXT * 2)
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(4)] = rng.choice([rng.randbytes(2), b"\t", b"\n", b"\r", b"-", b"9", b""])
        try:
            for line in read_bed(written(tmp_path, bytes(text))):
                good += 1
                assert line.contig and 0 <= line.start < line.end
        except UserError as error:
            failed += 1
            assert len(str(error).splitlines()) == 1
    assert good > 200 and failed > 20


def test_strands_and_summits_are_checked_where_they_are_used(tmp_path):
    path = written(tmp_path, b"c\t10\t20\tp\t0\t?\t1\t2\t3\t10\n")
    (line,) = read_bed(path)
    assert line == BedLine(1, "c", 10, 20, "p", "0", "?")
    with pytest.raises(UserError, match=r"line 1: strand '\?' \(column 6\)"):
        list(read_bed(path, stranded=True))
    with pytest.raises(UserError, match=r"line 1: summit '10' \(column 10\) is no base of 10-20"):
        list(read_bed(path, summits=True))
    for text, summit in ((b"9", 9), (b"0", 0), (b"-1", -1)):
        path = written(tmp_path, b"c\t10\t20\tp\t0\t.\t1\t2\t3\t" + text + b"\n")
        assert next(read_bed(path, stranded=True, summits=True)).summit == summit
    for text in (b"", b"\t1\t2\t3", b"\t1\t2\t3\tx", b"\t1\t2\t3\t-2", b"\t1\t2\t3\t" + b"1" * 5000):
        with pytest.raises(UserError, match="line 1: summit"):
            list(read_bed(written(tmp_path, b"c\t10\t20\tp\t0\t." + text + b"\n"), summits=True))


def test_regions_are_merged_and_know_their_lines(tmp_path):
    regions = read_regions(written(tmp_path, b"b 1 2\na 10 20\na 5 12\na 20 30\na 40 41\n"))
    assert regions.merged == {"b": [(1, 2)], "a": [(5, 30), (40, 41)]}
    assert regions.first_lines == {"b": 1, "a": 2} and regions.furthest["a"] == (41, 5)
    regions.check_ends("a", 41)
    with pytest.raises(UserError, match=r"x\.bed: line 5: a ends at 40, the interval at 41; .* genome build"):
        regions.check_ends("a", 40)
    assert regions.on({"a": "chra"})["chra"] == regions.merged["a"] and regions.on({}) is regions.merged


def test_kept_intervals():
    kept = KeptIntervals({"a": [(0, 100)]}, {"a": [(10, 20), (90, 200)], "b": [(5, 6)]})
    assert kept(b"a") == [(0, 10), (20, 90)] and kept(b"b") == []
    assert KeptIntervals(None, {"b": [(0, 6)]})(b"b") == [(6, 1 << 62)] and not KeptIntervals(None, {})
