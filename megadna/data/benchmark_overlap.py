"""How much of a benchmark's sequences a dataset's training split contains: by 31-mers, or by coordinates for a BED
file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.data.dataset import ChunkDataset
from megadna.data.inputs import SourceFile
from megadna.data.leakage import Bin, Containment, batches
from megadna.data.pieces import Recipe, stream_pieces
from megadna.data.sketch import SCALE, K
from megadna.errors import UserError
from megadna.genome.bed import locate, read_regions
from megadna.genome.contig_names import renamed
from megadna.genome.contigs import names_of
from megadna.genome.letters import storage_table
from megadna.genome.sources import detect_format
from megadna.genome.tables import TableFormat
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

_WANTED_HASHES = 20  # per sequence of the benchmark, on average


@dataclass(frozen=True)
class Overlap:
    """Contained share of each sequence."""

    names: list[str]
    shares: np.ndarray
    """float32; NaN where a sequence has no 31-mer of A, C, G and T in its sketch."""


def sequence_overlap(dataset: Path, split: str, path: Path, table: TableFormat) -> Overlap:
    """By 31-mers, for a FASTA, table or line file; short sequences get denser sketches, so that each has about 20."""
    ChunkDataset(dataset, split)
    with Progress(f"reading {path}"):
        names, letters, lengths = _read(path, table)
    mean_kmers = max(1, int(lengths.mean()) - K + 1)
    scale = int(np.clip(mean_kmers // _WANTED_HASHES, 1, SCALE))
    containment = Containment(batches(letters, lengths), len(lengths), scale)
    return Overlap(names, containment.search(Bin(dataset, split)).shares())


def _read(path: Path, table: TableFormat) -> tuple[list[str], np.ndarray, np.ndarray]:
    source = SourceFile(path, path.name, detect_format(path, table), 0)
    recipe = Recipe(table, storage_table(ambiguous="keep", uracil="keep"))
    scanner = recipe.scanner()
    names: list[str] = []
    parts, starts, size = [], [], 0
    for piece, _ in stream_pieces(source, recipe, scanner):
        parts.append(scanner.buffer[: piece.size].copy())
        starts.append(piece.positions + size)
        names += [name.decode(errors="replace") for name in names_of(piece.headers)]
        size += piece.size
    if not names:
        raise UserError(f"{path}: holds no sequence")
    return names, np.concatenate(parts), np.diff(np.concatenate(starts), append=size)


def interval_overlap(dataset: Path, split: str, bed: Path) -> Overlap:
    """By coordinates: the share of each (merged) BED interval that chunks of the split cover. UserError where a contig
    of the BED file is not in the dataset, or an interval passes its end."""
    reader = ChunkDataset(dataset, split)
    table, regions = reader.contigs, read_regions(bed)
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(table.names["record"].to_pylist()):
        rows.setdefault(record, []).append(row)
    contigs = locate(bed, regions.first_lines, rows, str(dataset))
    if said := renamed(contigs):
        log.info("contig names matched: %s", said)
    names, shares = [], []
    for name, intervals in regions.merged.items():
        regions.check_ends(name, max(int(table.lengths[row]) for row in rows[contigs[name]]))
        spans = [_spans(reader, row) for row in rows[contigs[name]]]
        for start, end in intervals:
            names.append(f"{name}:{start}-{end}")
            shares.append(max(_covered(span, start, end) for span in spans))
    return Overlap(names, np.array(shares, np.float32))


def _spans(reader: ChunkDataset, row: int) -> tuple[np.ndarray, np.ndarray]:
    first, last = int(reader.contigs.first[reader.split][row]), int(reader.contigs.last[reader.split][row])
    if first < 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = reader.starts[first : last + 1].astype(np.int64)
    ends = starts + reader.lengths[first : last + 1]
    return np.maximum(starts, np.append(0, ends[:-1])), ends  # what overlapping chunks share counts once


def _covered(span: tuple[np.ndarray, np.ndarray], start: int, end: int) -> float:
    return float(np.clip(np.minimum(span[1], end) - np.maximum(span[0], start), 0, None).sum() / (end - start))
