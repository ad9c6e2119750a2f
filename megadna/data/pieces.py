"""Text of the sources -> pieces of letters, in the order of the text, read by one thread or several.

A plain or BGZF file is cut into ranges that threads scan at once (numpy and the kernel work outside the interpreter's
lock); of any other file a thread scans the first piece ahead, so that many small files go in parallel. What comes out
does not depend on the number of threads.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from megadna.data.inputs import SourceFile
from megadna.errors import UserError
from megadna.genome.fasta import MAX_HEADER, FastaError, Piece, Scanner, count_lines
from megadna.genome.sources import BLOCK, TextRange, range_blocks, split_ranges, stream_blocks
from megadna.genome.tables import TableFormat

PIECE = 1 << 23


@dataclass(frozen=True)
class Recipe:
    """How to read and store letters, the same for every source."""

    table: TableFormat
    letters: bytes
    """256-byte translation (megadna.genome.letters.storage_table)."""
    fold: bool = False
    headroom: int = 0

    def scanner(self) -> Scanner:
        """A scanner with its buffer."""
        return Scanner(PIECE + MAX_HEADER + 2 * BLOCK, self.headroom, self.letters, fold=self.fold)


@dataclass(frozen=True)
class Found:
    """A piece of a source; valid until the next one is asked for."""

    source: int
    piece: Piece
    scanner: Scanner
    last: bool
    """Whether the source ends with it."""


def read_pieces(sources: list[SourceFile], first: int, recipe: Recipe, workers: int) -> Iterator[Found]:
    """The pieces of all sources from number `first` on."""
    tasks = (
        (number, text_range)
        for number in range(first, len(sources))
        for text_range in _ranges(sources[number], workers)
    )
    if workers == 1 or any(source.kind == "stdin" for source in sources):  # no thread is to wait for a terminal
        scanner = recipe.scanner()
        for number, text_range in tasks:
            yield from _scan(number, sources[number], recipe, scanner, text_range)
        return
    ahead: deque[tuple[Future[Found | None], Iterator[Found]]] = deque()
    pool = ThreadPoolExecutor(workers)

    def begin(scanner: Scanner) -> None:
        for number, text_range in tasks:
            found = _scan(number, sources[number], recipe, scanner, text_range)
            ahead.append((pool.submit(next, found, None), found))
            return

    try:
        for _ in range(workers + 1):  # one more than threads, for the piece that is being written
            begin(recipe.scanner())
        while ahead:
            future, rest = ahead.popleft()
            found = future.result()
            while found is not None:
                scanner = found.scanner
                yield found
                found = next(rest, None)
            begin(scanner)
    finally:
        pool.shutdown(cancel_futures=True)


def stream_pieces(source: SourceFile, recipe: Recipe, scanner: Scanner) -> Iterator[tuple[Piece, bool]]:
    """(piece, whether it is the last) of one source; the letters are in the scanner's buffer."""
    for found in _scan(0, source, recipe, scanner, TextRange()):
        yield found.piece, found.last


def _ranges(source: SourceFile, workers: int) -> Iterator[TextRange]:
    whole = workers == 1 or source.kind not in ("plain", "bgzf")
    return iter([TextRange()]) if whole else split_ranges(source.path, source.kind, PIECE)


def _scan(number: int, source: SourceFile, recipe: Recipe, scanner: Scanner, text_range: TextRange) -> Iterator[Found]:
    """The pieces of one range, at least one; UserError with file and line where it is no FASTA."""
    scanner.start(text_range.start, at_line_start=text_range.line_start, in_record=text_range.start > 0)
    if text_range == TextRange():
        blocks = stream_blocks(source.path, source.kind, recipe.table)
    else:
        blocks = range_blocks(source.path, source.kind, text_range)
    try:
        for block in blocks:
            for at in range(0, len(block), BLOCK):
                scanner.feed(block if len(block) <= BLOCK else block[at : at + BLOCK])
                if scanner.size >= PIECE:
                    yield Found(number, scanner.take(), scanner, last=False)
        scanner.finish(last=text_range.last)
    except FastaError as error:
        raise _with_place(error, source, recipe.table) from error
    yield Found(number, scanner.take(), scanner, text_range.last)


def _with_place(error: FastaError, source: SourceFile, table: TableFormat) -> UserError:
    """The error with the file and the line number; reads the file again up to there."""
    at = error.offset + error.at
    if source.kind == "stdin":
        return UserError(f"standard input: byte {at}: {error.message}")
    line = 1 + count_lines(map(bytes, stream_blocks(source.path, source.kind, table)), at)
    place = f"row {line // 2}" if source.kind == "table" else f"line {line}"
    return UserError(f"{source.path}: {place}: {error.message}")
