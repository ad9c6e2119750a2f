"""FASTA files -> dataset folder.

Everything is written in a hidden folder beside the output (`.NAME.partial`), which takes the output's name when all
of it is on disk. Sources go one after the other, piece by piece, into one .bin file per split; with several workers,
pieces are read ahead. So the bytes do not depend on the number of workers, and every base is written once.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from megadna.data.checksums import Bins, SourceHasher, checksum_files
from megadna.data.chunker import Chunker
from megadna.data.finish import make_manifest, warnings_of
from megadna.data.inputs import SourceFile, find_sources, split_rule, table_format
from megadna.data.manifest import MANIFEST_NAME, SPLITS, Manifest, dump_manifest, load_manifest
from megadna.data.options import PreprocessOptions, recorded_options
from megadna.data.parts import Part, assemble
from megadna.data.pieces import Found, Recipe, read_pieces
from megadna.data.plan import Policy
from megadna.data.progress import reading
from megadna.errors import UserError, require
from megadna.genome.contigs import KeptIntervals, contig_filter, read_bed
from megadna.genome.letters import storage_table
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

Forced = dict[int, tuple[tuple[int, int, int], ...]]
"""By source: (record number, block, split) of blocks given to splits that would be empty."""


def build_dataset(options: PreprocessOptions) -> tuple[Manifest, bool]:
    """Write the dataset folder; (manifest, whether anything had to be done). UserError for every mistake of the
    user."""
    output = options.output
    sources, notes = find_sources(options)
    require(output.is_dir() or not output.exists(), f"{output}: is a file; --output names a folder")
    if output.is_dir() and any(output.iterdir()):
        finished = _same_dataset(options, sources)
        if finished is not None and not options.overwrite:
            return finished, False
        taken = f"{output}: not empty and not this dataset; choose another --output, or say --overwrite"
        require(options.overwrite, taken)
        foreign = f"{output}: holds something that is no dataset, so it is not overwritten; remove it yourself"
        require((output / MANIFEST_NAME).is_file(), foreign)
    work = output.absolute().parent / f".{output.absolute().name}.partial"
    with _work_folder(work, options):
        manifest = Build(options, sources, notes, work).run()
        (work / MANIFEST_NAME).write_text(dump_manifest(manifest), encoding="utf-8")
        (work / "options.json").unlink()  # first: without it nothing of what follows is taken up by --resume
        shutil.rmtree(work / "parts")
        _publish(work, output)
    return manifest, True


def _same_dataset(options: PreprocessOptions, sources: list[SourceFile]) -> Manifest | None:
    """The manifest of the output folder if it is finished and a new build would write the same; else None."""
    if not (options.output / MANIFEST_NAME).is_file():
        return None
    manifest = load_manifest(options.output)
    if dict(manifest.options) != recorded_options(options) or len(manifest.sources) != len(sources):
        return None
    hasher = SourceHasher(enabled=not options.no_source_hash)
    for old, new in zip(manifest.sources, sources, strict=True):
        if (old.path, old.name, old.size) != (str(new.path.absolute()), new.name, new.size) or new.kind == "stdin":
            return None
        hasher.start(new.path)
    with Progress(f"comparing the sources with those of {options.output}"):
        same = all(old.sha256 == hasher.result(new.path) for old, new in zip(manifest.sources, sources, strict=True))
    return manifest if same else None


@contextmanager
def _work_folder(work: Path, options: PreprocessOptions) -> Iterator[None]:
    """The hidden folder, locked; kept after a failure if a finished source in it is worth a --resume."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{options.output}: cannot be made ({error.strerror}); choose another --output") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{options.output}: another megadna preprocess is writing it; wait for it") from error
        _prepare(work, options)
        yield
    except BaseException as error:
        if not any(work.glob("parts/*.json")):
            shutil.rmtree(work, ignore_errors=True)
        else:
            log.warning("the finished sources are kept in %s; go on with --resume", work)
        if isinstance(error, OSError):
            raise UserError(f"{error.filename or work}: {error.strerror}; free some space, or mend it") from error
        raise
    finally:
        os.close(handle)


def _prepare(work: Path, options: PreprocessOptions) -> None:
    """Start afresh, or check that what is there belongs to the same options."""
    record = work / "options.json"
    wanted = recorded_options(options)
    if options.resume and record.is_file():
        if json.loads(record.read_text()) != json.loads(json.dumps(wanted)):
            raise UserError(f"{work}: was begun with other options; leave out --resume to start afresh")
        return
    record.unlink(missing_ok=True)  # first, as when publishing
    for entry in list(work.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (work / "parts").mkdir()
    temporary = work / "options.tmp"
    temporary.write_text(json.dumps(wanted))
    temporary.replace(record)


def _publish(work: Path, output: Path) -> None:
    """Flush every file and give the folder its final name."""
    for path in [*work.iterdir(), work]:
        _flush(path)
    old = output.absolute().parent / f".{output.absolute().name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    work.rename(output)
    _flush(old.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


class Build:
    """One build in its work folder."""

    def __init__(self, options: PreprocessOptions, sources: list[SourceFile], notes: list[str], work: Path) -> None:
        self.options, self.sources, self.notes, self.work = options, sources, list(notes), work
        self._hasher = SourceHasher(enabled=not options.no_source_hash)
        self._left_out: dict[int, frozenset[tuple[int, int]]] = {}
        self._leakage: dict[str, Any] = {}

    def run(self) -> Manifest:
        """All sources, the empty splits, leakage, and the final files but the manifest."""
        options, forced = self.options, Forced()
        parts = self._write(forced)
        missing = self._missing_splits(parts)
        if missing:
            forced = self._steal_blocks(parts, missing)
            parts = self._write(forced, again=True)
            if self._missing_splits(parts):
                raise self._too_small("too few chunks to fill train, valid and test")
        if not sum(part.totals.chunks[0] for part in parts):
            raise self._too_small("no chunk is left for train")
        repeated = assemble(self.work, parts, [source.name for source in self.sources])
        parts = self._check_leakage(parts, forced)
        warnings = warnings_of(parts, self.sources, options, repeated)
        with Progress("checksums"):
            files = checksum_files(self.work, self._bins)
            sha256 = [self._hasher.result(source.path) for source in self.sources]
        return make_manifest(options, self.sources, parts, sha256, files, self.notes + warnings, self._leakage)

    def _too_small(self, problem: str) -> UserError:
        what = self.sources[0].path if len(self.sources) == 1 else f"{len(self.sources)} sources"
        return UserError(f"{what}: {problem}; lower --chunk_length, or set --valid_fraction 0 or --test_fraction 0")

    def _policy(self, number: int, forced: Forced, keep: KeptIntervals) -> Policy:
        options, source = self.options, self.sources[number]
        return Policy(
            chunk_length=options.chunk_length,
            overlap=options.overlap,
            min_tail=options.min_tail,
            min_record=options.min_record,
            max_n_run=options.max_n_run,
            block_chunks=options.block_chunks,
            rule=split_rule(source, options, forced.get(number, ())),
            select=contig_filter(options.contigs, source.path),
            keep=keep,
            rank_blocks=self._may_be_empty(),
            left_out=self._left_out.get(number, frozenset()),
        )

    def _drawn(self) -> dict[int, float]:
        """Shares of the held-out splits that are drawn block by block or contig by contig."""
        options = self.options
        if options.split not in ("region", "contig") or options.named_contigs:
            return {}
        return {split: share for split, share in ((1, options.valid_fraction), (2, options.test_fraction)) if share}

    def _may_be_empty(self) -> bool:
        """Whether so few blocks will be held out that a split could be empty; 4 bases a byte is gzip at its best."""
        shares = self._drawn().values()
        block = self.options.chunk_length * self.options.block_chunks
        few = bool(shares) and min(shares) * sum(source.size for source in self.sources) / block < 50
        return few or (bool(shares) and self.options.split == "contig")

    def _write(self, forced: Forced, *, again: bool = False) -> list[Part]:
        """Every source into the .bin files; finished ones of an interrupted run are taken as they are."""
        options = self.options
        self._resumable = not again  # a second pass has other chunks; interrupted, the build starts from the first
        if again and any(source.kind == "stdin" for source in self.sources):
            raise UserError(
                "standard input: a small split or --leakage drop_* needs a second reading; save it to a file first, "
                "or raise --valid_fraction and --test_fraction"
            )
        if again:
            for mark in (self.work / "parts").glob("*.json"):
                mark.unlink()
        include = read_bed(options.include_bed) if options.include_bed else None
        keep = KeptIntervals(include, read_bed(options.exclude_bed) if options.exclude_bed else {})
        policies = [self._policy(number, forced, keep) for number in range(len(self.sources))]
        fold = options.soft_mask == "fold"
        letters = storage_table(ambiguous=options.ambiguous, uracil=options.uracil)
        recipe = Recipe(table_format(options), letters, fold, policies[0].headroom)
        parts = [Part(self.work, number) for number in range(len(self.sources))]
        finished = 0 if again else self._resume(parts)
        for source in self.sources:
            self._hasher.start(source.path)
        bins = Bins(self.work, [sum(part.totals.sizes[split] for part in parts[:finished]) for split in range(3)])
        found = read_pieces(self.sources, finished, recipe, options.workers)
        with reading(self.sources, finished) as progress, closing(found) as pieces:
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
            plan = chunker.plan(found.piece, found.buffer, policies[0].headroom, final=found.last)
            bins.write(plan.runs, found.buffer)
            part.add(plan)
            progress.note = self.sources[found.source].name
            progress.advance(found.piece.size)
            if found.last:
                self._finish_source(found.source, part)
                chunker = None

    def _finish_source(self, number: int, part: Part) -> None:
        """Remember for --resume that a source is finished (nothing to resume to with a single one)."""
        part.close()
        source = self.sources[number]
        if part.totals.records == 0:
            raise UserError(f"{source.path}: the FASTA file is empty (no header line that begins with '>')")
        if len(self.sources) > 1 and self._resumable:
            part.mark_finished(_fingerprint(source))

    def _resume(self, parts: list[Part]) -> int:
        """How many sources, from the first on, an interrupted run has finished."""
        for number, part in enumerate(parts):
            if not part.load(_fingerprint(self.sources[number])) or not self._on_disk(parts[: number + 1]):
                parts[number] = Part(self.work, number)
                break
        else:
            number = len(parts)
        for later in range(number, len(parts)):
            parts[later].file("json").unlink(missing_ok=True)
        if number:
            log.info("%d of %d sources were finished before; going on from there", number, len(parts))
        return number

    def _on_disk(self, parts: list[Part]) -> bool:
        sizes = [sum(part.totals.sizes[split] for part in parts) for split in range(3)]
        files = [self.work / f"{name}.bin" for name in SPLITS]
        return all(not size or file.stat().st_size >= size for file, size in zip(files, sizes, strict=True))

    def _missing_splits(self, parts: list[Part]) -> list[int]:
        """Held-out splits that were asked for and got no chunk."""
        return [split for split in self._drawn() if not sum(part.totals.chunks[split] for part in parts)]

    def _steal_blocks(self, parts: list[Part], missing: list[int]) -> Forced:
        """The blocks with the lowest hashes for the splits that would be empty."""
        ranked = sorted(
            (lowest, number, record, block)
            for number, part in enumerate(parts)
            for lowest, record, block in part.totals.lowest
            if self.sources[number].split is None
        )
        forced: Forced = {}
        unit = "contig" if self.options.split == "contig" else "block"
        for split, (_, number, record, block) in zip(missing, ranked, strict=False):
            forced[number] = (*forced.get(number, ()), (record, block, split))
            self.notes.append(
                f"{SPLITS[split]} would have been empty: it got the {unit} with the lowest hash "
                f"({self.sources[number].name}, record {record + 1}" + (f", block {block})" if unit == "block" else ")")
            )
        return forced

    def _check_leakage(self, parts: list[Part], forced: Forced) -> list[Part]:
        """Sketch held-out chunks and look for them in train; drop what --leakage says and build again."""
        if self.options.leakage == "off":
            return parts
        from megadna.data.leakage import leaking_chunks, measure_leakage

        self._leakage = measure_leakage(self.work, self.options.max_containment)
        if self.options.leakage == "report" or not self._leakage["flagged"]:
            return parts
        self._left_out = leaking_chunks(self.work, parts, self.options)
        parts = self._write(forced, again=True)
        assemble(self.work, parts, [source.name for source in self.sources])
        flagged = {"flagged_before": self._leakage["flagged"]}
        self._leakage = measure_leakage(self.work, self.options.max_containment) | flagged
        return parts


def _fingerprint(source: SourceFile) -> dict[str, object]:
    status = source.path.stat() if source.kind != "stdin" else None
    stamp = [status.st_size, status.st_mtime_ns] if status else [0, 0]
    return {"path": str(source.path.absolute()), "stamp": stamp}
