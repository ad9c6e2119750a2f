"""What the user named (contigs by pattern, BED files) beside what the sources hold: nothing may fit nothing.

The names and lengths of the records are known when all sources have been read, so this comes after the first pass: in
any of several files may a contig lie. UserError for a pattern, a contig or an interval that fits no record.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from megadna.data.inputs import SourceFile
from megadna.data.manifest import SPLITS, sha256_of
from megadna.data.options import PreprocessOptions
from megadna.data.parts import Part, left_out
from megadna.errors import UserError
from megadna.genome.bed import KeptIntervals, Regions, read_regions
from megadna.genome.contigs import alternatives, assembly_report_of, fits, match_contigs, nearest, read_aliases, renamed

_HINTS = 10_000  # record names that a message may choose from


@dataclass
class Bed:
    """One BED file of the options."""

    option: str
    regions: Regions
    names: dict[int, dict[str, str]] = field(default_factory=dict)
    """By source: the contig for each name of the file that is not equal to it."""

    def on(self, source: int) -> dict[str, list[tuple[int, int]]]:
        """The merged intervals by the names of a source."""
        return self.regions.on(self.names.get(source, {}))

    @property
    def title(self) -> str:
        """How a message names it."""
        return f"{self.option} {self.regions.path}"


@dataclass
class SideFiles:
    """The files beside the sources that decide what is taken of them."""

    include: Bed | None
    exclude: Bed | None
    sha256: dict[str, str]
    """Of every one of them, by absolute path."""

    @classmethod
    def read(cls, options: PreprocessOptions, sources: list[SourceFile]) -> "SideFiles":
        """UserError where a BED file cannot be read."""
        include, exclude = (
            Bed(option, read_regions(path)) if path else None
            for option, path in (("--include_bed", options.include_bed), ("--exclude_bed", options.exclude_bed))
        )
        beds = [bed.regions.path for bed in (include, exclude) if bed]
        reports = {report for source in sources if (report := _report(options, source))}
        return cls(include, exclude, {str(path.absolute()): sha256_of(path) for path in sorted({*beds, *reports})})

    @property
    def beds(self) -> list[Bed]:
        """The BED files given."""
        return [bed for bed in (self.include, self.exclude) if bed]

    def kept(self, source: int) -> KeptIntervals:
        """What the BED files keep of a source's records."""
        include = self.include.on(source) if self.include else None
        return KeptIntervals(include, self.exclude.on(source) if self.exclude else {})


def _report(options: PreprocessOptions, source: SourceFile) -> Path | None:
    return assembly_report_of(source.path) if options.contigs == "primary" else None


@dataclass(frozen=True)
class NameCheck:
    """The names of the options beside the records of all sources, once these have been read."""

    options: PreprocessOptions
    sources: list[SourceFile]
    parts: list[Part]

    def _records(self, numbers: list[int] | None = None) -> Iterator[tuple[int, str, int]]:
        """(source, name, length) of every record of the sources of these numbers (default: all)."""
        for number in range(len(self.parts)) if numbers is None else numbers:
            for name, length in self.parts[number].records():
                yield number, name, length

    @cached_property
    def _some_names(self) -> list[str]:
        return [name for _, name, _ in islice(self._records(), _HINTS)]

    def patterns(self) -> None:
        """UserError where a contig pattern, or one of its alternatives, fits no record, or two of them fit one."""
        options = self.options
        if options.contigs not in ("primary", "all"):
            self._check("--contigs", options.contigs, None)
        if options.named_contigs:
            drawn = [number for number, source in enumerate(self.sources) if source.split is None]
            named = {"--valid_contigs": options.valid_contigs, "--test_contigs": options.test_contigs}
            for option, pattern in named.items():
                self._check(option, pattern, drawn)
            if all(named.values()):
                for _, name, _ in self._records(drawn):
                    if all(fits(pattern, name) for pattern in named.values()):
                        raise UserError(f"contig {name} fits both --valid_contigs and --test_contigs; name it once")

    def _check(self, option: str, pattern: str, numbers: list[int] | None) -> None:
        unseen = set(alternatives(pattern))
        for _, name, _ in self._records(numbers):
            if not unseen or name == pattern:
                return
            unseen = {one for one in unseen if not fits(one, name)}
        for one in alternatives(pattern):
            if one in unseen:
                hint = nearest(one, self._some_names, fits)
                raise UserError(f"{option} {pattern}: {one} fits no contig{hint}")

    def splits(self) -> None:
        """UserError where sources or contigs were named for a split, and no chunk of them is left."""
        options = self.options
        for split, contigs in ((1, options.valid_contigs), (2, options.test_contigs)):
            named = [contigs] if contigs else [source.name for source in self.sources if source.split == split]
            if named and not sum(part.totals.chunks[split] for part in self.parts):
                raise UserError(f"{SPLITS[split]}: no chunk is left of {', '.join(named[:5])}; {left_out(self.parts)}")

    def reports(self) -> list[str]:
        """A note for each assembly report beside a source that names none of its records."""
        notes = []
        for number, source in enumerate(self.sources):
            report = _report(self.options, source)
            if report:
                known = read_aliases(report)
                if not any(name in known for _, name, _ in self._records([number])):
                    notes.append(
                        f"{report}: names no record of {source.name}, whose contigs were chosen by their names"
                    )
        return notes

    def beds(self, side: SideFiles) -> tuple[list[str], bool]:
        """What to note about the BED files, and whether a name had to be matched, so that all is to be cut again.

        UserError where a contig of a BED file is in no source, or an interval ends after its contig in all of them.
        """
        notes, again = [], False
        bases = sum(length for _, _, length in self._records()) if side.beds else 0
        for bed in side.beds:
            covered = self._place(bed)
            again = again or any(bed.names.values())
            notes += [
                f"{bed.title}: contig names matched in {self.sources[number].name}: {renamed(names)}"
                for number, names in bed.names.items()
                if names
            ]
            notes.append(
                f"{bed.title}: covers {covered:,} of {bases:,} bases ({covered / bases:.2%}), "
                + ("all others are left out" if bed.option == "--include_bed" else "which are left out")
            )
        if again and any(source.kind == "stdin" for source in self.sources):
            raise UserError(f"standard input is read once, so contig names must be equal, not {notes[0]}")
        return notes, again

    def _place(self, bed: Bed) -> int:
        """Fill in `bed.names`; the bases that its intervals cover."""
        regions = bed.regions
        lengths: dict[str, int] = {}
        for _, name, length in self._records():
            if name in regions.merged:
                lengths[name] = max(length, lengths.get(name, 0))
        unknown = [name for name in regions.merged if name not in lengths]
        if unknown:
            self._match(bed, unknown, lengths)
        for name, line in regions.first_lines.items():
            if name not in lengths:
                hint = nearest(name, self._some_names)
                raise UserError(f"{regions.path}: line {line}: no contig {name} in the input{hint}")
            regions.check_ends(name, lengths[name])
        by_source = {number: {ours: theirs for theirs, ours in names.items()} for number, names in bed.names.items()}
        covered = 0
        for number, name, length in self._records():
            intervals = regions.merged.get(by_source.get(number, {}).get(name, name), [])
            covered += sum(min(end, length) - min(start, length) for start, end in intervals)
        return covered

    def _match(self, bed: Bed, unknown: list[str], lengths: dict[str, int]) -> None:
        """Match the names that are equal to none, source by source."""
        for number, source in enumerate(self.sources):
            ours = {name: length for _, name, length in self._records([number])}
            report = _report(self.options, source)
            theirs = [*unknown, *(name for name in lengths if name in ours)]
            found = match_contigs(theirs, ours, read_aliases(report) if report else None)
            bed.names[number] = {name: found[name] for name in unknown if name in found}
            for name, contig in bed.names[number].items():
                lengths[name] = max(ours[contig], lengths.get(name, 0))
