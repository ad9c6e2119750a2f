"""Index data of each source while a dataset is built, and the final files made from it.

In:  the Plans of the chunker, source by source.
Out: .idx, .start.npy and contigs.tsv, the manifest, and warnings for its notes.

A source's part is a set of raw files in WORK/parts, written piece by piece, and a .json with its totals, written last:
where it exists the source is finished, which is what --resume relies on. At most a block of the index is in memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import compute

from megadna import __version__
from megadna.data.chunker import Plan, Totals
from megadna.data.dataset import HEADER, write_index
from megadna.data.inputs import SourceFile
from megadna.data.manifest import FORMAT_VERSION, SPLITS, FileEntry, Manifest, Source, dataset_identity
from megadna.data.options import PreprocessOptions, recorded_options
from megadna.files import write_text
from megadna.genome.fasta import Counts

_BLOCK = 1 << 16  # rows read at a time


class Part:
    """The raw files of one source."""

    def __init__(self, work: Path, number: int) -> None:
        self._stem = str(work / "parts" / f"{number:06d}")
        self.totals = Totals()

    def file(self, kind: str) -> Path:
        """Path of one of the raw files."""
        return Path(f"{self._stem}.{kind}")

    def open(self) -> None:
        """Begin; what an interrupted run may have left is overwritten."""
        self._files = {
            kind: self.file(kind).open("wb")
            for kind in ("names", "records", *(f"{split}.{what}" for split in SPLITS for what in ("lengths", "starts")))
        }

    def add(self, plan: Plan) -> None:
        """Append the rows of a piece."""
        for split, name in enumerate(SPLITS):
            self._files[f"{name}.lengths"].write(plan.lengths[split].tobytes())
            self._files[f"{name}.starts"].write(plan.starts[split].tobytes())
        if plan.names:
            self._files["names"].write(b"\n".join(plan.names) + b"\n")
            rows = np.concatenate((plan.record_lengths[:, None], plan.record_counts), axis=1)
            self._files["records"].write(rows.astype(np.int64).tobytes())

    def close(self) -> None:
        """Finish the raw files (not yet the source)."""
        for file in self._files.values():
            file.close()

    def mark_finished(self, fingerprint: dict[str, object]) -> None:
        """Write the .json; `fingerprint` is compared later to see whether the source has changed."""
        write_text(self.file("json"), json.dumps({"source": fingerprint, "totals": asdict(self.totals)}))

    def load(self, fingerprint: dict[str, object]) -> bool:
        """Totals of a finished source; False if it is not finished or has changed."""
        if not self.file("json").is_file():
            return False
        raw = json.loads(self.file("json").read_text())
        if raw["source"] != fingerprint:
            return False
        self.totals = Totals(**{**raw["totals"], "counts": Counts(**raw["totals"]["counts"])})
        self.totals.lowest = [(a, b, c) for a, b, c in self.totals.lowest]
        return True

    def records(self) -> Iterator[tuple[str, int]]:
        """(name, length) of every record, once the raw files are closed."""
        with self.file("names").open("rb") as names:
            for block in _raw([self], "records", np.int64, 4):
                lengths = block.reshape(-1, 4)[:, 0].tolist()
                for name, length in zip(islice(names, len(lengths)), lengths, strict=True):
                    yield name[:-1].decode(errors="replace"), length


def chunks_of(parts: list[Part]) -> list[int]:
    """Chunks of all sources by split."""
    return [sum(part.totals.chunks[split] for part in parts) for split in range(len(SPLITS))]


def sizes_of(parts: list[Part]) -> list[int]:
    """Bases on disk of all sources by split."""
    return [sum(part.totals.sizes[split] for part in parts) for split in range(len(SPLITS))]


def left_out(parts: list[Part]) -> str:
    """`left out: bed 1,000, mostly_n 20 bases`, over all sources."""
    bases: dict[str, int] = {}
    for part in parts:
        for reason, count in part.totals.dropped.items():
            bases[reason] = bases.get(reason, 0) + count
    return f"left out: {', '.join(f'{reason} {count:,}' for reason, count in sorted(bases.items())) or 'no'} bases"


def _raw(parts: list[Part], kind: str, dtype: type, width: int = 1) -> Iterator[np.ndarray]:
    for part in parts:
        with part.file(kind).open("rb") as file:
            while data := file.read(_BLOCK * width * np.dtype(dtype).itemsize):
                yield np.frombuffer(data, dtype)


def _counts(parts: list[Part], split: int) -> Iterator[np.ndarray]:
    for block in _raw(parts, "records", np.int64, 4):
        yield block.reshape(-1, 4)[:, 1 + split]


def assemble(work: Path, parts: list[Part], source_names: list[str]) -> int:
    """Write .idx, .start.npy and contigs.tsv of the dataset; returns how many record names repeat within their
    source."""
    for split, (name, chunks) in enumerate(zip(SPLITS, chunks_of(parts), strict=True)):
        if not chunks:
            (work / f"{name}.bin").unlink(missing_ok=True)
            continue
        num_documents = sum(int((block > 0).sum()) for block in _counts(parts, split))
        write_index(
            work / f"{name}.idx",
            lambda name=name: _raw(parts, f"{name}.lengths", np.int32),  # type: ignore[misc]
            chunks,
            lambda split=split: _documents(parts, split),  # type: ignore[misc]
            num_documents,
        )
        with (work / f"{name}.start.npy").open("wb") as file:
            header = {"descr": "<u8", "fortran_order": False, "shape": (chunks,)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in _raw(parts, f"{name}.starts", np.uint64):
                file.write(block.tobytes())
    return _write_contigs(work / "contigs.tsv", parts, source_names)


def _documents(parts: list[Part], split: int) -> Iterator[np.ndarray]:
    end = 0
    for counts in _counts(parts, split):
        ends = end + np.cumsum(counts)
        end = int(ends[-1])
        yield ends[counts > 0]


def _write_contigs(path: Path, parts: list[Part], source_names: list[str]) -> int:
    repeated = 0
    base = np.zeros(3, np.int64)
    with path.open("wb") as file:
        file.write(HEADER.encode())
        for part, source in zip(parts, source_names, strict=True):
            hashes = [np.zeros(0, np.int64)]
            with part.file("names").open("rb") as names:
                for block in _raw([part], "records", np.int64, 4):
                    rows = block.reshape(-1, 4)
                    here = b"".join(islice(names, len(rows))).split(b"\n")[:-1]
                    hashes.append(np.fromiter(map(hash, here), np.int64, len(here)))
                    ends = base + np.cumsum(rows[:, 1:], axis=0)
                    base = ends[-1]
                    file.write(_contig_lines(source.encode(), here, rows, ends))
            every = np.sort(np.concatenate(hashes))
            repeated += int((every[1:] == every[:-1]).sum())
    return repeated


def _contig_lines(source: bytes, names: list[bytes], rows: np.ndarray, ends: np.ndarray) -> bytes:
    """Lines of contigs.tsv; `rows` are length and chunks by split, `ends` the sequence indices after each record."""
    numbers = [pyarrow.array(rows[:, 0])]
    for count, end in zip(rows[:, 1:].T, ends.T, strict=True):
        numbers += [pyarrow.array(index, mask=count == 0) for index in (end - count, end - 1)]
    cells = [column.cast(pyarrow.string()).cast(pyarrow.binary()) for column in numbers]
    lines = compute.binary_join_element_wise(
        pyarrow.scalar(source), pyarrow.array(names), *cells, b"\t", null_handling="replace", null_replacement=b""
    )
    text = b"\n".join(lines.to_pylist()) + b"\n"
    return text if text.isascii() else text.decode(errors="replace").encode()


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
        entries.append(_source(source, part, ranges, digest))
        first = last
    return Manifest(
        format_version=FORMAT_VERSION,
        program_version=__version__,
        dataset_id=dataset_identity(files),
        chunk_length=options.chunk_length,
        chunks=dict(zip(SPLITS, first, strict=True)),
        bases=dict(zip(SPLITS, sizes_of(parts), strict=True)),
        sources=tuple(entries),
        files=files,
        options=recorded_options(options),
        side_files=side_files,
        notes=tuple(notes),
        leakage=leakage,
    )


def _source(source: SourceFile, part: Part, ranges: dict[str, tuple[int, int]], sha256: str) -> Source:
    totals = part.totals
    return Source(
        name=source.name,
        path=str(source.path.absolute()),
        species=source.species,
        taxa=source.taxa,
        split=source.split_name,
        size=source.size,
        sha256=sha256,
        records=totals.records,
        **{**asdict(totals.counts), "other": dict(sorted(totals.counts.other.items()))},
        chunks=dict(zip(SPLITS, totals.chunks, strict=True)),
        ranges=ranges,
        kept=sum(totals.sizes),
        dropped=dict(sorted(totals.dropped.items())),
        dropped_chunks=dict(sorted(totals.dropped_chunks.items())),
    )


def warnings_of(parts: list[Part], sources: list[SourceFile], options: PreprocessOptions, repeated: int) -> list[str]:
    """One line per warning, for the manifest's notes."""
    found = []
    empty = sum(part.totals.empty_records for part in parts)
    if empty:
        found.append(f"{empty} records have a header line but no sequence")
    uracils = sum(part.totals.counts.other.get("U", 0) for part in parts)
    if uracils:
        found.append(f"{uracils:,} U were written as T")
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
    for name, chunks in list(zip(SPLITS, chunks_of(parts), strict=True))[1:]:
        if 0 < chunks < _FEW_CHUNKS:
            error = _SPREAD * math.sqrt(4000 / options.chunk_length / chunks)
            found.append(
                f"{name} has only {chunks} chunks: a figure in bits per base measured on it has a standard error of "
                f"about {error:.3f}"
            )
    return found


def _uneven(parts: list[Part], sources: list[SourceFile], options: PreprocessOptions) -> Iterator[str]:
    """Splits with over twice the share of bases that was asked for: by chance, as blocks or contigs are few."""
    drawn = [part.totals.sizes for part, source in zip(parts, sources, strict=True) if source.split is None]
    total = sum(map(sum, drawn))
    remedy = "add genomes" + " or give --block_chunks 1" * (options.split == "region" and options.block_chunks > 1)
    for split, asked in ((1, options.valid_fraction), (2, options.test_fraction)):
        got = sum(sizes[split] for sizes in drawn)
        if got > 2 * asked * total and not options.named_contigs:
            yield f"{SPLITS[split]} got {got / total:.1%} of the bases, and {asked:.1%} were asked for; {remedy}"
