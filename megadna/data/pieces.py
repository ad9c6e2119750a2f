"""Text of a source -> pieces of letters -> bytes in the .bin files: what a worker does with one source or one range."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megadna.data.checksums import BinHasher
from megadna.data.chunker import Chunker
from megadna.data.inputs import SourceFile
from megadna.data.manifest import SPLITS
from megadna.data.parts import Part
from megadna.data.plan import Plan, Policy
from megadna.errors import UserError
from megadna.genome.fasta import FastaError, Piece, Scanner, count_lines
from megadna.genome.letters import storage_table
from megadna.genome.sources import BLOCK, TextRange, line_state, range_blocks, split_ranges, stream_blocks
from megadna.genome.tables import TableFormat

PIECE = 1 << 23
_MAX_VECTORS = 512  # stretches per system call; Linux allows 1024


@dataclass(frozen=True)
class Recipe:
    """How to read and store, the same for every source; sent to each worker once."""

    table: TableFormat
    letters: bytes
    fold: bool
    headroom: int

    def scanner(self) -> Scanner:
        """A scanner with its buffer."""
        return Scanner(PIECE + 2 * BLOCK, self.headroom, self.letters, fold=self.fold)


def make_recipe(table: TableFormat, policy: Policy, *, ambiguous: str, uracil: str, fold: bool) -> Recipe:
    """The recipe for these options."""
    return Recipe(table, storage_table(ambiguous=ambiguous, uracil=uracil), fold, policy.headroom)


class Sink:
    """The three .bin files, written at given offsets; opened on first use."""

    def __init__(self, folder: Path, stem: str, offsets: list[int], hasher: BinHasher | None = None) -> None:
        self._hasher = hasher
        self._paths = [folder / f"{stem}{split}.bin" for split in SPLITS]
        self._files: list[int] = []
        self.offsets = list(offsets)

    def write(self, plan: Plan, buffer: np.ndarray) -> None:
        """Append the plan's stretches of the buffer; UserError where the disk is full."""
        if not self._files:
            self._files = [os.open(path, os.O_WRONLY | os.O_CREAT, 0o644) for path in self._paths]
        letters = memoryview(buffer)  # type: ignore[arg-type]
        try:
            for split, file in enumerate(self._files):
                stretches = plan.runs[split].tolist()
                write_stretches(file, letters, stretches, self.offsets[split])
                if self._hasher is not None:
                    for start, end in stretches:
                        self._hasher.update(split, letters[start:end])
                self.offsets[split] += plan.sizes[split]
        except OSError as error:
            raise UserError(
                f"{self._paths[0].parent}: cannot be written ({error.strerror}); free some space"
            ) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            os.close(file)
        self._files = []


def write_stretches(file: int, letters: memoryview, stretches: list[tuple[int, int]], offset: int) -> None:
    """Write stretches of the buffer one after the other from `offset` on."""
    for first in range(0, len(stretches), _MAX_VECTORS):
        vectors = [letters[start:end] for start, end in stretches[first : first + _MAX_VECTORS]]
        size = sum(len(vector) for vector in vectors)
        done = os.pwritev(file, vectors, offset)
        while done < size:  # a nearly full disk, or a signal: the rest in one piece
            done += os.pwrite(file, b"".join(vectors)[done:], offset + done)
        offset += size


def stream_pieces(source: SourceFile, recipe: Recipe, scanner: Scanner) -> Iterator[tuple[Piece, bool]]:
    """(piece, whether it is the last) of a source read from end to end."""
    scanner.start(0, at_line_start=True, in_record=False)
    with explained(source, recipe.table):
        for block in stream_blocks(source.path, source.kind, recipe.table):
            for at in range(0, len(block), BLOCK):
                scanner.feed(block if len(block) <= BLOCK else block[at : at + BLOCK])
                if scanner.size >= PIECE:
                    yield scanner.take(), False
        scanner.finish()
    yield scanner.take(), True


def ranges_of(source: SourceFile) -> list[TextRange]:
    """Ranges of a source that several workers may read; one piece each."""
    return split_ranges(source.path, source.kind, PIECE)


def range_piece(
    source: SourceFile, recipe: Recipe, scanner: Scanner, text_range: TextRange, before: TextRange | None
) -> Piece:
    """The piece of one range: from its first byte (behind a header line that began before) to its end."""
    line_start, skipping = line_state(source.path, source.kind, text_range, before)
    scanner.start(text_range.start, at_line_start=line_start, in_record=before is not None)
    at = text_range.start
    with explained(source, recipe.table):
        for block in range_blocks(source.path, source.kind, text_range):
            inside = block[: text_range.end - at] if at + len(block) > text_range.end else block
            at += len(block)
            beyond = bytes(block[len(inside) :])
            if skipping and inside:
                end = _line_end(inside)
                if end < 0:
                    inside = b""
                else:
                    scanner.start(at - len(block) + end, at_line_start=True, in_record=True)
                    inside, skipping = inside[end:], False
            if inside:
                scanner.feed(inside)
            if at >= text_range.end:
                if beyond and scanner.in_header:
                    end = _line_end(beyond)
                    scanner.feed(beyond if end < 0 else beyond[:end])
                if not scanner.in_header:
                    break
        scanner.finish()
    return scanner.take()


def _line_end(text: bytes | bytearray) -> int:
    """Place behind the first line end; -1 if there is none."""
    ends = [end + 1 for end in (text.find(b"\n"), text.find(b"\r")) if end >= 0]
    return min(ends, default=-1)


def build_source(
    source: SourceFile, policy: Policy, recipe: Recipe, scanner: Scanner, sink: Sink, part: Part
) -> Iterator[int]:
    """Read a source from end to end into `sink` and `part`; yields the bases of each piece once it is written."""
    chunker = Chunker(policy)
    part.open()
    for piece, final in stream_pieces(source, recipe, scanner):
        plan = chunker.plan(piece, scanner.buffer, scanner.headroom, final=final)
        sink.write(plan, scanner.buffer)
        part.add(plan)
        yield piece.size
    part.close()
    check_not_empty(source, part)


def check_not_empty(source: SourceFile, part: Part) -> None:
    """UserError for a source without any record."""
    if part.totals.records == 0:
        raise UserError(f"{source.path}: the FASTA file is empty (no header line that begins with '>')")


class explained:
    """Turns a FastaError into a UserError with the file and the line number."""

    def __init__(self, source: SourceFile, table: TableFormat) -> None:
        self._source, self._table = source, table

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, FastaError):
            return
        path = self._source.path
        if self._source.kind == "stdin":
            raise UserError(f"standard input: byte {error.offset + error.at}: {error.message}") from error
        blocks = stream_blocks(path, self._source.kind, self._table)
        line = 1 + count_lines((bytes(block) for block in blocks), error.offset + error.at)
        place = f"row {line // 2}" if self._source.kind == "table" else f"line {line}"
        raise UserError(f"{path}: {place}: {error.message}") from error
