"""FASTA text to letters: line numbers of faults, ranges that begin anywhere, contig names."""

import random
from itertools import pairwise

import numpy as np
import pytest

import megadna.genome.sources
from megadna.errors import UserError
from megadna.genome.contigs import ContigFilter, names_of
from megadna.genome.fasta import FastaError, Scanner, count_lines, first_illegal
from megadna.genome.sources import SequenceFile, split_ranges, stream_blocks
from megadna.genome.tables import join_kmers


def scan(text, sizes):
    scanner = Scanner(np.empty(len(text) + 100, np.uint8), 0, fold=False)
    at = 0
    for size in sizes:
        scanner.feed(text[at : at + size])
        at += size
    scanner.feed(text[at:])
    scanner.finish(last=True)
    piece = scanner.take()
    return scanner.buffer[: piece.size].tobytes(), piece


def test_records_do_not_depend_on_where_blocks_end():
    rng = random.Random(3)
    many = b"".join(b">r%d some > text\n%s\n" % (i, b"ACGTN"[: i % 6] * 3) for i in range(80))
    whole, piece = scan(many, [])
    for _ in range(50):
        sizes = [rng.randrange(1, 200) for _ in range(40)]
        letters, cut = scan(many, sizes)
        assert letters == whole and cut.headers == piece.headers
        assert cut.positions.tolist() == piece.positions.tolist() and cut.counts == piece.counts


@pytest.mark.parametrize("crowd", [0, 40])
def test_fault_is_found_exactly(crowd):
    text = b">ok\nACGT\n" * crowd + b">a > b\r\nAC GT\r\nACxGT\r\n>c\r\nACGT"
    with pytest.raises(FastaError) as caught:
        scan(text, [])
    place = caught.value.offset + caught.value.at
    assert text[place : place + 1] == b"x"
    assert 1 + count_lines(iter([text[:11], text[11:12], text[12:]]), place) == 2 * crowd + 3
    assert first_illegal(b"text > x\nACGT\n", in_header=True, line_start=False) == 0


def test_count_lines_over_block_borders():
    text = b"a\r\nb\rc\n\nd\r\n"
    for cut in range(len(text)):
        assert count_lines(iter([text[:cut], text[cut:]]), len(text)) == 5
        assert count_lines(iter([text[:cut], text[cut:]]), 4) == 1


def test_ranges_cover_the_file(tmp_path, monkeypatch):
    text = b">a long header\n" + b"ACGT" * 80 + b"\r\n" + b"ACG\n" * 90 + b">b\n" + b"T" * 500
    (tmp_path / "x").write_bytes(text)
    source = SequenceFile(tmp_path / "x", "x", "plain", len(text))
    for longest in (20, 400, 1 << 20):
        monkeypatch.setattr(megadna.genome.sources, "MAX_HEADER", longest)
        for size in (1, 7, 50, 999, 5000):
            ranges = list(split_ranges(source.path, size))
            assert ranges[0].start == 0 and [r.last for r in ranges] == [False] * (len(ranges) - 1) + [True]
            assert b"".join(b"".join(map(bytes, stream_blocks(source, r))) for r in ranges) == text
            for before, here in pairwise(ranges):
                assert before.end == here.start > before.start
                assert not here.line_start or text[here.start - 1 : here.start] in (b"\n", b"\r")
                assert here.line_start or not text[: here.start + 1].splitlines()[-1].startswith(b">")


def test_names_and_roles():
    assert names_of([b"a b", b"  c", b"", b"d\te"]) == [b"a", b"c", b"unnamed", b"d"]
    assert names_of([b"x"] * 3) == [b"x"] * 3 and names_of([]) == []
    primary = ContigFilter()
    for header, reason in {
        b"NC_000001.11 Homo sapiens chromosome 1, GRCh38.p14 Primary Assembly": None,
        b"NW_003315905.1 Homo sapiens unlocalized genomic scaffold": None,
        b"NT_187515.1 Homo sapiens chromosome 1 genomic scaffold, alternate locus group ALT_REF_LOCI_1": "alternate",
        b"NW_009646194.1 Homo sapiens chromosome 1 genomic patch of type FIX, HG1342": "fix_patch",
        b"NW_018654706.1 Homo sapiens chromosome 1 genomic patch of type NOVEL, GRCh38.p14 PATCHES": "alternate",
        b"chr1_KI270762v1_alt  AC:KI270762.1": "alternate",
        b"CHR_HG107_PATCH dna:chromosome": "fix_patch",
        b"chrEBV  AC:AJ507799.2": "virus",
        b"hs37d5": "decoy",
        b"chrM": None,
    }.items():
        assert primary(header) == (reason and f"contig_{reason}"), header


def test_k_mers_with_blanks_are_joined():
    assert join_kmers("ACG CGT GTT", "x") == "ACGTT" and join_kmers("ACG", "x") == "ACG" and join_kmers("", "x") == ""
    with pytest.raises(UserError, match="row 3: ACG GGT are not overlapping k-mers"):
        join_kmers("ACG GGT", "row 3")
