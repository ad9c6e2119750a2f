"""VCF lines, records, and alleles on a genome, by hand."""

import gzip
from pathlib import Path

import numpy as np
import pysam
import pytest

from megadna.errors import UserError
from megadna.genome.vcf import (
    Allele,
    Record,
    alt_reason,
    read_header,
    read_records,
    reference_reason,
    trimmed,
    vcf_lines,
)

DATA = Path(__file__).parents[1] / "data"
GENOME = np.frombuffer(b"ACGTTTTGCacacacTGNR", np.uint8)


def record(position: int, ref: str, alts: str = "A") -> Record:
    return Record(1, "c", position, ref.encode(), tuple(alts.encode().split(b",")))


@pytest.mark.parametrize(
    ("position", "ref", "alt", "start", "one", "other"),
    [
        (3, "G", "a", 2, "G", "A"),
        (3, "GT", "GA", 3, "T", "A"),  # anchored
        (3, "GTT", "ATA", 2, "GTT", "ATA"),  # a gap inside stays
        (1, "ACGT", "AGGT", 1, "C", "G"),
        (7, "TG", "T", 7, "G", ""),
        (6, "TT", "T", 3, "T", ""),  # to the left end of TTTT
        (7, "T", "TTT", 3, "", "TT"),
        (12, "aca", "A", 8, "CA", ""),  # two bases of the repeat
        (15, "c", "cac", 8, "", "CA"),
        (16, "T", "TG", 16, "", "G"),
        (1, "A", "AA", 0, "", "A"),  # to the contig's first base
        (1, "A", "TTA", 0, "", "TT"),
        (3, "GTT", "CA", 2, "GTT", "CA"),
    ],
)
def test_trimmed_and_left_aligned(position, ref, alt, start, one, other):
    allele = trimmed(record(position, ref, alt), alt.encode(), GENOME)
    assert allele == Allele(start, one.encode(), other.encode())


def test_an_aligned_allele_gives_the_same_sequence():
    """On repeats, for every insertion and deletion of one to four bases; no neighbour to the left gives it too."""
    text = "CACACATTTTCACATGTG"
    bases = np.frombuffer(text.encode(), np.uint8)
    for start in range(1, len(text) - 4):
        for size in range(1, 5):
            for ref, alt in (
                (text[start - 1 : start + size], text[start - 1]),
                (text[start - 1], text[start - 1] + "CATT"[:size]),
            ):
                found = trimmed(record(start, ref, alt), alt.encode(), bases)
                result = text[: start - 1] + alt + text[start - 1 + len(ref) :]
                here = found.start
                assert text[:here] + found.alt.decode() + text[here + len(found.ref) :] == result
                if here:
                    moved = text[here - 1 : here - 1 + len(found.ref)]
                    inserted = [result[here - 1 : here - 1 + len(found.alt)]]
                    rest = text[here - 1 + len(moved) :]
                    assert all(text[: here - 1] + piece + rest != result for piece in inserted)


@pytest.mark.parametrize(
    ("alt", "reason"),
    [
        ("t", ""), ("TG", ""), ("*", "spanning_deletion"), ("<DEL>", "symbolic"), ("<NON_REF>", "symbolic"),
        ("<*>", "symbolic"), ("G]17:198982]", "breakend"), ("]13:123456]T", "breakend"), (".A", "breakend"),
        ("A.", "breakend"), (".", "no_alt"), ("R", "ambiguous"), ("AN", "ambiguous"), ("g", "same_as_ref"),
    ],
)  # fmt: skip
def test_alts_without_bases(alt, reason):
    assert alt_reason(record(3, "G", alt), alt.encode()) == reason


@pytest.mark.parametrize(
    ("position", "ref", "reason"),
    [
        (3, "g", ""), (9, "CAC", ""), (0, "N", "outside_contig"), (20, "A", "outside_contig"),
        (19, "RA", "outside_contig"), (3, "A", "ref_mismatch"), (3, "S", "ambiguous"), (18, "A", "ambiguous"),
        (19, "A", "ambiguous"),
    ],
)  # fmt: skip
def test_reference(position, ref, reason):
    assert reference_reason(record(position, ref), GENOME) == reason
    assert reference_reason(record(position, ref), None) == "unknown_contig"


HEADER = "##fileformat=VCFv4.2\n##contig=<ID=c,length=19,assembly=x>\n##contig=<length=7,ID=d>\n##contig=<ID=e>\n"
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
BODY = "c\t3\trs1\tG\tA,<DEL>\t.\tPASS\tAC=1\nundeclared\t0\t.\tn\t.\t1e3\tq10;odd\t.\n"


def test_every_packing_gives_the_same_lines(tmp_path):
    text = HEADER + COLUMNS + BODY
    (tmp_path / "plain.vcf").write_text(text)
    (tmp_path / "gzip.vcf.gz").write_bytes(gzip.compress(text[:50].encode()) + gzip.compress(text[50:].encode()))
    with pysam.BGZFile(str(tmp_path / "bgzip.vcf.gz"), "wb", None) as file:
        file.write(text.encode())
    for path in tmp_path.iterdir():
        assert list(vcf_lines(path)) == text.encode().splitlines()
        assert read_header(path).lengths == {"c": 19, "d": 7}
        assert read_header(path).has_columns
        assert list(read_records(path)) == [
            Record(6, "c", 3, b"G", (b"A", b"<DEL>")),
            Record(7, "undeclared", 0, b"n", (b".",)),
        ]


def test_line_ends_and_a_file_without_header(tmp_path):
    path = tmp_path / "a.vcf"
    path.write_bytes(b"c\t3\t.\tG\tA\r\n\r\nc\t4\t.\tT\tC")
    assert [one.alts for one in read_records(path)] == [(b"A",), (b"C",)]
    assert read_header(path).lines == []


def test_bcf(tmp_path):
    source, path = DATA / "human_GRCh37_chr20_1000G.vcf.gz", tmp_path / "a.bcf"
    lines = [line for line in vcf_lines(source) if line.startswith(b"#")]
    (tmp_path / "h.vcf").write_bytes(b"\n".join([*lines[:-1], b"##contig=<ID=z>", lines[-1]]) + b"\n")
    rows = [line for line in vcf_lines(source) if not line.startswith(b"#")][:100]
    with (tmp_path / "h.vcf").open("ab") as file:
        file.write(b"\n".join(rows) + b"\n")
    with (
        pysam.VariantFile(str(tmp_path / "h.vcf")) as one,
        pysam.VariantFile(str(path), "wb", header=one.header) as two,
    ):
        for row in one:
            two.write(row)
    found = [one[1:] for one in read_records(path)]
    assert found == [one[1:] for one in read_records(source)][:100]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c\t3\t.\tG", "line 6: not a VCF record"),
        ("c 3 . G A", "line 6: not a VCF record"),
        ("c\tx\t.\tG\tA", "line 6: POS 'x' is no position"),
        ("c\t-1\t.\tG\tA", "line 6: POS '-1' is no position"),
        ("c\t3\t.\t\tA", "line 6: CHROM, REF or ALT is empty"),
    ],
)
def test_a_line_that_is_no_record(tmp_path, line, message):
    path = tmp_path / "a.vcf"
    path.write_text(HEADER + COLUMNS + line + "\n")
    with pytest.raises(UserError, match=message):
        list(read_records(path))


def test_cut_files(tmp_path):
    packed = (DATA / "human_GRCh37_chr20_1000G.vcf.gz").read_bytes()
    (tmp_path / "a.vcf.gz").write_bytes(packed[:9000])
    with pytest.raises(UserError, match="cut short"):
        list(read_records(tmp_path / "a.vcf.gz"))
