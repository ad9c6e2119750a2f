"""GFF3 and GTF as their specifications say and as programs write them, against a reader written for this test."""

import bz2
import gzip
import logging
import random
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from test_mistakes import bgzf, mutate

from megadna import windows
from megadna.downstream.splice_sites import introns_of
from megadna.errors import UserError
from megadna.genome.annotation import read_annotation

DATA = Path(__file__).parents[1] / "data"
ODD = ["a,b", "a;b", "a=b", "50%", "a%2Cb", "tab\there", 'quo"te', "a b", "é", "NA", "None", "nan", "x#1", "-", "a&b"]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What megadna logs, whether its logger propagates or not."""
    logger = logging.getLogger("megadna")
    logger.addHandler(caplog.handler)
    with caplog.at_level("INFO", "megadna"):
        yield caplog
    logger.removeHandler(caplog.handler)


def read(path: Path) -> dict[tuple[str, str, str, str], list[list[tuple[int, int]]]]:
    """Exons of every transcript, sorted, by (gene, biotype, contig, strand)."""
    transcripts, exons = read_annotation(path)
    found: dict[tuple[str, str, str, str], list[list[tuple[int, int]]]] = {}
    of_transcript: dict[int, list[tuple[int, int]]] = {}
    for transcript, start, end in exons.itertuples(index=False):
        of_transcript.setdefault(transcript, []).append((start, end))
    for row in transcripts.itertuples():
        spans = of_transcript[row.Index]
        assert (row.start, row.end) == (spans[0][0], max(end for _, end in spans))
        found.setdefault((row.gene, row.biotype, row.contig, row.strand), []).append(spans)
    return {key: sorted(value) for key, value in found.items()}


def text_of(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def line(kind: str, start: int, end: int, attributes: str, contig: str = "c", strand: str = "+") -> str:
    return f"{contig}\tx\t{kind}\t{start}\t{end}\t.\t{strand}\t.\t{attributes}\n"


def coded(text: str, more: str = "") -> str:
    """Percent codes for what the GFF3 specification demands, and for `more`."""
    return "".join(f"%{ord(c):02X}" if c in "\t\n\r%;=&,#>" + more or ord(c) < 32 else c for c in text)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def odd_annotation(rng: random.Random, gff3: bool) -> tuple[str, dict]:
    """A file whose genes, transcripts and contigs have odd names, and what it says."""
    lines, truth = [], {}
    for number in range(rng.randrange(1, 12)):
        suffix = rng.choice(ODD) if gff3 or number % 2 else rng.choice([name for name in ODD if "\t" not in name])
        suffix = suffix if gff3 else suffix.replace("\t", " ")
        gene, contig, strand = f"g{number}{suffix}", rng.choice(["NA", "chr 1", "a|b", "c%3A"]), rng.choice("+-")
        contig_there = coded(contig, " |") if gff3 else contig
        biotype = rng.choice(["protein_coding", "NA", "lnc;RNA" if not gff3 else "lnc,RNA"])
        names = [f"t{number}.{nth}{suffix}" for nth in range(rng.randrange(1, 3))]
        at = [100 * number + 10, 100 * number + 30, 100 * number + 60, 100 * number + 90]
        exons = [(at[0], at[1]), (at[2], at[3])]
        put = {"contig": contig_there, "strand": strand}
        space = rng.choice(["", " "])
        if gff3:
            lines.append(line("gene", at[0], at[3], f"ID={coded(gene)};{space}biotype={coded(biotype)}", **put))
            for name in names:
                alias = f"Alias={coded('Parent=no;' + name)},other"
                lines.append(line("mRNA", at[0], at[3], f"{alias};ID={coded(name)};{space}Parent={coded(gene)}", **put))
            both = ",".join(map(coded, names))
            lines += [line("exon", *exon, f"Parent={both}{rng.choice(['', ';'])}", **put) for exon in exons]
            if biotype == "protein_coding":  # one CDS of two lines
                lines += [line("CDS", *exon, f"ID=cds{number};Parent={coded(names[0])}", **put) for exon in exons]
        else:
            own = f"gene_id {quoted(gene)};{space}gene_biotype {quoted(biotype)};"
            lines.append(line("gene", at[0], at[3], own, **put))
            for name in names:
                note = f"note {quoted('see; transcript_id no; x')};{space}transcript_id {quoted(name)}"
                tags = 'tag "a"; tag "b; c"; level 2'
                end = rng.choice(["", ";", '; # transcript_id "comment";', ";  "])
                lines += [line("exon", *exon, f"{own} {note}; {tags}{end}", **put) for exon in exons]
        key = (gene, biotype, contig, strand)
        truth[key] = [[(start - 1, end) for start, end in exons]] * len(names)
    if rng.random() < 0.3:
        rng.shuffle(lines)
    if gff3:
        lines.insert(0, "##gff-version 3\n")
        lines += rng.choice([[], ["###\n", "##FASTA\n", ">NA\n", "ACGT\n"], [">NA x\ty\n", "ACGT\n"]])
    text = "".join(lines)
    return text.replace("\n", rng.choice(["\n", "\r\n"])), truth


@pytest.mark.parametrize("gff3", [True, False])
def test_odd_names_are_read_as_they_were_meant(gff3: bool, tmp_path: Path) -> None:
    rng = random.Random(gff3)
    for number in range(15):
        text, truth = odd_annotation(rng, gff3)
        data = text.encode()
        packed = [data, gzip.compress(data), bgzf(data), zstandard.compress(data), b"\xef\xbb\xbf" + data][number % 5]
        (tmp_path / "x").write_bytes(packed)
        assert read(tmp_path / "x") == truth, text


def by_hand(path: Path) -> set[tuple[str, str, int, int]]:
    """(contig, strand, start, end) of the introns of every transcript with exons, 0-based, column by column."""
    exons: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row in gzip.decompress(path.read_bytes()).decode().splitlines():
        if row.startswith(("##FASTA", ">")):
            break
        columns = row.split("\t")
        if len(columns) == 9 and columns[2] == "exon":
            pairs = dict(pair.strip().split("=", 1) for pair in columns[8].split(";") if pair.strip())
            for parent in pairs["Parent"].split(","):
                key = (unquote(columns[0]), columns[6], unquote(parent))
                exons.setdefault(key, []).append((int(columns[3]) - 1, int(columns[4])))
    found = set()
    for (contig, strand, _), spans in exons.items():
        spans.sort()
        found |= {(contig, strand, a[1], b[0]) for a, b in pairwise(spans) if b[0] > a[1]}
    return found


@pytest.mark.parametrize("every", [True, False])
def test_a_coded_comma_in_an_id_is_no_second_parent(every: bool, tmp_path: Path) -> None:
    """The annotation of A. thaliana with transcripts named `model,x`: introns, genes, biotypes as before."""
    text = gzip.decompress((DATA / "arabidopsis_bacs.gff3.gz").read_bytes()).decode()
    renamed = text.replace("=model.", "=model%2C") if every else text.replace("=model.68711.", "=model%2C68711%2c")
    assert renamed != text
    (tmp_path / "x.gff3.gz").write_bytes(gzip.compress(renamed.encode()))
    before, after = read_annotation(DATA / "arabidopsis_bacs.gff3.gz"), read_annotation(tmp_path / "x.gff3.gz")
    pd.testing.assert_frame_equal(before[0], after[0])
    pd.testing.assert_frame_equal(before[1], after[1])
    introns = introns_of(after[1], after[0], 1)[["contig", "strand", "start", "end"]]
    assert set(introns.itertuples(index=False, name=None)) == by_hand(tmp_path / "x.gff3.gz")


BACTERIUM = (  # NCBI: the genes of proteins have a CDS and no exon
    "##gff-version 3\n"
    + line("region", 1, 1000, "ID=NC_1:1..1000;Is_circular=true;gbkey=Src")
    + line("gene", 10, 99, "ID=gene-b0001;gene_biotype=protein_coding")
    + line("CDS", 10, 99, "ID=cds-NP_1.1;Parent=gene-b0001")
    + line("gene", 200, 299, "ID=gene-b0002;gene_biotype=tRNA", strand="-")
    + line("tRNA", 200, 299, "ID=rna-b0002;Parent=gene-b0002", strand="-")
    + line("exon", 200, 299, "ID=exon-b0002-1;Parent=rna-b0002", strand="-")
    + line("gene", 950, 1050, "ID=gene-b0003;gene_biotype=protein_coding")
    + line("CDS", 950, 1050, "ID=cds-NP_3.1;Parent=gene-b0003")
    + line("pseudogene", 400, 450, "ID=gene-b0004;gene_biotype=pseudogene")
)

FILES = {
    "bacterium": (
        BACTERIUM,
        {
            ("gene-b0001", "protein_coding", "c", "+"): [[(9, 99)]],
            ("gene-b0002", "tRNA", "c", "-"): [[(199, 299)]],
        },
        [
            "1 transcripts left out: across the origin of a circular contig",
            "1 of 4 genes have no exon",
            "have no exon feature",
        ],
    ),
    "the CDS belongs to the gene, the exons to its transcript": (
        line("gene", 1, 90, "ID=g")
        + line("mRNA", 1, 90, "ID=t;Parent=g")
        + line("exon", 1, 30, "Parent=t")
        + line("exon", 61, 90, "Parent=t")
        + line("CDS", 21, 30, "ID=p;Parent=g")
        + line("CDS", 61, 70, "ID=p;Parent=g"),
        {("g", "protein_coding", "c", "+"): [[(0, 30), (60, 90)]]},
        ["1 transcripts left out: coding parts of genes"],
    ),
    "coding parts and UTRs alone": (
        line("gene", 1, 99, "ID=g")
        + line("mRNA", 1, 99, "ID=t;Parent=g")
        + line("five_prime_UTR", 1, 20, "Parent=t")
        + line("five_prime_UTR", 41, 45, "Parent=t")
        + line("CDS", 46, 60, "Parent=t")
        + line("three_prime_UTR", 61, 99, "Parent=t"),
        {("g", "protein_coding", "c", "+"): [[(0, 20), (40, 45), (45, 60), (60, 99)]]},
        ["1 transcripts have no exon feature"],
    ),
    "gtf with CDS alone, its stop codon cut by an intron": (
        line("CDS", 1, 30, 'gene_id "g"; transcript_id "t"')
        + line("stop_codon", 31, 31, 'gene_id "g"; transcript_id "t"')
        + line("stop_codon", 81, 82, 'gene_id "g"; transcript_id "t"'),
        {("g", "protein_coding", "c", "+"): [[(0, 30), (30, 31), (80, 82)]]},
        [],
    ),
    "gtf without names of genes": (
        line("exon", 1, 30, 'gene_id ""; transcript_id "t";') + line("exon", 1, 30, 'transcript_id ""; gene_id "g"'),
        {("t", "", "c", "+"): [[(0, 30)]]},
        ["1 exon or CDS lines left out: no transcript_id (the first: line 2)"],
    ),
    "an miRNA within its primary transcript": (
        line("gene", 1, 90, "ID=gene-MIR1;gene_biotype=miRNA")
        + line("primary_transcript", 1, 90, "ID=rna-NR_1.1;Parent=gene-MIR1")
        + line("exon", 1, 90, "ID=exon-NR_1.1-1;Parent=rna-NR_1.1")
        + line("miRNA", 11, 30, "ID=rna-MIR1;Parent=rna-NR_1.1")
        + line("exon", 11, 30, "ID=exon-MIR1-1;Parent=rna-MIR1"),
        {("gene-MIR1", "miRNA", "c", "+"): [[(0, 90)], [(10, 30)]]},
        [],
    ),
    "accessions instead of names, other exons": (
        line("SO:0000704", 1, 90, "ID=g")
        + line("SO:0000234", 1, 90, "ID=t;Parent=g")
        + line("SO:0000147", 1, 30, "Parent=t")
        + line("SO:0000147", 61, 90, "Parent=t")
        + line("ncRNA_gene", 1, 90, "ID=h;biotype=ncRNA")
        + line("noncoding_exon", 1, 90, "Parent=h"),
        {("g", "protein_coding", "c", "+"): [[(0, 30), (60, 90)]], ("h", "ncRNA", "c", "+"): [[(0, 90)]]},
        [],
    ),
    "values in quotes and a key twice": (
        line("gene", 1, 90, 'ID="g";biotype="lncRNA"')
        + line("lnc_RNA", 1, 90, 'ID="t";Parent="g"')
        + line("lnc_RNA", 1, 90, 'ID="u";Parent="g"')
        + line("exon", 1, 90, 'Parent="t";Parent="u"'),
        {("g", "lncRNA", "c", "+"): [[(0, 90)], [(0, 90)]]},
        [],
    ),
    "strands and trans-splicing": (
        line("exon", 1, 90, "Parent=a", strand="?")
        + line("exon", 1, 90, "Parent=b", strand=".")
        + line("exon", 1, 90, "Parent=d;exception=trans-splicing")
        + line("exon", 1, 90, "Parent=e", strand="-")
        + line("exon", 1, 90, "Parent=f", strand="-")
        + line("exon", 101, 190, "Parent=f"),
        {("e", "", "c", "-"): [[(0, 90)]]},
        ["2 transcripts left out: without a strand", "3 transcripts left out: trans-spliced"],
    ),
    "a track line and a contig named so": (
        "track name=x\n\n"
        + line("exon", 1, 90, "Parent=a", contig="track")
        + line("exon", 1, 90, "Parent=b", contig="browser.1"),
        {("a", "", "track", "+"): [[(0, 90)]], ("b", "", "browser.1", "+"): [[(0, 90)]]},
        [],
    ),
    "FASTA after > alone": (
        line("exon", 1, 90, "Parent=a") + ">c some text\nACGT\n",
        {("a", "", "c", "+"): [[(0, 90)]]},
        [],
    ),
}


@pytest.mark.parametrize("which", FILES)
def test_dialects(which: str, tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    text, expected, words = FILES[which]
    assert read(text_of(tmp_path / "x", text)) == expected
    for word in words:
        assert word in said.text
    assert read(text_of(tmp_path / "x", text.replace("\n", "\r\n"))) == expected
    assert read(text_of(tmp_path / "x", text.replace("\n", "\r"))) == expected
    assert read(text_of(tmp_path / "x", text.removesuffix("\n"))) == expected


def test_start_sites_of_a_bacterium(tmp_path: Path) -> None:
    text_of(tmp_path / "g.fa", ">c\n" + "ACGTTGCA" * 125 + "\n")
    text_of(tmp_path / "x.gff", BACTERIUM)
    table = windows(
        genome=tmp_path / "g.fa",
        annotation=tmp_path / "x.gff",
        length=10,
        negatives="none",
        split="random",
        dev_fraction=0,
        test_fraction=0,
    )
    assert table[["name", "start"]].to_numpy().tolist() == [["gene-b0001", 4]]


MISTAKES = {
    "no tabs": ("c x exon 1 9 . + . Parent=a\n", "line 1: not 9 tab-separated columns"),
    "no number": (
        line("exon", 1, 9, "Parent=a") + line("exon", "1e3", 2000, "Parent=a"),
        "line 2: not 9 tab-separated columns",
    ),  # type: ignore[arg-type]
    "0-based": ("\n" + line("exon", 0, 9, "Parent=a"), "line 2: not 9 tab-separated columns with 1 <= start"),
    "backwards": (line("exon", 9, 8, "Parent=a"), "line 1: not 9 tab-separated columns"),
    "no contig": (line("exon", 1, 9, "Parent=a", contig=""), "line 1: not 9 tab-separated columns"),
    "a tab too many": (line("exon", 1, 9, 'gene_id "g";\ttranscript_id "t"'), "line 1: not 9 tab-separated columns"),
    "> before a contig": (
        line("exon", 1, 9, "Parent=a") * 3 + line("exon", 1, 9, "Parent=a", contig=">c"),
        "line 4: a",
    ),
    "FASTA alone": (">c\nACGT\n", "empty: no feature in it"),
    "no exon": (line("gene", 1, 9, "ID=a"), "no exon or CDS feature that names its transcript"),
    "no strand": (line("exon", 1, 9, "Parent=a", strand="."), "no usable transcript with a strand"),
}


@pytest.mark.parametrize("which", MISTAKES)
def test_mistakes(which: str, tmp_path: Path) -> None:
    text, words = MISTAKES[which]
    path = text_of(tmp_path / "x.gff", text)
    with pytest.raises(UserError) as caught:
        read_annotation(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


def test_packed_annotation_is_checked(tmp_path: Path) -> None:
    data = BACTERIUM.encode()
    for packed, words in (
        (bgzf(data)[:-28], "the BGZF file is cut short"),
        (gzip.compress(data)[:-9], "cut short or damaged"),
        (gzip.compress(gzip.compress(data)), "packed twice"),
        (bz2.compress(data), "packed as bzip2"),
        (BACTERIUM.encode("utf-16"), "UTF-16 text"),
    ):
        (tmp_path / "x.gff.gz").write_bytes(packed)
        with pytest.raises(UserError, match=words):
            read_annotation(tmp_path / "x.gff.gz")


def fuzz(path: Path, count: int, seed: int) -> tuple[int, int]:
    """Mutated files: transcripts with exons, or one line of error."""
    rng = random.Random(seed)
    forms = [text.encode() for text, _, _ in FILES.values()]
    forms += [odd_annotation(rng, gff3)[0].encode() for gff3 in (True, False) for _ in range(4)]
    forms += [pack(data) for data in forms[-2:] for pack in (gzip.compress, bgzf, zstandard.compress)]
    read, refused = 0, 0
    for number in range(count):
        path.write_bytes(mutate(rng, forms[number % len(forms)]))
        try:
            transcripts, exons = read_annotation(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error), number
        else:
            read += 1
            assert len(transcripts) > 0 and set(exons["transcript"]) == set(transcripts.index), number
            assert (exons["start"] >= 0).all() and (exons["end"] > exons["start"]).all(), number
            assert set(transcripts["strand"]) <= {"+", "-"} and (transcripts["contig"] != "").all(), number
    return read, refused


def test_mutated_files_quick(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "x", 40, seed=1)
    assert read > 5 and refused > 5


@pytest.mark.slow
def test_mutated_files(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "x", 800, seed=2)
    assert read > 100 and refused > 100
