"""Text of the sources -> pieces of letters, in the order of the text, read by this process or by several workers.

Of N workers each scans every N-th task: a range of a plain or BGZF file, or any other file whole. The letters come
through memory that both processes share, the rest of a piece through a pipe. What comes out does not depend on N.
(Threads did not scale: bytes.replace and the like keep the interpreter's lock.)
"""

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from mmap import mmap

import numpy as np

from megadna.errors import UserError
from megadna.genome.fasta import MAX_HEADER, FastaError, Piece, Scanner, count_lines
from megadna.genome.sources import BLOCK, SequenceFile, TextRange, range_blocks, split_ranges, stream_blocks
from megadna.genome.tables import TableFormat
from megadna.processes import die_with_parent

PIECE = 1 << 23
_Task = tuple[int, SequenceFile, TextRange]


@dataclass(frozen=True)
class Recipe:
    """How to read and store letters, the same for every source."""

    table: TableFormat
    letters: bytes
    """256-byte translation (megadna.alphabet.storage_table)."""
    fold: bool = False
    headroom: int = 0

    def scanner(self) -> Scanner:
        """A scanner with its buffer."""
        return Scanner(self.buffer(), self.headroom, self.letters, fold=self.fold)

    def buffer(self) -> np.ndarray:
        """Room for a piece, uint8; a process forked later shares it."""
        return np.frombuffer(mmap(-1, self.headroom + PIECE + MAX_HEADER + 2 * BLOCK), np.uint8)


@dataclass(frozen=True)
class Found:
    """A piece of a source; valid until the next one is asked for."""

    source: int
    piece: Piece
    buffer: np.ndarray
    """uint8: `Recipe.headroom` letters of room, then the piece's letters."""
    last: bool
    """Whether the source ends with it."""


def read_pieces(
    sources: Sequence[SequenceFile], first: int, recipe: Recipe, workers: int
) -> Generator[Found, None, None]:
    """The pieces of all sources from number `first` on; close it, so that its workers end."""
    if workers == 1 or any(source.kind == "stdin" for source in sources):  # nobody else is to wait for a terminal
        scanner = recipe.scanner()
        for task in _tasks(sources, first, cut=False):
            yield from _scan(task, recipe, scanner)
        return
    others = [
        _Worker(islice(_tasks(sources, first, cut=True), number, None, workers), recipe) for number in range(workers)
    ]
    try:
        for worker in cycle(others if first < len(sources) else []):
            for found in worker.pieces():
                yield found
            if found.last and found.source == len(sources) - 1:
                return
    finally:
        for worker in others:
            worker.end()


class _Worker:
    """A process that scans its tasks into two buffers in turn: one is filled while the other is read here."""

    def __init__(self, tasks: Iterable[_Task], recipe: Recipe) -> None:
        self._tasks, self._recipe = tasks, recipe
        self._buffers = cycle([recipe.buffer(), recipe.buffer()])
        self._here, self._there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")  # a fresh interpreter would need half a second for its imports
        self._process = context.Process(target=self._run, args=(os.getpid(),), daemon=True)
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C goes to all; this process acts
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)
        self._there.close()
        self._here.send(None)  # the second buffer is free

    def pieces(self) -> Iterator[Found]:
        """The pieces of the next task."""
        try:
            while message := self._here.recv():
                if isinstance(message, BaseException):
                    raise message
                source, piece, last = message
                yield Found(source, piece, next(self._buffers), last)
                self._here.send(None)
        except (EOFError, ConnectionError) as error:
            raise UserError("a worker process was ended from outside (out of memory?); use fewer --workers") from error

    def end(self) -> None:
        """Stop it, wherever it is."""
        self._process.kill()
        self._process.join()
        self._here.close()

    def _run(self, builder: int) -> None:
        """The process: (source, piece, last) for each piece, None after each task, or an exception."""
        die_with_parent(builder)
        self._here.close()
        with suppress(EOFError, ConnectionError):  # the other process is gone
            try:
                self._work()
            except Exception as error:
                self._there.send(error)
            while True:
                self._there.recv()  # and not end before the last message is read

    def _work(self) -> None:
        scanner = self._recipe.scanner()
        scanner.buffer = next(self._buffers)
        for task in self._tasks:
            for found in _scan(task, self._recipe, scanner):
                self._there.send((found.source, found.piece, found.last))
                scanner.buffer = next(self._buffers)
                self._there.recv()  # until that one is free
            self._there.send(None)


def stream_pieces(source: SequenceFile, recipe: Recipe, scanner: Scanner) -> Iterator[tuple[Piece, bool]]:
    """(piece, whether it is the last) of one source; the letters are in the scanner's buffer."""
    for found in _scan((0, source, TextRange()), recipe, scanner):
        yield found.piece, found.last


def _tasks(sources: Sequence[SequenceFile], first: int, *, cut: bool) -> Iterator[_Task]:
    for number, source in enumerate(sources[first:], first):
        ranges = split_ranges(source.path, source.kind, PIECE) if cut and source.kind in ("plain", "bgzf") else None
        for text_range in ranges or [TextRange()]:
            yield number, source, text_range


def _scan(task: _Task, recipe: Recipe, scanner: Scanner) -> Iterator[Found]:
    """The pieces of one range, at least one; UserError with file and line where it is no FASTA."""
    number, source, text_range = task
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
                    yield Found(number, scanner.take(), scanner.buffer, last=False)
        scanner.finish(last=text_range.last)
    except FastaError as error:
        raise _with_place(error, source, recipe.table) from error
    yield Found(number, scanner.take(), scanner.buffer, text_range.last)


def _with_place(error: FastaError, source: SequenceFile, table: TableFormat) -> UserError:
    """The error with the file and the line number; reads the file again up to there."""
    at = error.offset + error.at
    if source.kind == "stdin":
        return UserError(f"standard input: byte {at}: {error.message}")
    line = 1 + count_lines(map(bytes, stream_blocks(source.path, source.kind, table)), at)
    place = f"row {line // 2}" if source.kind == "table" else f"line {line}"
    return UserError(f"{source.path}: {place}: {error.message}")
