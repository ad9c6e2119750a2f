"""GFF3 and GTF -> a table of features, and the values of their attributes.

Read as the GFF3 specification (1.26) and GTF 2.2 say: in GFF3 attributes are split first and percent codes decoded
after, value by value; a line that begins with `>` or ##FASTA ends the features. In GTF a value in quotes may hold `;`
and `\\"`, a comment may follow, and nothing is percent-coded. Coordinates come out 0-based and half-open.
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
from megadna.genome.packed import as_file, file_blocks, open_bytes

_COLUMNS = ["contig", "source", "feature", "start", "end", "score", "strand", "phase", "attributes", "beyond"]
_USED = ["contig", "feature", "start", "end", "strand", "attributes", "beyond"]
_ACCESSIONS = {  # of the Sequence Ontology, which may stand for the names of GFF3 types
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
    but start and end; the index is the line number. UserError with the line where it is no feature."""
    table = _read_lines(path)
    # Lines that are no features: comments and directives, blank lines, and what UCSC's browser takes.
    no_feature = table["contig"].str.startswith("#")
    short = table["start"] == ""
    no_feature |= short & table["contig"].str.match(r"(track|browser)\b|\s*$")
    table = table[~no_feature]
    require(len(table) > 0, f"{path}: empty: holds no feature")
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
            f"{path}: line {row.name}: not 9 columns of GFF with tabs between, 1 <= start <= end: {words!r}"
        )
    table = table.drop(columns="beyond").assign(start=starts - 1, end=ends)
    gff3 = _is_gff3(table["attributes"])
    if gff3 and table["feature"].str.startswith("SO:").any():
        table["feature"] = table["feature"].replace(_ACCESSIONS)
    if gff3 and table["contig"].str.contains("%", regex=False).any():
        table["contig"] = table["contig"].map({name: unquote(name) for name in table["contig"].unique()})
    return table, gff3


def _read_lines(path: Path) -> pd.DataFrame:
    """The columns in use of every line before the FASTA part, as text, "" where there is none."""
    require(path.is_file(), f"{path}: no such file")
    try:
        with open_bytes(path) as file:
            # pandas takes the number of columns from the first line and drops what other lines have beyond it.
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
                raise UserError(f"{path}: line {number}: a contig name that begins with '>'; remove the '>'")
            yield text[:at]
            return
        cut = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        lines += text.count(b"\n", 0, cut)
        yield text[:cut]
        rest = text[cut:]
        require(len(rest) < _LONGEST_LINE, f"{path}: line {lines + 1}: longer than {_LONGEST_LINE:,} bytes: no GFF")
    yield rest


def _is_gff3(attributes: pd.Series) -> bool:
    """Whether the first thousand lines say `key=value` rather than `key "value"`."""
    first = attributes.iloc[:1000]
    return bool(first.str.match(r'\s*[^\s="]+\s*=').sum() > first.str.match(r'\s*[^\s="]+\s+[^\s=]').sum())


def attribute(texts: pd.Series, gff3: bool, *keys: str) -> pd.Series:
    """Value of the first of the keys that a line has and that is not empty; "" where it has none."""
    found = [""] * len(texts)
    lines = texts.tolist()
    for key in keys:
        value_in = _gff3_value(key) if gff3 else _gtf_value(key)
        found = [value or value_in(line) for value, line in zip(found, lines, strict=True)]
    return pd.Series(found, index=texts.index, dtype=object)


def parents(texts: pd.Series) -> pd.Series:
    """The list of the names in the Parent attributes of GFF3 lines."""
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
    """A value of GFF3: percent codes decoded; quotes around it, which some programs write, are no part of it."""
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
