"""The manifest of a finished build, and what its user should be warned of."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from megadna import __version__
from megadna.data.inputs import SourceFile
from megadna.data.manifest import FORMAT_VERSION, SPLITS, FileEntry, Manifest, Source, dataset_identity
from megadna.data.named import left_out
from megadna.data.options import PreprocessOptions, recorded_options
from megadna.data.parts import Part

_FEW_CHUNKS = 200
# Bits per base: standard deviation between the 4,000-nt chunks of a genome under an order-6 Markov model, measured on
# E. coli (0.022), yeast (0.021), A. thaliana (0.030) and human chromosome 9 (0.056); the largest is taken.
_SPREAD = 0.056


def make_manifest(
    options: PreprocessOptions,
    sources: list[SourceFile],
    parts: list[Part],
    sha256: list[str],
    files: dict[str, FileEntry],
    *,
    side_files: dict[str, str],
    notes: list[str],
    leakage: dict[str, Any],
) -> Manifest:
    """Everything that describes the dataset."""
    first = [0, 0, 0]
    entries = []
    for source, part, digest in zip(sources, parts, sha256, strict=True):
        last = [a + b for a, b in zip(first, part.totals.chunks, strict=True)]
        ranges = {name: (first[split], last[split]) for split, name in enumerate(SPLITS)}
        entries.append(_source(source, part, ranges, digest, modified=options.no_source_hash))
        first = last
    return Manifest(
        format_version=FORMAT_VERSION,
        program_version=__version__,
        dataset_id=dataset_identity(files),
        chunk_length=options.chunk_length,
        chunks=dict(zip(SPLITS, first, strict=True)),
        bases={name: sum(part.totals.sizes[split] for part in parts) for split, name in enumerate(SPLITS)},
        sources=tuple(entries),
        files=files,
        options=recorded_options(options),
        side_files=side_files,
        notes=tuple(notes),
        leakage=leakage,
    )


def _source(
    source: SourceFile, part: Part, ranges: dict[str, tuple[int, int]], sha256: str, *, modified: bool
) -> Source:
    totals = part.totals
    return Source(
        name=source.name,
        path=str(source.path.absolute()),
        species=source.species,
        taxa=source.taxa,
        split=source.split_name,
        size=source.size,
        sha256=sha256,
        modified=source.modified if modified else 0,
        records=totals.records,
        **{**asdict(totals.counts), "other": dict(sorted(totals.counts.other.items()))},
        chunks=dict(zip(SPLITS, totals.chunks, strict=True)),
        ranges=ranges,
        kept=totals.kept,
        dropped=dict(sorted(totals.dropped.items())),
        dropped_chunks=dict(sorted(totals.dropped_chunks.items())),
    )


def warnings_of(parts: list[Part], sources: list[SourceFile], options: PreprocessOptions, repeated: int) -> list[str]:
    """One line each; they are in the manifest's notes as well."""
    found = []
    empty = sum(part.totals.empty_records for part in parts)
    if empty:
        found.append(f"{empty} records have a header line but no sequence")
    uracils = sum(part.totals.counts.other.get("U", 0) for part in parts)
    if uracils and options.uracil == "t":
        found.append(f"{uracils:,} U were written as T (--uracil keep leaves them)")
    if repeated:
        found.append(f"{repeated} record names occur more than once in their file")
    for source, part in zip(sources, parts, strict=True):
        totals = part.totals
        if totals.counts.bases and totals.short_run_n > 0.1 * totals.counts.bases:
            share = 100 * totals.short_run_n / totals.counts.bases
            found.append(f"{source.name} looks hard-masked: {share:.0f} % of it is N in runs under 50 kb")
        if not sum(totals.chunks):
            found.append(f"{source.name} gave no chunk; {left_out([part])}")
    masked = [part.totals.counts.soft_masked > 0.001 * part.totals.counts.bases for part in parts]
    if any(masked) and not all(masked) and options.soft_mask == "keep":
        found.append(f"{sum(masked)} of {len(parts)} sources are soft-masked, the others are not; see --soft_mask fold")
    found += _uneven(parts, sources, options)
    for split, name in enumerate(SPLITS[1:], start=1):
        chunks = sum(part.totals.chunks[split] for part in parts)
        if 0 < chunks < _FEW_CHUNKS:
            error = _SPREAD * math.sqrt(4000 / options.chunk_length / chunks)
            found.append(
                f"{name} has only {chunks} chunks: a figure in bits per base measured on it has a standard error of "
                f"about {error:.3f}"
            )
    return found


def _uneven(parts: list[Part], sources: list[SourceFile], options: PreprocessOptions) -> Iterator[str]:
    """Splits with more than twice the share of the bases that was asked for: few blocks or contigs, so by chance."""
    drawn = [part.totals.sizes for part, source in zip(parts, sources, strict=True) if source.split is None]
    total = sum(map(sum, drawn))
    remedy = "add genomes" + " or give --block_chunks 1" * (options.split == "region" and options.block_chunks > 1)
    for split, asked in ((1, options.valid_fraction), (2, options.test_fraction)):
        got = sum(sizes[split] for sizes in drawn)
        if got > 2 * asked * total and not options.named_contigs:
            yield f"{SPLITS[split]} got {got / total:.1%} of the bases, and {asked:.1%} were asked for; {remedy}"
