"""Splice sites of real annotation: counted again another way, looked up in the sequence, split without overlap."""

import gzip
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from megadna import splice_sites
from megadna.cli import main
from megadna.downstream.splice_sites import introns_of, sites_of
from megadna.errors import UserError
from megadna.genome.annotation import read_annotation
from megadna.genome.records import read_genome, reverse_complement

DATA = Path(__file__).parents[1] / "data"
FILES = {
    "human": ("human_GRCh38_chr9_1-1000000_sm.fa.gz", "human_GRCh38.91_chr9_1-1000000.gtf.gz"),
    "arabidopsis": ("arabidopsis_bacs.fa.gz", "arabidopsis_bacs.gff3.gz"),
    "yeast": ("yeast_I_VI_VIII.fa.gz", "yeast_I_VI_VIII.gtf.gz"),
}


def dataset(which: str, **options: object) -> pd.DataFrame:
    genome, annotation = (DATA / name for name in FILES[which])
    return splice_sites(**{"genome": genome, "annotation": annotation, **options})


def read_text(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode()


def sequences(which: str) -> dict[str, str]:
    """Contigs, read by splitting at '>'."""
    records = [record.partition("\n") for record in read_text(DATA / FILES[which][0]).split(">")[1:]]
    return {head.split()[0]: "".join(body.split()).upper() for head, _, body in records}


def count_again(which: str, coding_only: bool) -> tuple[set, set, Counter]:
    """Donors and acceptors as (contig, strand, 1-based intron base beside the exon), and unique introns by motif."""
    chains: dict[tuple, list] = {}
    genome = sequences(which)
    for line in read_text(DATA / FILES[which][1]).splitlines():
        columns = line.split("\t")
        if len(columns) != 9 or columns[2] != "exon":
            continue
        if coding_only and which != "arabidopsis" and 'gene_biotype "protein_coding"' not in columns[8]:
            continue
        (transcript,) = re.findall(r'(?:Parent=|transcript_id ")([^";]+)', columns[8])
        chains.setdefault((columns[0], columns[6], transcript), []).append((int(columns[3]), int(columns[4])))
    introns = set()
    for (contig, strand, _), exons in chains.items():
        exons.sort()
        for left, right in pairwise(exons):
            introns.add((contig, strand, left[1] + 1, right[0] - 1))
    motifs: Counter = Counter()
    donors, acceptors = set(), set()
    for contig, strand, first, last in introns:
        text = genome[contig][first - 1 : last]
        text = text if strand == "+" else reverse_complement(text)
        motifs[text[:2] + "-" + text[-2:]] += 1
        donors.add((contig, strand, first if strand == "+" else last))
        acceptors.add((contig, strand, last if strand == "+" else first))
    return donors, acceptors, motifs


@pytest.mark.parametrize(
    ("which", "biotypes", "introns", "donors", "acceptors", "share"),
    [
        ("human", "all", 195, 154, 147, 0.990),
        ("human", "protein_coding", 144, 118, 114, 0.986),
        ("arabidopsis", "protein_coding", 1148, 1148, 1148, 0.985),
        ("yeast", "protein_coding", 29, 29, 29, 0.897),
    ],
)
def test_sites_equal_an_independent_count(
    which: str, biotypes: str, introns: int, donors: int, acceptors: int, share: float
) -> None:
    transcripts, exons = read_annotation(DATA / FILES[which][1])
    chosen = transcripts if biotypes == "all" else transcripts[transcripts["biotype"] == biotypes]
    sites = sites_of(introns_of(exons, chosen, 1))
    # The intron base beside the boundary, 1-based: behind it where the intron lies to the right.
    right = (sites["kind"] == "donor") == (sites["strand"] == "+")
    places = list(zip(sites["contig"], sites["strand"], sites["position"] + right, strict=True))
    again = count_again(which, biotypes != "all")
    for kind, expected, number in (("donor", again[0], donors), ("acceptor", again[1], acceptors)):
        found = [place for place, has in zip(places, sites["kind"], strict=True) if has == kind]
        assert len(found) == len(set(found)) == number
        assert set(found) == expected
    table = dataset(which, biotypes=biotypes, min_intron=1)
    counts = table.attrs["manifest"]["counts"]
    assert counts["introns"] == introns == again[2].total()
    assert counts["motifs"] == dict(again[2])
    assert counts["GT-AG share"] == pytest.approx(share, abs=5e-4)


def test_known_introns_of_two_strands() -> None:
    """SNC1 (I, +): exons end at 87387 and begin at 87501. ACT1 (VI, -): 54687 and 54377 (1-based; Ensembl and SGD)."""
    table = dataset("yeast")
    known = {
        ("I", "+", 87387, "donor"): 0,
        ("I", "+", 87500, "acceptor"): 1,
        ("VI", "-", 54686, "donor"): 0,
        ("VI", "-", 54377, "acceptor"): 1,
    }
    genome = sequences("yeast")
    for (contig, strand, position, kind), label in known.items():
        (row,) = table[(table["contig"] == contig) & (table["position"] == position)].itertuples()
        assert (row.strand, row.kind, row.label, row.canonical) == (strand, kind, label, True)
        assert (row.start, row.end) == (position - 256, position + 256)
        text = genome[contig][position - 256 : position + 256]
        assert row.sequence == (text if strand == "+" else reverse_complement(text))
    assert table.loc[table["position"] == 54686, "name"].item() == "YFL039C"
    act1 = table.loc[table["position"] == 54686, "sequence"].item()
    assert act1[256 - 10 : 256] == "ATGGATTCTG" and act1[256:262] == "GTATGT"  # MDS, then yeast's donor


@pytest.mark.parametrize("centre", ["boundary", "bionemo"])
@pytest.mark.parametrize("length", [512, 100])
def test_gt_and_ag_stand_where_promised(centre: str, length: int) -> None:
    table = dataset("arabidopsis", centre=centre, length=length)
    assert set(table["sequence"].str.len()) == {length}
    middle = length // 2
    shift = 1 if centre == "bionemo" else 0
    for kind in ("donor", "hard_donor"):
        rows = table[(table["kind"] == kind) & (table["canonical"] | (kind == "hard_donor"))]
        assert len(rows) > 300 and set(rows["sequence"].str[middle : middle + 2]) == {"GT"}
    for kind in ("acceptor", "hard_acceptor"):
        rows = table[(table["kind"] == kind) & (table["canonical"] | (kind == "hard_acceptor"))]
        ends = middle - shift
        assert len(rows) > 300 and set(rows["sequence"].str[ends - 2 : ends]) == {"AG"}
    odd = table[(table["kind"] == "donor") & ~table["canonical"]]
    assert "GT" not in set(odd["sequence"].str[middle : middle + 2]) and len(odd) == 17  # 0.015 of 1,148: GC


@pytest.mark.parametrize("centre", ["boundary", "bionemo"])
def test_windows_lie_where_the_table_says(centre: str) -> None:
    """Read along the transcript, or as the genome file has it; bionemo's exon edge at L/2 - 1 either way."""
    genome = sequences("human")
    for minus in ("reverse_complement", "forward"):
        table = dataset("human", minus_strand=minus, centre=centre)
        assert set(table["strand"]) == {"+", "-"}
        for row in table.itertuples():
            text = genome[row.contig][row.start : row.end]
            turned = row.strand == "-" and minus == "reverse_complement"
            assert row.sequence == (reverse_complement(text) if turned else text)
            if centre == "bionemo" and row.kind in ("donor", "acceptor"):
                exon_left = (row.kind == "donor") == (row.strand == "+")
                edge = row.position - 1 if exon_left else row.position
                assert (row.end - 1 - edge if turned else edge - row.start) == 255


def test_negatives_are_no_site_of_any_isoform() -> None:
    every = set().union(*count_again("human", False)[:2])
    transcripts, _ = read_annotation(DATA / FILES["human"][1])
    spans = transcripts.groupby("gene").agg(start=("start", "min"), end=("end", "max"), strand=("strand", "first"))
    for kind in ("hard", "random", "midpoint"):
        table = dataset("human", negatives=kind)
        counts = table["label"].value_counts()
        assert counts[0] == counts[1] == counts[2] == table.attrs["manifest"]["counts"]["acceptor"] == 114
        negatives = table[table["label"] == 2]
        for row in negatives.itertuples():
            assert not {(row.contig, row.strand, row.position + shift) for shift in (0, 1)} & every or kind == "hard"
            assert spans.loc[row.name, "start"] < row.position < spans.loc[row.name, "end"]
            assert spans.loc[row.name, "strand"] == row.strand
        if kind == "hard":  # the intron base beside the boundary, as in count_again
            right = (negatives["kind"] == "hard_donor") == (negatives["strand"] == "+")
            where = zip(negatives["contig"], negatives["strand"], negatives["position"] + right, strict=True)
            assert not set(where) & every
            assert negatives["kind"].value_counts().to_dict() == {"hard_donor": 57, "hard_acceptor": 57}
            assert set(negatives["name"]) <= set(table.loc[table["label"] < 2, "name"])


def overlaps(table: pd.DataFrame) -> int:
    """Windows of dev and test that share a base with a window of train, pair by pair."""
    count = 0
    for _, rows in table.groupby("contig"):
        train, others = rows[rows["split"] == "train"], rows[rows["split"] != "train"]
        before = train["start"].to_numpy() < others["end"].to_numpy()[:, None]
        behind = train["end"].to_numpy() > others["start"].to_numpy()[:, None]
        count += int((before & behind).any(axis=1).sum())
    return count


@pytest.mark.parametrize("which", FILES)
def test_no_window_overlaps_or_repeats_one_of_another_split(which: str) -> None:
    table = dataset(which)
    assert set(table["split"]) == {"train", "dev", "test"} and overlaps(table) == 0
    assert (table.groupby("name")["split"].nunique() == 1).all()
    either = table["sequence"].map(lambda text: min(text, reverse_complement(text)))
    assert (table.groupby(either)["split"].nunique() == 1).all()
    assert set(table.attrs["manifest"]["counts"]["leakage"].values()) == {0}
    shares = table["split"].value_counts(normalize=True)
    assert which == "yeast" or (0.04 < shares["test"] < 0.11 and 0.02 < shares["dev"] < 0.11)


def test_random_split_counts_its_leakage() -> None:
    table = dataset("arabidopsis", split="random")
    leakage = table.attrs["manifest"]["counts"]["leakage"]
    assert leakage["dev windows that overlap train"] + leakage["test windows that overlap train"] == overlaps(table)
    assert overlaps(table) > 500
    assert table["split"].value_counts(normalize=True)["train"] == pytest.approx(0.8, abs=0.001)


def test_chromosome_split_by_name_and_by_share() -> None:
    table = dataset("arabidopsis", split="chromosome")
    assert (table.groupby("contig")["split"].nunique() == 1).all() and overlaps(table) == 0
    named = dataset("arabidopsis", split="chromosome", dev_contigs=["gi|68719"], test_contigs=["gi|68711", "gi|68718"])
    where = named.groupby("split")["contig"].unique()
    assert set(where["dev"]) == {"gi|68719"} and set(where["test"]) == {"gi|68711", "gi|68718"}
    with pytest.raises(UserError, match=r"--test_contigs gi\|6871: no window lies on it; did you mean gi"):
        dataset("arabidopsis", split="chromosome", dev_contigs=["gi|68719"], test_contigs=["gi|6871"])
    with pytest.raises(UserError, match=r"--dev_contigs chrVI: no window lies on it; did you mean VI\?"):
        dataset("yeast", split="chromosome", dev_contigs=["chrVI"], test_contigs=["I"])
    with pytest.raises(UserError, match=r"--dev_contigs and --test_contigs share VI; name it once"):
        dataset("yeast", split="chromosome", dev_contigs=["VI"], test_contigs=["VI", "I"])
    with pytest.raises(UserError, match=r"3 splits, but only 1 of them"):
        dataset("human", split="chromosome")


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"contig": str})


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, again, other = (
        dataset("human", output=tmp_path / name, seed=seed, per_class=50)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    pd.testing.assert_frame_equal(first, again)
    assert set(first["start"]) != set(other["start"])
    assert first["label"].value_counts().to_dict() == {0: 50, 1: 50, 2: 50}
    for name in ("train.csv", "dev.csv", "test.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    written = pd.concat(
        [read_csv(tmp_path / "a" / f"{split}.csv").assign(split=split) for split in ("train", "dev", "test")]
    )
    assert list(written.columns[:2]) == ["sequence", "label"]
    key = ["contig", "position", "label"]
    pd.testing.assert_frame_equal(
        written.sort_values(key, ignore_index=True), first.sort_values(key, ignore_index=True), check_dtype=False
    )
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["options"]["seed"] == 1 and manifest["counts"]["labels"]["acceptor"] == 1
    dataset("human", output=tmp_path / "p", seed=1, per_class=50, format="parquet")
    parquet = pd.read_parquet(tmp_path / "p" / "test.parquet")
    pd.testing.assert_frame_equal(parquet, read_csv(tmp_path / "a" / "test.csv"), check_dtype=False)


DIALECTS = {
    "ensembl.gff3": """##gff-version 3
#!genome-build X
{c}	ensembl	gene	11	90	.	-	.	ID=gene:G1;biotype=protein_coding;Name=a%2Cb;gene_id=G1
{c}	ensembl	mRNA	11	90	.	-	.	ID=transcript:T1;Parent=gene:G1;biotype=nonsense_mediated_decay
{c}	ensembl	exon	11	30	.	-	.	Parent=transcript:T1;Name=e2
{c}	ensembl	exon	61	90	.	-	.	Parent=transcript:T1;Name=e1
###
{c}	ensembl	ncRNA_gene	101	190	.	+	.	ID=gene:G2;biotype=lncRNA
{c}	ensembl	lnc_RNA	101	190	.	+	.	ID=transcript:T2;Parent=gene:G2;biotype=lncRNA
{c}	ensembl	exon	101	120	.	+	.	Parent=transcript:T2
{c}	ensembl	exon	161	190	.	+	.	Parent=transcript:T2
##FASTA
>{c}
ACGT
""",
    "ncbi.gff3": """##gff-version 3
{c}	RefSeq	region	1	200	.	+	.	ID=NC_1.1:1..200;gbkey=Src
{c}	Gnomon	gene	11	90	.	-	.	ID=gene-A;gbkey=Gene;gene_biotype=protein_coding
{c}	Gnomon	mRNA	11	90	.	-	.	ID=rna-XM_1.1;Parent=gene-A;gbkey=mRNA
{c}	Gnomon	exon	61	90	.	-	.	ID=exon-XM_1.1-1;Parent=rna-XM_1.1;gbkey=mRNA
{c}	Gnomon	exon	11	30	.	-	.	ID=exon-XM_1.1-2;Parent=rna-XM_1.1;gbkey=mRNA
{c}	Gnomon	gene	101	190	.	+	.	ID=gene-B;gbkey=Gene;gene_biotype=lncRNA
{c}	Gnomon	lnc_RNA	101	190	.	+	.	ID=rna-XR_1.1;Parent=gene-B;gbkey=ncRNA
{c}	Gnomon	exon	101	120	.	+	.	ID=exon-XR_1.1-1;Parent=rna-XR_1.1
{c}	Gnomon	exon	161	190	.	+	.	ID=exon-XR_1.1-2;Parent=rna-XR_1.1
{c}	RefSeq	exon	5	8	.	+	.	ID=x1;Parent=rna-trans;exception=trans-splicing
{c}	RefSeq	exon	191	195	.	+	.	ID=x2;Parent=rna-trans;exception=trans-splicing
""",
    "ncbi.gtf": """#gtf-version 2.2
{c}	Gnomon	gene	11	90	.	-	.	gene_id "A"; transcript_id ""; gbkey "Gene"; gene_biotype "protein_coding";
{c}	Gnomon	transcript	11	90	.	-	.	gene_id "A"; transcript_id "XM_1.1"; transcript_biotype "mRNA";
{c}	Gnomon	exon	61	90	.	-	.	gene_id "A"; transcript_id "XM_1.1"; product "a; b"; exon_number "1";
{c}	Gnomon	exon	11	30	.	-	.	gene_id "A"; transcript_id "XM_1.1"; exon_number "2";
{c}	Gnomon	gene	101	190	.	+	.	gene_id "B"; transcript_id ""; gene_biotype "lncRNA";
{c}	Gnomon	exon	101	120	.	+	.	gene_id "B"; transcript_id "XR_1.1"; exon_number "1";
{c}	Gnomon	exon	161	190	.	+	.	gene_id "B"; transcript_id "XR_1.1"; exon_number "2";
""",
    "gencode.gtf": """##provider: GENCODE
{c}	H	exon	61	90	.	-	.	gene_id "A.1"; transcript_id "T.1"; gene_type "protein_coding"; transcript_type "N";
{c}	H	exon	11	30	.	-	.	gene_id "A.1"; transcript_id "T.1"; gene_type "protein_coding"; exon_number 2;
{c}	H	exon	101	120	.	+	.	gene_id "B.1"; transcript_id "U.1"; gene_type "lncRNA"; exon_number 1;
{c}	H	exon	161	190	.	+	.	gene_id "B.1"; transcript_id "U.1"; gene_type "lncRNA"; exon_number 2;
""",
    "augustus.gff3": """{c}	AUGUSTUS	gene	11	90	.	-	.	ID=g1
{c}	AUGUSTUS	transcript	11	90	.	-	.	ID=g1.t1;Parent=g1
{c}	AUGUSTUS	transcript	11	90	.	-	.	ID=g1.t2;Parent=g1
{c}	AUGUSTUS	exon	61	90	.	-	.	Parent=g1.t1,g1.t2
{c}	AUGUSTUS	exon	11	30	.	-	.	Parent=g1.t1,g1.t2
{c}	AUGUSTUS	CDS	61	90	.	-	0	Parent=g1.t1
{c}	AUGUSTUS	exon	101	120	.	+	.	Parent=g2.t1
{c}	AUGUSTUS	exon	161	190	.	+	.	Parent=g2.t1
""",
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("packed", [False, True])
def test_dialects_say_the_same(dialect: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / dialect
    text = DIALECTS[dialect].format(c="chr1").encode()
    path.write_bytes(gzip.compress(text) if packed else text.replace(b"\n", b"\r\n"))
    transcripts, exons = read_annotation(path)
    coding = transcripts[transcripts["biotype"] == "protein_coding"]
    assert coding["gene"].nunique() == 1 and len(transcripts) - len(coding) == 1
    sites = sites_of(introns_of(exons, coding, 20))
    assert sites[["contig", "strand", "position", "kind"]].to_numpy().tolist() == [
        ["chr1", "-", 60, "donor"],
        ["chr1", "-", 30, "acceptor"],
    ]
    assert sorted(introns_of(exons, transcripts, 20)["start"]) == [30, 120]
    assert introns_of(exons, transcripts, 41).empty


def dialect_files(folder: Path, contig: str, annotated: str, length: int = 200) -> tuple[Path, Path]:
    """A genome of one contig, and the Ensembl annotation above on a contig of another name."""
    genome, annotation = folder / "g.fa", folder / "a.gff3"
    genome.write_text(f">{contig}\n{'ACGGTACTAGTC' * 20}"[: length + len(contig) + 2] + "\n")
    annotation.write_text(DIALECTS["ensembl.gff3"].format(c=annotated))
    return genome, annotation


REPORT = "# Assembly name:  X\n1\tassembled-molecule\t1\tChromosome\tCM1.1\t=\tNC_1.1\tPrimary Assembly\t200\tchr1\n"


@pytest.mark.parametrize(
    ("contig", "annotated", "aliases"),
    [("chr1", "1", ""), ("1", "chr1", ""), ("chrM", "MT", ""), ("Mito", "chrM", ""), ("CM1.1", "chr1", REPORT)],
)
def test_contig_names_are_reconciled(
    contig: str, annotated: str, aliases: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    genome, annotation = dialect_files(tmp_path, contig, annotated)
    report = tmp_path / "report.txt"
    report.write_text(aliases)
    more = {"biotypes": "all", "length": 8, "split": "random", "aliases": report if aliases else None}
    with caplog.at_level("INFO", "megadna"):
        table = splice_sites(genome=genome, annotation=annotation, **more)
    assert set(table["contig"]) == {contig}
    assert f"{annotated} -> {contig}" in caplog.text or not caplog.records  # the megadna logger may not propagate


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line that the command ends in."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in ("splice-sites", *arguments)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("megadna: error: ")]
    assert stop.value.code == 2 and len(lines) == 1
    return lines[0]


def test_mistakes_are_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genome, annotation = dialect_files(tmp_path, "chr1", "1")
    output = tmp_path / "out"
    base = ["--genome", genome, "--output", output, "--annotation"]
    assert "no such file" in mistake(capsys, *base, tmp_path / "no.gtf")
    empty = tmp_path / "empty.gtf"
    empty.write_text("")
    assert "empty.gtf: empty" in mistake(capsys, *base, empty)
    empty.write_text("#!genome-build X\n\n")
    assert "empty.gtf: empty" in mistake(capsys, *base, empty)
    wrong = tmp_path / "wrong.gtf"
    wrong.write_text(DIALECTS["gencode.gtf"].format(c="1").replace("\t61\t", "\tsixty\t"))
    assert "wrong.gtf: line 2: " in mistake(capsys, *base, wrong)
    for number in ("60.5", "9" * 17, "9" * 30, "9" * 400, "9" * 5000):
        wrong.write_text(DIALECTS["gencode.gtf"].format(c="1").replace("\t90\t", f"\t{number}\t"))
        line = mistake(capsys, *base, wrong)
        assert "wrong.gtf: line 2: " in line or "passes the contig's end" in line
        assert "1 <= start <= end" in line or number == "9" * 17
        assert len(line) < 400
    wrong.write_text(DIALECTS["gencode.gtf"].format(c="7"))
    line = mistake(capsys, *base, wrong)
    assert "unknown: 7; the genome has chr1" in line and "--aliases" in line
    wrong.write_text(DIALECTS["gencode.gtf"].format(c="1").replace("\t190\t", "\t290\t"))
    line = mistake(capsys, *base, wrong)
    assert "chr1:100-290 passes the contig's end (200 bases" in line and "build" in line
    assert "it has lncRNA, protein_coding" in mistake(capsys, *base, annotation, "--biotypes", "mRNA")
    for biotypes in ("protein_coding,snRNA", "snRNA,lncRNA"):
        assert "no gene of --biotypes snRNA; it has" in mistake(capsys, *base, annotation, "--biotypes", biotypes)
    report = tmp_path / "report.txt"
    report.write_text(REPORT.replace("CM1.1", "CM2.1").replace("chr1", "chr2").replace("1\tass", "2\tass"))
    assert "report.txt: names no contig of" in mistake(capsys, *base, annotation, "--aliases", report)
    assert "no.txt: no such file or folder (--aliases)" in mistake(
        capsys, *base, annotation, "--aliases", tmp_path / "no.txt"
    )
    assert "no intron of 41" in mistake(capsys, *base, annotation, "--min_intron", "41")
    assert "--length must be even" in mistake(capsys, *base, annotation, "--length", "401")
    assert "--output" in mistake(capsys, "--genome", genome, "--annotation", annotation)
    assert not output.exists()
    output.mkdir()
    (output / "thesis.txt").write_text("three years of work")
    assert "not empty" in mistake(capsys, *base, annotation)


def test_too_few_transcripts_on_the_genome(tmp_path: Path) -> None:
    """8 of 9 transcripts are known, 89 %; with 9 of 10 the tenth is left out."""
    line = '{c}\tx\texon\t{start}\t{end}\t.\t+\t.\tgene_id "g{n}"; transcript_id "t{n}"; gene_type "protein_coding";'
    contigs = ["chr1"] * 9 + ["un"]
    exons = [(n, c, start) for n, c in enumerate(contigs) for start in (1 + 10 * n, 101 + 10 * n)]
    lines = [line.format(c=c, n=n, start=start, end=start + 9) for n, c, start in exons]
    genome = dialect_files(tmp_path, "chr1", "1")[0]
    annotation = tmp_path / "few.gtf"
    annotation.write_text("\n".join(lines[2:]) + "\n")
    few = {"genome": str(genome), "annotation": str(annotation), "length": 4, "split": "random"}
    with pytest.raises(UserError, match="8 of 9 are on contigs"):
        splice_sites(**few)
    annotation.write_text("\n".join(lines) + "\n")
    assert set(splice_sites(**few)["contig"]) == {"chr1"}


def test_a_wrong_strand_or_build_shows_in_the_gt_ag_share(tmp_path: Path) -> None:
    flipped = tmp_path / "flipped.gff3"
    swap = {"+": "-", "-": "+", ".": "."}
    lines = [line.split("\t") for line in read_text(DATA / FILES["arabidopsis"][1]).splitlines()]
    flipped.write_text("\n".join("\t".join([*line[:6], swap[line[6]], *line[7:]]) for line in lines if len(line) == 9))
    with pytest.raises(
        UserError, match=r"only 0\.0\d\d of 1,14\d introns are GT-AG.*strands.*genome build.*--min_gt_ag 0"
    ):
        dataset("arabidopsis", annotation=flipped)
    assert len(dataset("arabidopsis", annotation=flipped, min_gt_ag=0.0)) > 3000


def test_genome_letters_are_those_of_the_file() -> None:
    genome = read_genome(DATA / FILES["human"][0])
    text = sequences("human")["9"]
    letters = genome.bases["9"]
    assert (letters & 0xDF).tobytes().decode() == text
    assert np.mean(letters > 0x60) == pytest.approx(0.4625, abs=1e-3)
