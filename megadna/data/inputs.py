"""What the user named -> the list of source files: folders, globs, sample sheets, and splits of whole sources."""

import csv
import fnmatch
import glob
import io
import re
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from megadna.data.options import PreprocessOptions
from megadna.data.splits import TEST, TRAIN, VALID, SplitRule, by_share, mix, unit
from megadna.errors import UserError
from megadna.genome.sources import STDIN, detect_format
from megadna.genome.tables import TableFormat
from megadna.reading import read_text

SEQUENCE_FILE = re.compile(r"\.(fa|fna|fasta|fas|ffn|frn|seq)(\.(gz|bgz|bgzf|zst|zstd))?$|\.2bit$", re.I)
_ENDINGS = re.compile(r"(\.(fa|fna|fasta|fas|ffn|frn|seq|txt|csv|tsv|parquet|2bit))?(\.(gz|bgz|bgzf|zst|zstd))?$", re.I)
_SHEET_COLUMNS = ("path", "genome", "species", "split", "circular")
_SPLIT_NAMES = {"train": TRAIN, "valid": VALID, "validation": VALID, "test": TEST}
NT_HELD_OUT = 50


@dataclass(frozen=True)
class SourceFile:
    """One input file."""

    path: Path
    name: str
    kind: str
    """Format: plain, gzip, bgzf, zstd, 2bit, table or stdin."""
    size: int
    species: str = ""
    taxa: dict[str, str] = field(default_factory=dict)
    split: int | None = None
    """Split of the whole source, where the sample sheet or an option says so."""
    row: int = 0
    """Line among the sample sheet's rows."""

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
    sources = _with_unique_names(sources)
    _check_related(sources, options)
    return _assign_wholes(sources, options)


def _source(path: Path, table: TableFormat) -> SourceFile:
    kind = detect_format(path, table)
    if path == STDIN:
        return SourceFile(path, "stdin", kind, 0)
    return SourceFile(path, _ENDINGS.sub("", path.name) or path.name, kind, path.stat().st_size)


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
    seen: dict[Path, Path] = {}
    for path in found:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice; name every file once")
        seen[path.resolve()] = path
    return found


def _read_sheet(sheet: Path, table: TableFormat, options: PreprocessOptions) -> list[SourceFile]:
    """Rows of a sample sheet, sorted by genome and path so that the order of its lines does not matter."""
    if not sheet.exists():
        raise UserError(f"{sheet}: no such sample sheet")
    lines = csv.DictReader(io.StringIO(read_text(sheet, "save the sheet as UTF-8 text")), delimiter="\t")
    try:
        rows = list(lines)
    except csv.Error as error:
        raise UserError(f"{sheet}: line {lines.line_num + 1}: no row of a sample sheet ({error})") from error
    if not rows or "path" not in rows[0]:
        raise UserError(f"{sheet}: a sample sheet is a TSV with a header line and a column path")
    if options.split_by and options.split_by not in rows[0]:
        raise UserError(f"{sheet}: no column {options.split_by!r} for --split_by; it has {', '.join(rows[0])}")
    sources = []
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise UserError(f"{sheet}: line {number + 2}: not as many columns as the header line")
        if not row["path"].strip():
            continue  # removed from the list, yet counted by the Nucleotide Transformer rule
        path = Path(row["path"].strip())
        source = _source(path if path.is_absolute() else sheet.parent / path, table)
        split = row.get("split", "").strip().lower()
        if split and split not in _SPLIT_NAMES:
            raise UserError(f"{sheet}: line {number + 2}: split {split!r} is none of train, valid, test")
        circular = row.get("circular", "").strip().lower() in ("1", "yes", "true")
        sources.append(
            replace(
                source,
                name=row.get("genome", "").strip() or source.name,
                species=row.get("species", "").strip(),
                taxa={key: value for key, value in row.items() if key not in _SHEET_COLUMNS}
                | ({"circular": "yes"} if circular else {}),
                split=_SPLIT_NAMES[split] if split else _nt_split(number, len(rows), options),
                row=number,
            )
        )
    if not sources:
        raise UserError(f"{sheet}: no row names a path")
    return sorted(sources, key=lambda source: (source.name, str(source.path)))


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
    taken: dict[str, int] = {}
    named = []
    for source in sources:
        taken[source.name] = taken.get(source.name, 0) + 1
        count = taken[source.name]
        named.append(source if count == 1 else replace(source, name=f"{source.name}.{count}"))
    return named


def _check_related(sources: list[SourceFile], options: PreprocessOptions) -> None:
    if options.split != "region" or options.allow_related:
        return
    seen: dict[str, str] = {}
    for source in sources:
        if source.species and source.split is None:
            if source.species in seen:
                raise UserError(
                    f"{seen[source.species]} and {source.name} are both {source.species}: a region split would leak; "
                    "use --split genome, contig or column, or say --allow_related"
                )
            seen[source.species] = source.name


def _assign_wholes(sources: list[SourceFile], options: PreprocessOptions) -> tuple[list[SourceFile], list[str]]:
    """Splits of whole sources for the modes genome and column."""
    if options.split == "genome" and (options.valid or options.test):
        for key in ("valid", "test"):
            for pattern in getattr(options, key):
                if not any(_fits(source, pattern) for source in sources):
                    raise UserError(
                        f"--{key} {pattern}: fits no genome; there are {', '.join(s.name for s in sources)}"
                    )
        return [replace(source, split=_by_globs(source, options)) for source in sources], []
    if options.split not in ("genome", "column"):
        return sources, []
    open_ones = [source for source in sources if source.split is None]
    groups = {source.name: source.column(options.split_by) for source in open_ones}
    chosen, notes = _draw_groups(sorted(set(groups.values())), options)
    return [s if s.split is not None else replace(s, split=chosen[groups[s.name]]) for s in sources], notes


def _fits(source: SourceFile, pattern: str) -> bool:
    return fnmatch.fnmatch(source.name, pattern) or fnmatch.fnmatch(source.path.name, pattern)


def _by_globs(source: SourceFile, options: PreprocessOptions) -> int:
    if any(_fits(source, pattern) for pattern in options.valid):
        return VALID
    return TEST if any(_fits(source, pattern) for pattern in options.test) else TRAIN


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
