"""GFF3 and GTF (plain, gzip, BGZF or zstd; Ensembl, NCBI, GENCODE and plainer dialects) -> transcripts and exons.

In:  files as the GFF3 specification (1.26) and GTF 2.2 define them. GFF3: attributes are split first, then percent
     codes are decoded value by value; a line that begins with `>` or ##FASTA ends the features. GTF: a value in quotes
     may contain `;` and `\"`, a comment may follow, and nothing is percent-encoded.
Out: transcripts and exons; coordinates are 0-based and half-open. A transcript is one name on one contig and strand.
     Its exons are its exon features (also noncoding_exon and the like), or, if it has none, its coding parts and UTRs.
What is left out is counted in the log. 41,606 lines of GTF take 0.4 s (pyranges 0.1.7: 0.4 s for the table alone;
gffutils 0.14: 2.3 s), 2.9 million lines 37 s and 5.3 GB (CPU time, 2-core AMD EPYC VM, 2026-11-21).
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd

from megadna.errors import UserError, require
from megadna.genome.bed import locate, past_the_end
from megadna.genome.contigs import match_contigs, read_aliases, renamed
from megadna.genome.packed import as_file, file_blocks, open_bytes
from megadna.genome.records import Genome
from megadna.log import get_logger

log = get_logger(__name__)

_COLUMNS = ["contig", "source", "feature", "start", "end", "score", "strand", "phase", "attributes", "beyond"]
_USED = ["contig", "feature", "start", "end", "strand", "attributes", "beyond"]
_ACCESSIONS = {  # of the Sequence Ontology, which GFF3 allows instead of type names
    "SO:0000147": "exon",
    "SO:0000316": "CDS",
    "SO:0000704": "gene",
    "SO:0000336": "pseudogene",
    "SO:0000234": "mRNA",
    "SO:0000204": "five_prime_UTR",
    "SO:0000205": "three_prime_UTR",
}
_LONGEST_LINE = 1 << 24
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_COMMENT = re.compile(r"(?:^|[\s;])#")


def read_features(path: Path) -> tuple[pd.DataFrame, bool]:
    """(features, whether the file is GFF3; else it is GTF): contig, feature, start, end, strand, attributes, all text
    but start and end; the index is the line number. UserError with the line that is not a feature."""
    table = _read_lines(path)
    # Lines to skip: comments and directives, blank lines, and those of UCSC's browser.
    skipped = table["contig"].str.startswith("#")
    skipped |= (table["start"] == "") & table["contig"].str.match(r"(track|browser)\b|\s*$")
    table = table[~skipped]
    require(len(table) > 0, f"{path}: empty: no feature in it")
    numbers = [table[key].str.fullmatch("[0-9]{1,18}") for key in ("start", "end")]
    wrong = ~(numbers[0] & numbers[1]) | (table["contig"].str.strip() == "")
    if not wrong.any():
        starts, ends = table["start"].astype(np.int64), table["end"].astype(np.int64)
        wrong = (starts < 1) | (ends < starts)
    wrong |= (table["beyond"] != "") & ~table["beyond"].str.startswith("#")
    if wrong.any():
        row = table[wrong].iloc[0]
        words = " ".join(value for value in row.tolist() if value)[:80]
        raise UserError(
            f"{path}: line {row.name}: not 9 tab-separated columns with 1 <= start <= end: {words!r}; give GFF3 or GTF"
            + (", which a BED file is not" if ".bed" in path.name.lower() else "")
        )
    table = table.drop(columns="beyond").assign(start=starts - 1, end=ends)
    gff3 = _is_gff3(table["attributes"])
    if gff3 and table["feature"].str.startswith("SO:").any():
        table["feature"] = table["feature"].replace(_ACCESSIONS)
    if gff3 and table["contig"].str.contains("%", regex=False).any():
        table["contig"] = table["contig"].map({name: unquote(name) for name in table["contig"].unique()})
    return table, gff3


def _read_lines(path: Path) -> pd.DataFrame:
    """The used columns of every line before the FASTA part, as text, "" if missing."""
    require(path.is_file(), f"{path}: no such file")
    try:
        with open_bytes(path) as file:
            # pandas takes the number of columns from the first line and drops the surplus of others.
            first = b"#" + b"\t" * (len(_COLUMNS) - 1) + b"\n"
            lines = as_file(chain([first], _before_fasta(file_blocks(file), path)))
            table = pd.read_csv(
                lines,
                sep="\t",
                header=None,
                index_col=False,
                names=_COLUMNS,
                usecols=_USED,
                dtype=str,
                quoting=csv.QUOTE_NONE,
                skip_blank_lines=False,
                keep_default_na=False,  # NA and None are names
                encoding_errors="replace",
            )
    except UserError:
        raise
    except (ValueError, OSError) as error:  # pandas' ParserError is a ValueError
        raise UserError(f"{path}: cannot be read as a tab-separated table ({' '.join(str(error).split())})") from error
    return table.fillna("")


def _before_fasta(blocks: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """Whole lines before the one that begins with `>` or ##FASTA (Artemis writes the first without the second)."""
    rest, lines = b"", 0
    for block in blocks:
        text = rest + block if lines or rest else block.removeprefix(b"\xef\xbb\xbf")
        found = [text.find(end + mark) + 1 for end in (b"\n", b"\r") for mark in (b">", b"##FASTA")]
        at = 0 if text.startswith((b">", b"##FASTA")) else min((at for at in found if at > 0), default=-1)
        if at >= 0:
            head = text[at : at + 4096].splitlines()[0]
            if head.count(b"\t") >= 8:
                number = lines + len(text[:at].splitlines()) + 1
                raise UserError(f"{path}: line {number}: a contig name begins with '>'; remove the '>'")
            yield text[:at]
            return
        cut = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        lines += text.count(b"\n", 0, cut)
        yield text[:cut]
        rest = text[cut:]
        require(len(rest) < _LONGEST_LINE, f"{path}: line {lines + 1}: longer than {_LONGEST_LINE:,} bytes: not GFF")
    yield rest


def _is_gff3(attributes: pd.Series) -> bool:
    """Whether the first thousand lines have `key=value` rather than `key "value"`."""
    first = attributes.iloc[:1000]
    return bool(first.str.match(r'\s*[^\s="]+\s*=').sum() > first.str.match(r'\s*[^\s="]+\s+[^\s=]').sum())


def attribute(texts: pd.Series, gff3: bool, *keys: str) -> pd.Series:
    """Value of each line's first key that is not empty; "" if there is none."""
    found = [""] * len(texts)
    lines = texts.tolist()
    for key in keys:
        value_in = _gff3_value(key) if gff3 else _gtf_value(key)
        found = [value or value_in(line) for value, line in zip(found, lines, strict=True)]
    return pd.Series(found, index=texts.index, dtype=object)


def parents(texts: pd.Series) -> pd.Series:
    """The names in the Parent attributes of each GFF3 line."""
    pattern = _gff3_pattern("Parent")

    def names(line: str) -> list[str]:
        if "Parent" not in line:
            return []
        values = [value for match in pattern.findall(line) for value in match.split(",")]
        return list(dict.fromkeys(filter(None, map(_decoded, values))))

    return pd.Series([names(line) for line in texts.tolist()], index=texts.index, dtype=object)


def _gff3_pattern(key: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|;)\s*{re.escape(key)}\s*=([^;]*)")


def _gff3_value(key: str) -> Callable[[str], str]:
    search = _gff3_pattern(key).search

    def value(line: str) -> str:
        match = search(line)
        return _decoded(match[1]) if match else ""

    return value


def _decoded(value: str) -> str:
    """A value of GFF3: percent codes decoded, quotes around it (some programs write them) removed."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    return unquote(value) if "%" in value else value


def _gtf_value(key: str) -> Callable[[str], str]:
    pattern = re.compile(rf'(?:^|;)\s*{re.escape(key)}\s+(?:"([^"\\]*(?:\\.[^"\\]*)*)"|((?:(?!\s#)[^";])*))')
    search = pattern.search

    def value(line: str) -> str:
        match = search(line)
        while match:
            at = match.start()
            # Inside the quotes of another value, or in a comment?
            if "\\" in line or "#" in line:
                outside = _QUOTED.sub('""', line[:at])
                if _COMMENT.search(outside):
                    return ""
                inside = outside.count('"') % 2
            else:
                inside = line.count('"', 0, at) % 2
            if not inside:
                text = match[2].strip() if match[1] is None else match[1]
                if text:
                    return text if "\\" not in text else re.sub(r'\\(["\\])', r"\1", text)
            match = search(line, at + 1)
        return ""

    return value


_NEXT_TO_CDS = {"start_codon", "stop_codon", "5UTR", "3UTR", "UTR"}  # in GTF the CDS does not include the stop codon
_NEXT_TO_CDS |= {f"{end}_prime_{utr}" for end in ("five", "three") for utr in ("utr", "UTR")}
_PARTS = {"exon", "CDS", "Selenocysteine", "intron", *_NEXT_TO_CDS}  # of transcripts


def read_annotation(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(transcripts, exons); UserError if there is none.

    transcripts: gene, biotype (of the gene), contig, strand (+ or -), start, end. exons, sorted: transcript (its index
    in the other table), start, end. Trans-spliced and unstranded transcripts, and those that cross the origin of a
    circular contig, are left out and counted.
    """
    features, gff3 = read_features(path)
    is_exon = (features["feature"] == "exon") | features["feature"].str.endswith("_exon")
    exons, cds = _named(features[is_exon], gff3), _named(features[features["feature"] == "CDS"], gff3)
    translated = set(cds["name"])
    without_exons = translated - set(exons["name"])
    parts = exons
    if without_exons:
        coding = pd.concat([cds, _named(features[features["feature"].isin(_NEXT_TO_CDS)], gff3)])
        parts = pd.concat([exons, coding[coding["name"].isin(without_exons)]], ignore_index=True)
    require(len(parts) > 0, f"{path}: no exon or CDS feature that names its transcript")
    parts["transcript"] = parts.groupby(["contig", "strand", "name"], sort=False).ngroup()
    firsts = {key: (key, "first") for key in ("name", "contig", "strand", "attributes")}
    transcripts = parts.groupby("transcript").agg(**firsts, start=("start", "min"), end=("end", "max"))
    transcripts["coding"] = transcripts["name"].isin(translated)
    transcripts = _with_genes(transcripts, features, gff3)
    transcripts = _chosen(transcripts, parts, features, without_exons)
    require(len(transcripts) > 0, f"{path}: no usable transcript with a strand, + or - (column 7)")
    parts = parts.loc[parts["transcript"].isin(transcripts.index), ["transcript", "start", "end"]]
    columns = ["gene", "biotype", "contig", "strand", "start", "end"]
    transcripts = transcripts[columns].astype({"gene": str, "biotype": str})
    return transcripts, parts.sort_values(["transcript", "start", "end"], ignore_index=True)


def of_biotypes(transcripts: pd.DataFrame, biotypes: str, path: Path) -> pd.DataFrame:
    """The transcripts of genes with one of the comma-separated biotypes, or `all`; UserError for one without genes."""
    if biotypes == "all":
        return transcripts
    names, present = biotypes.split(","), sorted({*transcripts["biotype"]} - {""})
    for name in names:
        known = ", ".join(present) or "genes without a biotype"
        require(name in present, f"{path}: no gene of --biotypes {name}; it has {known}; `all` takes every gene")
    return transcripts[transcripts["biotype"].isin(names)]


def _named(parts: pd.DataFrame, gff3: bool) -> pd.DataFrame:
    """One row per exon (or coding part) of each transcript, with the transcript's `name`; those without are counted."""
    if gff3:  # an exon of several transcripts is one line
        named = parts.assign(name=parents(parts["attributes"])).explode("name").fillna({"name": ""})
    else:
        named = parts.assign(name=attribute(parts["attributes"], gff3, "transcript_id"))
    nameless = named["name"] == ""
    if nameless.any():
        key = "Parent" if gff3 else "transcript_id"
        first = named.index[nameless][0]
        log.warning("%d exon or CDS lines left out: no %s (the first: line %d)", nameless.sum(), key, first)
    return named[~nameless].reset_index(drop=True)


def _chosen(
    transcripts: pd.DataFrame, parts: pd.DataFrame, features: pd.DataFrame, without_exons: set[str]
) -> pd.DataFrame:
    """The transcripts that can be used; the log says how many are left out, and why."""
    trans = transcripts.duplicated(["contig", "name"], keep=False)
    trans |= transcripts["name"].isin(
        parts.loc[parts["attributes"].str.contains("trans-splicing", regex=False), "name"]
    )
    ring = features[features["attributes"].str.contains("Is_circular=true", regex=False)].groupby("contig")["end"].max()
    from_coding = transcripts["name"].isin(without_exons)
    reasons = {
        "trans-spliced": trans,
        "without a strand": ~transcripts["strand"].isin(["+", "-"]),
        "across the origin of a circular contig": transcripts["end"] > transcripts["contig"].map(ring).fillna(np.inf),
        # A gene may own the CDS while its transcripts own the exons.
        "coding parts of genes whose transcripts have exons": from_coding
        & transcripts["name"].isin(transcripts.loc[~from_coding, "gene"]),
    }
    kept = pd.Series(True, index=transcripts.index)
    for reason, odd in reasons.items():
        if (kept & odd).any():
            log.info("%d transcripts left out: %s", (kept & odd).sum(), reason)
        kept &= ~odd
    if num_coding := (kept & from_coding).sum():
        log.info("%d transcripts have no exon feature: their coding parts and UTRs are taken instead", num_coding)
    return transcripts[kept]


def _with_genes(transcripts: pd.DataFrame, features: pd.DataFrame, gff3: bool) -> pd.DataFrame:
    """Adds gene and its biotype: protein_coding if the gene has none, but a transcript that is an mRNA or has a CDS."""
    owners = features[~features["feature"].isin(_PARTS) & ~features["feature"].str.endswith("_exon")]
    ids = attribute(owners["attributes"], gff3, *(("ID",) if gff3 else ("transcript_id", "gene_id")))
    owners = owners.set_axis(ids)[~ids.duplicated().to_numpy()]
    own = owners.reindex(transcripts["name"]).fillna("").set_axis(transcripts.index)
    texts = own["attributes"].where(own["attributes"] != "", transcripts["attributes"])
    if gff3:
        gene = _gene_above(transcripts["name"], owners)
    else:
        gene = attribute(texts, gff3, "gene_id")
        gene = gene.where(gene != "", transcripts["name"])
    of_gene = owners["attributes"].reindex(gene).fillna("").set_axis(transcripts.index)
    biotype = pd.Series("", index=transcripts.index, dtype=object)
    for key in ("gene_biotype", "gene_type", "biotype"):
        for lines in (of_gene, texts):
            biotype = biotype.where(biotype != "", attribute(lines, gff3, key))
    coding = gene[(own["feature"] == "mRNA") | transcripts["coding"]]
    biotype = biotype.mask((biotype == "") & gene.isin(set(coding)), "protein_coding")
    biotype = biotype.where(biotype != "", own["feature"])
    genes = owners.index[owners["feature"].str.endswith("gene")]
    empty = ~genes.isin(set(gene)) & (genes != "")
    if empty.any():
        log.info("%d of %d genes have no exon or CDS feature and are left out", empty.sum(), len(genes))
    return transcripts.assign(gene=gene, biotype=biotype)


def _gene_above(names: pd.Series, owners: pd.DataFrame) -> pd.Series:
    """The gene of each of the GFF3 features with these IDs: up the Parents (an miRNA's is its primary transcript) to a
    type that ends in `gene`, or a feature without Parent."""
    gene = names
    for _ in range(4):
        row = owners.reindex(gene).fillna("").set_axis(gene.index)
        above = parents(row["attributes"]).str[0].fillna("")
        # A Parent without a line of its own also ends the search.
        upward = (above != "") & ~row["feature"].str.endswith("gene")
        if not upward.any():
            break
        gene = gene.mask(upward, above)
    return gene


def on_genome(
    table: pd.DataFrame, genome: Genome, path: Path, aliases: Path | None, min_share: float = 0.9
) -> pd.DataFrame:
    """The rows whose `contig` is in the genome, under its name there; the others are counted in a warning. UserError if
    the share of rows is below `min_share`, if one extends past its contig's end, or if the assembly report `aliases`
    has no contig of the genome.

    A table with a column `line` is a BED file: then every row must be on a contig.
    """
    groups = read_aliases(aliases) if aliases else {}
    if aliases and not groups.keys() & genome.bases.keys():
        raise UserError(f"--aliases {aliases}: names no contig of {genome.path}; give its assembly's report")
    if "line" in table:
        first_lines = table.groupby("contig", sort=False)["line"].first().to_dict()
        names = locate(path, first_lines, genome.bases, str(genome.path), groups)
    else:
        names = match_contigs(dict.fromkeys(table["contig"]), genome.bases, groups)
    log.info("contig names: %d equal; matched: %s", sum(a == b for a, b in names.items()), renamed(names) or "none")
    known = table["contig"].isin(names.keys())
    missing = sorted(set(table["contig"][~known]))
    if not known.any() or known.mean() < min_share:
        wanted = f", and {min_share:.0%} must be" if min_share else ""
        raise UserError(
            f"{path}: only {int(known.sum()):,} of {len(table):,} are on contigs of {genome.path}{wanted}; "
            f"unknown: {', '.join(missing[:5]) or 'none'}; the genome has {', '.join([*genome.bases][:5])}; "
            "give the matching genome, or --aliases assembly_report.txt"
        )
    if missing:
        log.warning("%d of %d left out: the genome lacks %s", (~known).sum(), len(table), ", ".join(missing[:20]))
    table = table[known].assign(contig=table.loc[known, "contig"].map(names))
    past = table["end"].to_numpy() > table["contig"].map(genome.lengths).to_numpy()
    if past.any():
        row = table.iloc[int(np.argmax(past))]
        size = genome.lengths[row["contig"]]
        if "line" in table:
            raise past_the_end(path, row["line"], row["contig"], row["end"], size)
        raise UserError(
            f"{path}: {row['contig']}:{row['start']:,}-{row['end']:,} passes the contig's end ({size:,} bases in "
            f"{genome.path}); it belongs to another genome build"
        )
    return table
