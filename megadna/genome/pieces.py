"""Sequence files -> pieces of DNA, in the order of the text, read by this process or by several workers.

In:  sequence files of any kind that megadna.genome.sources opens.
Out: Found (read_pieces) or (Piece, its bases) of one file (scan_file).

Of N workers each scans every N-th task: a range of a plain file, or any other file as a whole. The bases are in
memory that both processes share, the rest of a piece goes through a pipe. The result does not depend on N. (Threads did
not scale: bytes.replace and the like hold the interpreter's lock.)
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
from megadna.genome.sources import BLOCK, SequenceFile, TextRange, split_ranges, stream_blocks
from megadna.processes import die_with_parent

PIECE = 1 << 23
_Task = tuple[int, SequenceFile, TextRange]


@dataclass(frozen=True)
class Found:
    """A piece of a source; valid until the next one is asked for."""

    source: int
    piece: Piece
    buffer: np.ndarray
    """uint8: `headroom` bytes that are free, then the bases of the piece."""
    last: bool
    """Whether the source ends with it."""


def scan_file(source: SequenceFile) -> Iterator[tuple[Piece, np.ndarray]]:
    """(piece, its bases as uint8) of one file; both are valid until the next pair is asked for."""
    for found in _scan((0, source, TextRange()), Scanner(_buffer(0), 0, fold=False)):
        yield found.piece, found.buffer[: found.piece.size]


def _buffer(headroom: int) -> np.ndarray:
    """Room for a piece, uint8; a process forked later shares it."""
    return np.frombuffer(mmap(-1, headroom + PIECE + MAX_HEADER + 2 * BLOCK), np.uint8)


def read_pieces(
    sources: Sequence[SequenceFile], first: int, workers: int, *, fold: bool, headroom: int
) -> Generator[Found, None, None]:
    """The pieces of all sources from number `first` on; close it, so that its workers end.

    fold: upper case alone. headroom: bytes left free in front of the bases of a piece.
    """
    if workers == 1 or any(source.kind == "stdin" for source in sources):  # a worker cannot wait for a terminal
        scanner = Scanner(_buffer(headroom), headroom, fold=fold)
        for task in _tasks(sources, first, cut=False):
            yield from _scan(task, scanner)
        return
    others = [
        _Worker(islice(_tasks(sources, first, cut=True), number, None, workers), headroom, fold=fold)
        for number in range(workers)
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

    def __init__(self, tasks: Iterable[_Task], headroom: int, *, fold: bool) -> None:
        self._tasks = tasks
        first = _buffer(headroom)
        self._buffers = cycle([first, _buffer(headroom)])
        self._scanner = Scanner(first, headroom, fold=fold)
        self._here, self._there = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")  # a fresh interpreter would need half a second for its imports
        self._process = context.Process(target=self._run, args=(os.getpid(),), daemon=True)
        usual = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C reaches all; only the builder acts
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
            raise UserError("a worker process was killed (out of memory?); use fewer --workers") from error

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._here.close()

    def _run(self, builder: int) -> None:
        """Send (source, piece, last) for each piece, None after each task, or an exception."""
        die_with_parent(builder)
        self._here.close()
        with suppress(EOFError, ConnectionError):  # the builder is gone
            try:
                self._work()
            except Exception as error:
                self._there.send(error)
            while True:
                self._there.recv()  # the pipe must live until the last message is read

    def _work(self) -> None:
        next(self._buffers)  # the scanner has the first
        for task in self._tasks:
            for found in _scan(task, self._scanner):
                self._there.send((found.source, found.piece, found.last))
                self._scanner.buffer = next(self._buffers)
                self._there.recv()  # until that one is free
            self._there.send(None)


def _tasks(sources: Sequence[SequenceFile], first: int, *, cut: bool) -> Iterator[_Task]:
    for number, source in enumerate(sources[first:], first):
        ranges = split_ranges(source.path, PIECE) if cut and source.kind == "plain" else None
        for text_range in ranges or [TextRange()]:
            yield number, source, text_range


def _scan(task: _Task, scanner: Scanner) -> Iterator[Found]:
    """The pieces of one range, at least one; UserError with file and line where it is not FASTA."""
    number, source, text_range = task
    scanner.start(text_range.start, at_line_start=text_range.line_start, in_record=text_range.start > 0)
    try:
        for block in stream_blocks(source, text_range):
            for at in range(0, len(block), BLOCK):
                scanner.feed(block if len(block) <= BLOCK else block[at : at + BLOCK])
                if scanner.size >= PIECE:
                    yield Found(number, scanner.take(), scanner.buffer, last=False)
        scanner.finish(last=text_range.last)
    except FastaError as error:
        raise _with_line(error, source) from error
    yield Found(number, scanner.take(), scanner.buffer, text_range.last)


def _with_line(error: FastaError, source: SequenceFile) -> UserError:
    """The error with the file and the line number; reads the file again up to there."""
    at = error.offset + error.at
    if source.kind == "stdin":
        return UserError(f"standard input: byte {at}: {error.message}")
    line = 1 + count_lines(map(bytes, stream_blocks(source)), at)
    where = f"row {line // 2}" if source.kind == "table" else f"line {line}"
    return UserError(f"{source.path}: {where}: {error.message}")
