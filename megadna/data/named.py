"""What the user named (contigs by pattern, BED files) against what the sources contain: each must fit something.

In:  the options, the sources, their parts: a contig may be in any file, so this comes after all have been read once.
Out: UserError for a pattern, contig or interval that fits no record; notes; which intervals of a BED file apply to
     which source (SideFiles.kept).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from megadna.data.inputs import SourceFile
from megadna.data.manifest import SPLITS, sha256_of
from megadna.data.options import PreprocessOptions
from megadna.data.parts import Part, left_out
from megadna.errors import UserError
from megadna.genome.bed import KeptIntervals, Regions, bases_before, read_regions
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
        """The merged intervals by the contig names of a source."""
        return self.regions.on(self.names.get(source, {}))

    @property
    def title(self) -> str:
        """How messages call it."""
        return f"{self.option} {self.regions.path}"


@dataclass
class SideFiles:
    """The files other than the sources that decide which bases are taken."""

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
    """The names in the options against the records of all sources, once these have been read."""

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
            self._check_pattern("--contigs", options.contigs, None)
        if options.named_contigs:
            drawn = [number for number, source in enumerate(self.sources) if source.split is None]
            self._check_pattern("--valid_contigs", options.valid_contigs, drawn)
            self._check_pattern("--test_contigs", options.test_contigs, drawn)
            for _, name, _ in self._records(drawn) if options.valid_contigs and options.test_contigs else ():
                if fits(options.valid_contigs, name) and fits(options.test_contigs, name):
                    raise UserError(f"contig {name} fits both --valid_contigs and --test_contigs; name it once")

    def _check_pattern(self, option: str, pattern: str, numbers: list[int] | None) -> None:
        unseen = alternatives(pattern)
        for _, name, _ in self._records(numbers):
            if not unseen or name == pattern:
                return
            unseen = [one for one in unseen if not fits(one, name)]
        for one in unseen:
            raise UserError(f"{option} {pattern}: {one} fits no contig{nearest(one, self._some_names, fits)}")

    def splits(self) -> None:
        """UserError where sources or contigs were named for a split, and no chunk of them is left."""
        options = self.options
        for split, contigs in ((1, options.valid_contigs), (2, options.test_contigs)):
            named = [contigs] if contigs else [source.name for source in self.sources if source.split == split]
            if named and not sum(part.totals.chunks[split] for part in self.parts):
                raise UserError(f"{SPLITS[split]}: no chunk is left of {', '.join(named[:5])}; {left_out(self.parts)}")

    def reports(self) -> list[str]:
        """A note for each assembly report next to a source that names none of its records."""
        notes = []
        for number, source in enumerate(self.sources):
            if report := _report(self.options, source):
                known = read_aliases(report)
                if not any(name in known for _, name, _ in self._records([number])):
                    notes.append(
                        f"{report}: names no record of {source.name}, whose contigs were chosen by their names"
                    )
        return notes

    def beds(self, side: SideFiles) -> tuple[list[str], bool]:
        """Notes about the BED files, and whether a name had to be matched, so that the chunks must be cut again.

        UserError where a contig of a BED file is in no source, or an interval ends after its contig in all of them.
        """
        notes, again = [], False
        bases = sum(length for _, _, length in self._records()) if side.beds else 0
        for bed in side.beds:
            self._match_names(bed)
            again = again or any(bed.names.values())
            notes += [
                f"{bed.title}: contig names matched in {self.sources[number].name}: {renamed(names)}"
                for number, names in bed.names.items()
                if names
            ]
            covered = self._covered(bed)
            notes.append(
                f"{bed.title}: covers {covered:,} of {bases:,} bases ({covered / bases:.2%}), "
                + ("all others are left out" if bed.option == "--include_bed" else "which are left out")
            )
        if again and any(source.kind == "stdin" for source in self.sources):
            raise UserError(f"standard input is read once, so contig names must be equal, not {notes[0]}")
        return notes, again

    def _match_names(self, bed: Bed) -> None:
        """Fill in `bed.names` and check every contig and interval."""
        regions = bed.regions
        lengths: dict[str, int] = {}
        for _, name, length in self._records():
            if name in regions.merged:
                lengths[name] = max(length, lengths.get(name, 0))
        unknown = [name for name in regions.merged if name not in lengths]
        for number, source in enumerate(self.sources if unknown else []):
            ours = {name: length for _, name, length in self._records([number])}
            report = _report(self.options, source)
            theirs = [*unknown, *(name for name in regions.merged if name in ours)]
            found = match_contigs(theirs, ours, read_aliases(report) if report else None)
            bed.names[number] = {name: found[name] for name in unknown if name in found}
            for name, contig in bed.names[number].items():
                lengths[name] = max(ours[contig], lengths.get(name, 0))
        for name, line in regions.first_lines.items():
            if name not in lengths:
                hint = nearest(name, self._some_names)
                raise UserError(f"{regions.path}: line {line}: no contig {name} in the input{hint}")
            regions.check_ends(name, lengths[name])

    def _covered(self, bed: Bed) -> int:
        """Bases of all sources that the intervals cover."""
        covered, on = 0, [bed.on(number) for number in range(len(self.sources))]
        for number, name, length in self._records():
            if intervals := on[number].get(name):
                starts, ends = np.array(intervals).T
                covered += int(bases_before(starts, ends, np.array(length)))
        return covered
