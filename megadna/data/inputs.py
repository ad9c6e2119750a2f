"""What the user named (files, folders, globs, a sample sheet) -> the list of source files."""

import csv
import glob
import io
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from megadna.data.manifest import SPLITS
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError, require, require_one_line
from megadna.genome.sources import STDIN, SequenceFile, detect_format
from megadna.reading import read_text

SEQUENCE_FILE = re.compile(r"\.(fa|fna|fasta|fas|ffn|frn|seq)(\.(gz|bgz|bgzf|zst|zstd))?$|\.2bit$", re.I)
_ENDINGS = re.compile(r"(\.(fa|fna|fasta|fas|ffn|frn|seq|txt|csv|tsv|parquet|2bit))?(\.(gz|bgz|bgzf|zst|zstd))?$", re.I)
_SHEET_COLUMNS = ("path", "genome", "species", "split", "circular")
_CIRCULAR = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_SPLIT_NAMES = {"train": 0, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True)
class SourceFile(SequenceFile):
    """One input file of a dataset, with its row of the sample sheet."""

    species: str = ""
    taxa: dict[str, str] = field(default_factory=dict)
    split: int | None = None
    """Split of the whole source, where the sample sheet or an option decides it."""
    sheet_row: int = 0
    """Row of the sample sheet, from 0."""
    sheet_rows: int = 0
    """Rows of the sample sheet, those without a path included."""

    @property
    def split_name(self) -> str:
        """train, valid or test; "" where the chunks are drawn one by one."""
        return "" if self.split is None else SPLITS[self.split]

    def group(self, column: str) -> str:
        """Value of a sample-sheet column; the genome's name for no column."""
        return self.species if column == "species" else self.taxa.get(column, self.name)


def find_sources(options: PreprocessOptions) -> list[SourceFile]:
    """Sources in the order of their chunks; UserError where a name fits nothing."""
    if options.sample_sheet is None:
        sources = [_source(path, options.column) for path in _expand(options.input)]
    else:
        sources = _read_sheet(options.sample_sheet, options)
    for source in sources:  # contigs.tsv has the name in a column, without quotes
        require_one_line(f"{options.sample_sheet or source.path.parent}", source.name)
    return _with_unique_names(sources)


def _source(path: Path, column: str) -> SourceFile:
    kind = detect_format(path, column)
    if path == STDIN:
        return SourceFile(path, "stdin", kind, 0, column)
    name = _ENDINGS.sub("", path.name) or path.name
    return SourceFile(path, name, kind, path.stat().st_size, column)


def _expand(inputs: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if SEQUENCE_FILE.search(file.name) and file.is_file())
            if not inside:
                raise UserError(f"{path}: no FASTA file in this folder (.fa .fna .fasta .2bit, also .gz .bgz .zst)")
            found += inside
        elif glob.has_magic(str(path)) and not path.exists():
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
            if not matches:
                raise UserError(f"{path}: no file fits this pattern")
            found += _expand(matches)
        else:
            found.append(path)
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice; name every file once")
        seen.add(path.resolve())
    return found


def _read_sheet(sheet: Path, options: PreprocessOptions) -> list[SourceFile]:
    """Rows of a sample sheet, sorted by genome and path so that the order of its lines does not matter."""
    rows = _sheet_rows(sheet, options)
    sources: list[SourceFile] = []
    lines: dict[Path, int] = {}
    for number, (line, row) in enumerate(rows):
        for cell in (cell for key, cell in row.items() if key != "path"):  # the others become lines of tables
            require_one_line(f"{sheet}: line {line}", cell)
        path = Path(row["path"])
        if not row["path"]:
            continue  # removed from the list, yet counted by the Nucleotide Transformer rule
        try:
            source = _source(path if path.is_absolute() else sheet.parent / path, options.column)
        except UserError as error:
            raise UserError(f"{sheet}: line {line}: {error}") from error
        before = lines.setdefault(source.path.resolve(), line)
        require(before == line, f"{sheet}: line {line}: {path} is in line {before} too; name every file once")
        split, circular = row.get("split", "").lower(), row.get("circular", "").lower()
        for key, value, known in (("split", split, _SPLIT_NAMES), ("circular", circular, _CIRCULAR)):
            require(not value or value in known, f"{sheet}: line {line}: {key} {value!r} is none of {', '.join(known)}")
        missing = options.split_by and not split and not row[options.split_by]
        require(not missing, f"{sheet}: line {line}: no {options.split_by}, which --split_by names")
        taxa = {key: value for key, value in row.items() if key not in _SHEET_COLUMNS}
        sources.append(
            replace(
                source,
                name=row.get("genome") or source.name,
                species=row.get("species", ""),
                taxa=taxa | ({"circular": "yes"} if _CIRCULAR.get(circular) else {}),
                split=_SPLIT_NAMES.get(split),
                sheet_row=number,
                sheet_rows=len(rows),
            )
        )
    require(bool(sources), f"{sheet}: no row names a path")
    return sorted(sources, key=lambda source: (source.name, str(source.path)))


def _sheet_rows(sheet: Path, options: PreprocessOptions) -> list[tuple[int, dict[str, str]]]:
    """(line, row by column) of a sample sheet."""
    require(sheet.exists(), f"{sheet}: no such sample sheet")
    text = io.StringIO(read_text(sheet, "save the sheet as UTF-8 text"), newline=None)
    reader = csv.DictReader(text, delimiter="\t", strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        columns = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        line = reader.line_num + 1
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:  # a quotation mark without its other one would swallow the lines that follow
        where = f"{sheet}: line {reader.line_num + 1}"
        raise UserError(f"{where}: no row of a sample sheet ({error}); are there quotation marks in it?") from error
    for number, column in enumerate(columns):
        require(column not in columns[:number], f"{sheet}: two columns are named {column!r}; rename one")
        meant = get_close_matches(column.lower(), _SHEET_COLUMNS, 1, 0.85)
        if meant and column not in _SHEET_COLUMNS:
            raise UserError(f"{sheet}: column {column!r}; did you mean {meant[0]}? (else give it another name)")
    require(bool(rows) and "path" in columns, f"{sheet}: a sample sheet is a TSV with a header line and a column path")
    if options.split_by and options.split_by not in columns:
        raise UserError(f"{sheet}: no column {options.split_by!r} for --split_by; it has {', '.join(columns)}")
    for line, row in rows:
        if None in row or None in row.values():
            raise UserError(f"{sheet}: line {line}: not as many columns as the header line")
    return [(line, {key: value.strip() for key, value in row.items()}) for line, row in rows]


def _with_unique_names(sources: list[SourceFile]) -> list[SourceFile]:
    """A second genome of one name becomes NAME.2, or the next number that no other genome is called."""
    given, taken = {source.name for source in sources}, set[str]()
    named = []
    for source in sources:
        name, count = source.name, 1
        while name in taken or (count > 1 and name in given):
            count += 1
            name = f"{source.name}.{count}"
        taken.add(name)
        named.append(replace(source, name=name))
    return named
