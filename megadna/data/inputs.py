"""What the user named -> the list of source files: folders, globs, sample sheets, and splits of whole sources."""

import csv
import fnmatch
import glob
import io
import re
import zlib
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from megadna.data.manifest import SPLITS
from megadna.data.options import PreprocessOptions
from megadna.data.order import mix, unit
from megadna.data.splits import TEST, TRAIN, VALID, SplitRule, by_share
from megadna.errors import UserError, require, require_one_line
from megadna.genome.contigs import nearest
from megadna.genome.sources import STDIN, SequenceFile, detect_format
from megadna.genome.tables import TableFormat
from megadna.reading import read_text

SEQUENCE_FILE = re.compile(r"\.(fa|fna|fasta|fas|ffn|frn|seq)(\.(gz|bgz|bgzf|zst|zstd))?$|\.2bit$", re.I)
_ENDINGS = re.compile(r"(\.(fa|fna|fasta|fas|ffn|frn|seq|txt|csv|tsv|parquet|2bit))?(\.(gz|bgz|bgzf|zst|zstd))?$", re.I)
_SHEET_COLUMNS = ("path", "genome", "species", "split", "circular")
_CIRCULAR = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_SPLIT_NAMES = {"train": TRAIN, "valid": VALID, "validation": VALID, "test": TEST}
NT_HELD_OUT = 50


@dataclass(frozen=True)
class SourceFile(SequenceFile):
    """One input file of a dataset, and what the sample sheet says about it."""

    species: str = ""
    taxa: dict[str, str] = field(default_factory=dict)
    split: int | None = None
    """Split of the whole source, where the sample sheet or an option says so."""
    modified: int = 0
    """Time of the file's last change, in ns since 1970."""

    @property
    def split_name(self) -> str:
        """train, valid or test; "" where the chunks are drawn one by one."""
        return "" if self.split is None else SPLITS[self.split]

    def column(self, name: str) -> str:
        """Value of a sample-sheet column; the genome's name for no column."""
        return self.species if name == "species" else self.taxa.get(name, self.name)


def table_format(options: PreprocessOptions) -> TableFormat:
    """The table options."""
    return TableFormat(options.column, options.lines, options.spaced_kmers)


def find_sources(options: PreprocessOptions) -> tuple[list[SourceFile], list[str]]:
    """Sources in the order of their chunks, and notes for the manifest; UserError where a name fits nothing."""
    table = table_format(options)
    if options.sample_sheet is None:
        sources = [_source(path, table) for path in _expand(options.input, table)]
    else:
        sources = _read_sheet(options.sample_sheet, table, options)
    for source in sources:  # contigs.tsv has the name in a column, without quotes
        require_one_line(f"{options.sample_sheet or source.path.parent}", source.name)
    sources = _with_unique_names(sources)
    _check_related(sources, options)
    return _assign_wholes(sources, options)


def _source(path: Path, table: TableFormat) -> SourceFile:
    kind = detect_format(path, table)
    if path == STDIN:
        return SourceFile(path, "stdin", kind, 0)
    status = path.stat()
    name = _ENDINGS.sub("", path.name) or path.name
    return SourceFile(path, name, kind, status.st_size, modified=status.st_mtime_ns)


def _expand(inputs: list[Path], table: TableFormat) -> list[Path]:
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
            found += _expand(matches, table)
        else:
            found.append(path)
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice; name every file once")
        seen.add(path.resolve())
    return found


def _read_sheet(sheet: Path, table: TableFormat, options: PreprocessOptions) -> list[SourceFile]:
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
            source = _source(path if path.is_absolute() else sheet.parent / path, table)
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
                split=_SPLIT_NAMES[split] if split else _nt_split(number, len(rows), options),
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
    for place, column in enumerate(columns):
        require(column not in columns[:place], f"{sheet}: two columns are named {column!r}; rename one")
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


def _nt_split(row: int, rows: int, options: PreprocessOptions) -> int | None:
    """The Nucleotide Transformer rule: of the ordered list the last 50 test, the 50 before them validation."""
    if options.split != "nucleotide_transformer":
        return None
    if rows <= 2 * NT_HELD_OUT:
        raise UserError(f"--split nucleotide_transformer needs a sheet of more than {2 * NT_HELD_OUT} rows, not {rows}")
    if row >= rows - NT_HELD_OUT:
        return TEST
    return VALID if row >= rows - 2 * NT_HELD_OUT else TRAIN


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


def _check_related(sources: list[SourceFile], options: PreprocessOptions) -> None:
    if options.split != "region" or options.allow_related:
        return
    seen: dict[str, str] = {}
    for source in sources:
        species = source.species.lower()
        if species and source.split is None:
            if species in seen:
                raise UserError(
                    f"{seen[species]} and {source.name} are both {source.species}: a region split would leak; "
                    "use --split genome, contig or column, or say --allow_related"
                )
            seen[species] = source.name


def _assign_wholes(sources: list[SourceFile], options: PreprocessOptions) -> tuple[list[SourceFile], list[str]]:
    """Splits of whole sources for the modes genome and column; those of the sample sheet stay."""
    if options.split == "genome" and (options.valid or options.test):
        return _by_globs(sources, options), []
    if options.split not in ("genome", "column"):
        return sources, []
    open_ones = [source for source in sources if source.split is None]
    groups = {source.name: source.column(options.split_by) for source in open_ones}
    chosen, notes = _draw_groups(sorted(set(groups.values())), options)
    return [s if s.split is not None else replace(s, split=chosen[groups[s.name]]) for s in sources], notes


def _by_globs(sources: list[SourceFile], options: PreprocessOptions) -> list[SourceFile]:
    """Sources with the splits that --valid and --test name; UserError for a glob that fits none, and where a genome is
    to be in two splits."""
    splits: dict[str, int] = {source.name: source.split for source in sources if source.split is not None}
    for key, split in (("valid", VALID), ("test", TEST)):
        for pattern in getattr(options, key):
            named = [source for source in sources if _fits(pattern, source)]
            if not named:
                hint = nearest(pattern, (source.name for source in sources))
                raise UserError(f"--{key} {pattern}: fits no genome{hint}")
            for source in named:
                if splits.setdefault(source.name, split) != split:
                    other = SPLITS[splits[source.name]]
                    raise UserError(f"--{key} {pattern}: {source.name} is in {other} already; name it once")
    return [replace(source, split=splits.get(source.name, TRAIN)) for source in sources]


def _fits(pattern: str, source: SourceFile) -> bool:
    names = source.name, source.path.name
    return pattern in names or any(fnmatch.fnmatch(name, pattern) for name in names)


def _draw_groups(groups: list[str], options: PreprocessOptions) -> tuple[dict[str, int], list[str]]:
    """Split of each group by a hash of (seed, group); an empty split gets the train group with the lowest hash."""
    hashes = {group: int(mix(options.seed, zlib.crc32(group.encode()), 0x67726F7570)) for group in groups}
    draws = {group: unit(mix(options.seed, zlib.crc32(group.encode()))) for group in groups}
    chosen = {
        group: int(by_share(draw, options.valid_fraction, options.test_fraction)) for group, draw in draws.items()
    }
    notes = []
    for split, name, share in ((VALID, "valid", options.valid_fraction), (TEST, "test", options.test_fraction)):
        train = [group for group in groups if chosen[group] == TRAIN]
        if share and split not in chosen.values() and len(train) > 1:
            lowest = min(train, key=lambda group: hashes[group])
            chosen[lowest] = split
            notes.append(f"{name} would have been empty: it got {lowest}, the {options.split} with the lowest hash")
    return chosen, notes


def split_rule(source: SourceFile, options: PreprocessOptions, forced: tuple[tuple[int, int, int], ...]) -> SplitRule:
    """The rule for the chunks of one source."""
    shares = {"seed": options.seed, "valid": options.valid_fraction, "test": options.test_fraction}
    if source.split is not None:
        return SplitRule("whole", whole=source.split)
    if options.split == "contig" and options.named_contigs:
        return SplitRule("names", valid_names=options.valid_contigs, test_names=options.test_contigs)
    return SplitRule(options.split, forced=forced, **shares)  # type: ignore[arg-type]
