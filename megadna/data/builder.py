"""FASTA files -> dataset folder.

Everything is written into a hidden folder next to the output (megadna/files.py), which is renamed to the output when
all of it is on disk. Sources are written one after the other, piece by piece, into one .bin file per split; with
several workers, pieces are read ahead. So the bytes do not depend on the number of workers, and every base is written
once.

A second pass over the sources follows where a split would be empty, a BED file has other contig names, or leaking
chunks are dropped: each is known only after the first.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from megadna.data.chunker import Chunker, Policy
from megadna.data.inputs import SourceFile, find_sources
from megadna.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    Bins,
    Manifest,
    SourceHasher,
    checksum_files,
    dump_manifest,
    load_manifest,
)
from megadna.data.named import NameCheck, SideFiles
from megadna.data.options import PreprocessOptions, is_recorded, recorded_options
from megadna.data.parts import Part, assemble, chunks_of, left_out, make_manifest, sizes_of, warnings_of
from megadna.data.splits import (
    Forced,
    assign_sources,
    fill_splits,
    may_be_empty,
    missing_splits,
    split_rule,
)
from megadna.errors import UserError, require
from megadna.files import Claim, claimed, write_json
from megadna.genome.contigs import contig_filter
from megadna.genome.pieces import Found, read_pieces
from megadna.log import get_logger
from megadna.ownership import Kind, check_folder, refuse_replacing
from megadna.progress import Progress

log = get_logger(__name__)

_BASES_PER_BYTE = {"gzip": 3.8, "zstd": 4.2, "2bit": 4.0}  # a guess, for the progress bar


def build_dataset(options: PreprocessOptions) -> tuple[Manifest, bool]:
    """Write the dataset folder; (manifest, whether it had to be built). UserError for every mistake of the user."""
    output = options.output
    sources, notes = assign_sources(find_sources(options), options)
    side = SideFiles.read(options, sources)
    require(output.is_dir() or not output.exists(), f"{output}: is a file; --output names a folder")
    kind = DATASET if options.overwrite else None
    remedy = ", or say --overwrite: it is not this dataset (options and input files)"
    if kind is None:
        finished = _same_dataset(options, sources, side)
        if finished is not None:
            return finished, False
    else:
        inputs = (options.sample_sheet, options.include_bed, options.exclude_bed)
        refuse_replacing(output, [*(source.path for source in sources), *inputs])
    check_folder(output, kind, remedy)
    with claimed(output) as claim:
        finished = _same_dataset(options, sources, side) if kind is None else None
        if finished is not None:  # made by another process meanwhile, or put back
            return finished, False
        check_folder(output, kind, remedy)
        with _kept_for_resume(claim):
            _prepare(claim, options)
            manifest = Build(options, sources, side, notes, claim.new).run()
            (claim.new / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
            (claim.new / "options.json").unlink()  # first: without it --resume reuses nothing of what follows
            shutil.rmtree(claim.new / "parts")
            claim.publish(kind)
    return manifest, True


def _dataset_files(folder: Path) -> str | None:
    """What a dataset folder may contain (Kind)."""
    try:
        names = [MANIFEST_NAME, *load_manifest(folder).files]
    except UserError:
        return None
    return "|".join([*map(re.escape, names), r"(valid|test)\.containment\.npy", r"baselines\.json"])


DATASET = Kind(name="dataset", files=_dataset_files)


def _same_dataset(options: PreprocessOptions, sources: list[SourceFile], side: SideFiles) -> Manifest | None:
    """The manifest of the output folder if it is finished and a new build would write the same; else None."""
    if DATASET.files(options.output) is None:
        return None
    manifest = load_manifest(options.output)
    if not is_recorded(options, manifest.options) or dict(manifest.side_files) != side.sha256:
        return None
    old = [(s.path, s.name, s.size, s.species, dict(s.taxa), s.split) for s in manifest.sources]
    new = [(str(s.path.absolute()), s.name, s.size, s.species, s.taxa, s.split_name) for s in sources]
    if old != new or any(source.kind == "stdin" for source in sources):
        return None
    hasher = SourceHasher()
    for source in sources:
        hasher.start(source.path)
    with Progress(f"comparing the sources with those of {options.output}"):
        same = all(old.sha256 == hasher.result(new.path) for old, new in zip(manifest.sources, sources, strict=True))
    return manifest if same else None


@contextmanager
def _kept_for_resume(claim: Claim) -> Iterator[None]:
    """Keep the work folder after a failure if a finished source in it is worth a --resume."""
    try:
        yield
    except BaseException as error:
        claim.is_kept = any(claim.new.glob("parts/*.json"))
        if claim.is_kept:
            log.warning("the finished sources are kept in %s; continue with --resume", claim.folder)
        if isinstance(error, OSError):
            where = error.filename or claim.output
            raise UserError(f"{where}: {error.strerror}; free disk space, or check that path") from error
        raise


def _prepare(claim: Claim, options: PreprocessOptions) -> None:
    """Start afresh, or with --resume check that the interrupted build had the same options."""
    record = claim.new / "options.json"
    wanted = recorded_options(options)
    if options.resume and record.is_file():
        if json.loads(record.read_text()) != json.loads(json.dumps(wanted)):
            raise UserError(f"{claim.folder}: was built with other options; leave out --resume to start afresh")
        return
    (claim.fresh() / "parts").mkdir()
    write_json(record, wanted)


class Build:
    """One build in its work folder."""

    def __init__(
        self, options: PreprocessOptions, sources: list[SourceFile], side: SideFiles, notes: list[str], work: Path
    ) -> None:
        self.options, self.sources, self.side, self.notes, self.work = options, sources, side, list(notes), work
        self._hasher = SourceHasher()
        self._left_out: dict[int, frozenset[tuple[int, int]]] = {}
        self._leakage: dict[str, Any] = {}

    def run(self) -> Manifest:
        """Write all sources, fill empty splits, measure leakage, and write the final files; returns the manifest."""
        options, forced = self.options, Forced()
        parts = self._check_names(self._write(forced))
        missing = missing_splits(options, chunks_of(parts))
        if missing:
            forced, notes = fill_splits(missing, [part.totals.lowest for part in parts], self.sources, options)
            self.notes += notes
            parts = self._write(forced, again=True)
            if missing_splits(options, chunks_of(parts)):
                raise self._too_small("too few chunks to fill train, valid and test", parts)
        if not chunks_of(parts)[0]:
            raise self._too_small("no chunk is left for train", parts)
        repeated = assemble(self.work, parts, [source.name for source in self.sources])
        parts = self._check_leakage(parts, forced)
        warnings = warnings_of(parts, self.sources, options, repeated)
        with Progress("checksums"):
            files = checksum_files(self.work, self._bins)
            sha256 = [self._hasher.result(source.path) for source in self.sources]
        more: Any = {"side_files": self.side.sha256, "notes": self.notes + warnings, "leakage": self._leakage}
        return make_manifest(options, self.sources, parts, sha256, files, **more)

    def _check_names(self, parts: list[Part]) -> list[Part]:
        """UserError where a name or an interval of the user fits no record; the parts, cut again where a BED file has
        other contig names."""
        check = NameCheck(self.options, self.sources, parts)
        try:
            check.patterns()
            notes, again = check.beds(self.side)
            self.notes += check.reports() + notes
            parts = self._write({}, again=True) if again else parts
            NameCheck(self.options, self.sources, parts).splits()
        except UserError:
            self._forget()
            raise
        return parts

    def _forget(self) -> None:
        """Mark every source as unfinished, so that nothing is kept for --resume."""
        for mark in (self.work / "parts").glob("*.json"):
            mark.unlink()

    def _too_small(self, problem: str, parts: list[Part]) -> UserError:
        what = self.sources[0].path if len(self.sources) == 1 else f"{len(self.sources)} sources"
        remedy = "lower --chunk_length, or set --valid_fraction 0 or --test_fraction 0"
        return UserError(f"{what}: {problem} ({left_out(parts)}); {remedy}")

    def _policy(self, number: int, forced: Forced) -> Policy:
        options, source = self.options, self.sources[number]
        return Policy(
            chunk_length=options.chunk_length,
            min_tail=options.min_tail,
            block_chunks=options.block_chunks,
            rule=split_rule(source, options, forced.get(number, ())),
            select=contig_filter(options.contigs, source.path),
            keep=self.side.kept(number),
            rank_blocks=may_be_empty(options, self.sources),
            left_out=self._left_out.get(number, frozenset()),
        )

    def _write(self, forced: Forced, *, again: bool = False) -> list[Part]:
        """Write every source into the .bin files; those that an interrupted run has finished are kept."""
        options = self.options
        self._resumable = not again  # the chunks of a second pass are no use to --resume
        if again and any(source.kind == "stdin" for source in self.sources):
            raise UserError(
                "standard input: a small split or --leakage drop_* needs a second pass; save it to a file first, "
                "or raise --valid_fraction and --test_fraction"
            )
        if again:
            self._forget()
        policies = [self._policy(number, forced) for number in range(len(self.sources))]
        parts = [Part(self.work, number) for number in range(len(self.sources))]
        self._fingerprints = [_fingerprint(source, self.side) for source in self.sources]
        finished = 0 if again else self._resume(parts)
        for source in self.sources:
            self._hasher.start(source.path)
        bins = Bins(self.work, sizes_of(parts[:finished]))
        scan: Any = {"fold": options.soft_mask == "fold", "headroom": options.chunk_length}
        found = read_pieces(self.sources, finished, options.workers, **scan)
        with _reading(self.sources[finished:]) as progress, closing(found) as pieces:
            self._write_pieces(pieces, policies, parts, bins, progress)
        self._bins = bins.close()
        return parts

    def _write_pieces(
        self, pieces: Iterator[Found], policies: list[Policy], parts: list[Part], bins: Bins, progress: Progress
    ) -> None:
        chunker: Chunker | None = None
        for found in pieces:
            part = parts[found.source]
            if chunker is None:
                chunker = Chunker(policies[found.source], part.totals)
                part.open()
            plan = chunker.plan(found.piece, found.buffer, self.options.chunk_length, final=found.last)
            bins.write(plan.runs, found.buffer)
            part.add(plan)
            progress.note = self.sources[found.source].name
            progress.advance(found.piece.size)
            if found.last:
                self._finish_source(found.source, part)
                chunker = None

    def _finish_source(self, number: int, part: Part) -> None:
        """Mark a source as finished for --resume (a single source leaves nothing to resume)."""
        part.close()
        source, fingerprint = self.sources[number], self._fingerprints[number]
        if _stamp(source)[:2] != fingerprint["stamp"][:2]:
            raise UserError(f"{source.path}: was changed while it was read; run the same command again")
        if part.totals.records == 0:
            raise UserError(f"{source.path}: the FASTA file is empty (no header line that begins with '>')")
        if len(self.sources) > 1 and self._resumable:
            part.mark_finished(fingerprint)

    def _resume(self, parts: list[Part]) -> int:
        """Number of sources, from the first on, that an interrupted run has finished."""
        for number, part in enumerate(parts):
            if not part.load(self._fingerprints[number]) or not self._on_disk(parts[: number + 1]):
                parts[number] = Part(self.work, number)
                break
        else:
            number = len(parts)
        for later in range(number, len(parts)):
            parts[later].file("json").unlink(missing_ok=True)
        if number:
            log.info("%d of %d sources are already finished; continuing after them", number, len(parts))
        return number

    def _on_disk(self, parts: list[Part]) -> bool:
        files = [self.work / f"{name}.bin" for name in SPLITS]
        return all(
            not size or (file.is_file() and file.stat().st_size >= size)
            for file, size in zip(files, sizes_of(parts), strict=True)
        )

    def _check_leakage(self, parts: list[Part], forced: Forced) -> list[Part]:
        """Measure leakage; build again without the chunks that --leakage drops."""
        if self.options.leakage == "off":
            return parts
        from megadna.data.leakage import leaking_chunks, measure_leakage

        self._leakage = measure_leakage(self.work)
        if self.options.leakage == "report" or not self._leakage["flagged"]:
            return parts
        self._left_out = leaking_chunks(self.work, parts, self.options.leakage)
        parts = self._write(forced, again=True)
        assemble(self.work, parts, [source.name for source in self.sources])
        flagged = {"flagged_before": self._leakage["flagged"]}
        self._leakage = measure_leakage(self.work) | flagged
        return parts


def _reading(sources: list[SourceFile]) -> Progress:
    """Progress in bases; no total where a source is standard input."""
    expected = [int(source.size * _BASES_PER_BYTE.get(source.kind, 0.98)) for source in sources]
    return Progress("reading", sum(expected) if all(expected) else None, "bases")


def _stamp(source: SourceFile) -> list[int]:
    """Size, time of the last change, and that of the inode, which changes even where the file's time is set back."""
    if source.kind == "stdin":
        return [0, 0, time.time_ns()]  # what was read from it cannot be read again
    status = source.path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _fingerprint(source: SourceFile, side: SideFiles) -> dict[str, Any]:
    """What decides a source's chunks; --resume keeps a finished source where it is the same."""
    path = str(source.path.absolute())
    return {"path": path, "stamp": _stamp(source), "split": source.split_name, "side": side.sha256}
