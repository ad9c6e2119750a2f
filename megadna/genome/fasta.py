"""FASTA text, block by block -> bases, record starts and counts. Streaming: memory does not grow with the contig.

In:  consecutive blocks of text (any size, cut anywhere): any line width, LF, CRLF or CR ends, blank lines, lower
     case, IUPAC codes, U and gap characters.
Out: Piece: bases without line ends as uint8, where records begin in them, runs of N, counts of the input characters.

Bases are written into a buffer that is used again for the next piece, with room in front of them for the bases that the
caller carries over from the piece before. Work is done by bytes.replace and numpy on whole blocks: a table look-up per
base (bytes.translate) was measured at half the speed of the comparisons below.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from megadna.alphabet import LEGAL, PROTEIN_ONLY, SPACES, STORED

MAX_HEADER = 1 << 20
_LONG_HEADER = f"a header line is longer than {MAX_HEADER:,} bytes"
MANY_RECORDS = 16  # headers in a block from which splitting it at once is faster than searching header by header
_NO_RUNS = np.zeros(0, np.int64)
_MARK = b"\xef\xbb\xbf"  # what some editors put before UTF-8 text
_OTHER_TEXT = {
    b"@": "a FASTQ or SAM file",
    b"LOCUS": "a GenBank file",
    b"ID ": "an EMBL file",
    b"##": "a GFF or VCF file",
    b"<": "a web page",
}


class FastaError(Exception):
    """Text that is not nucleotide FASTA; byte `at` of `block` is the offending one, `offset` the block's own offset."""

    def __init__(self, message: str, offset: int, block: bytes, at: int) -> None:
        super().__init__(message)
        self.message, self.offset, self.block, self.at = message, offset, block, at


@dataclass
class Counts:
    """Bases of the input, before anything is left out."""

    bases: int = 0
    gc: int = 0
    n: int = 0
    soft_masked: int = 0
    other: dict[str, int] = field(default_factory=dict)
    """By upper-case character: IUPAC codes, U, gap characters."""

    def add(self, more: "Counts") -> None:
        """Add the counts of another piece."""
        self.bases += more.bases
        self.gc += more.gc
        self.n += more.n
        self.soft_masked += more.soft_masked
        for character, count in more.other.items():
            self.other[character] = self.other.get(character, 0) + count


@dataclass
class Piece:
    """What a part of the text contained; valid until the scanner starts the next one."""

    size: int
    """Bases."""
    positions: np.ndarray
    """int64 [R]: position of the first base of each record that begins in this piece."""
    headers: list[bytes]
    """R header lines without '>'."""
    run_starts: np.ndarray
    """int64: first base of each run of N; a run may continue in the next entry (blocks, records) or the next piece."""
    run_ends: np.ndarray
    """int64: end of each run of N, exclusive."""
    counts: Counts


class Scanner:
    """State of one pass over FASTA text. `buffer[headroom : headroom + size]` are the bases of the piece."""

    def __init__(self, buffer: np.ndarray, headroom: int, *, fold: bool) -> None:
        self.buffer, self.headroom = buffer, headroom
        self._fold = fold
        self._mask = np.empty(0, bool)
        self.start(0, at_line_start=True, in_record=False)
        self._new_piece()

    def start(self, offset: int, *, at_line_start: bool, in_record: bool) -> None:
        """Begin at byte `offset` of the text; `in_record` if there was a header before it."""
        self._offset = offset
        self._line_start = at_line_start
        self._header: bytes | None = None
        self._in_record = in_record

    def _new_piece(self) -> None:
        self.size = 0
        self._positions: list[np.ndarray] = [_NO_RUNS]
        self._headers: list[bytes] = []
        self._runs = [(_NO_RUNS, _NO_RUNS)]
        self._counts = Counts()

    def take(self) -> Piece:
        """The piece since the last call."""
        starts, ends = (np.concatenate(column) for column in zip(*self._runs, strict=True))
        self._counts.bases = self.size
        piece = Piece(self.size, np.concatenate(self._positions), self._headers, starts, ends, self._counts)
        self._new_piece()
        return piece

    def feed(self, block: bytes | bytearray) -> None:
        """Read one block; at most len(block) bases are added to the buffer. FastaError where it is not FASTA."""
        raw = block
        if self._offset == 0 and block.startswith(_MARK):
            block = block[len(_MARK) :]
        if block.find(b"\r") >= 0:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        try:
            self._feed(block)
        except _Illegal as error:
            raise self._explain(error.args[0], raw) from None
        self._offset += len(raw)

    def _feed(self, block: bytes | bytearray) -> None:
        at = 0
        if self._header is not None:
            at = self._continue_header(block)
        first = block.find(b">", at)
        if first >= 0 and block.find(b">", first + 1, first + len(block) // MANY_RECORDS) >= 0:
            at = self._many_records(block, at)
            first = block.find(b">", at)
        while first >= 0:
            self._sequence(block[at:first])
            if not (self._line_start if first == 0 else block[first - 1] == 10):
                raise _Illegal(">")
            self._header = b""
            at = self._continue_header(block, first + 1)
            first = block.find(b">", at)
        if at < len(block):
            self._sequence(block[at:] if at else block)
        if self._header is None and len(block):
            self._line_start = block[-1] == 10

    def _continue_header(self, block: bytes | bytearray, at: int = 0) -> int:
        """Read header text from `at`; the position after its line end, or the block's end where the line continues."""
        assert self._header is not None
        end = block.find(b"\n", at)
        self._header += bytes(block[at : end if end >= 0 else len(block)])
        if len(self._header) > MAX_HEADER:
            raise _Illegal(_LONG_HEADER)
        if end < 0:
            return len(block)
        self._positions.append(np.array([self.size]))
        self._headers.append(self._header)
        self._header, self._line_start, self._in_record = None, True, True
        return end + 1

    def _many_records(self, block: bytes | bytearray, at: int) -> int:
        """Read all records that end in the block at once; the position of the last record's '>' (or `at`: not
        possible)."""
        text = bytes(block)
        array = np.frombuffer(text, np.uint8)
        lines = np.flatnonzero(array == 10)
        inner = lines[lines.searchsorted(at - 1) : lines.searchsorted(len(text) - 1)]
        marks = inner[array[inner + 1] == 62] + 1
        if at == 0 and self._line_start and text.startswith(b">"):
            marks = np.append(0, marks)
        if len(marks) < MANY_RECORDS:
            return at
        before = lines.searchsorted(marks)
        ends = lines[before[:-1]]  # of the header lines
        starts, stops, nexts = (marks[:-1] + 1).tolist(), ends.tolist(), marks[1:].tolist()
        body = b"".join([text[stop:following] for stop, following in zip(stops, nexts, strict=True)])
        if any(body.find(bytes([odd])) >= 0 for odd in SPACES + b">"):
            return at  # '>' inside a sequence line, or blanks that shift the bases: record by record
        self._sequence(block[at : marks[0]])
        self._in_record = True
        num_bases = np.cumsum(marks[1:] - ends - np.diff(before))
        self._positions.append(np.append(0, num_bases[:-1]) + self.size)
        self._headers += [text[start:stop] for start, stop in zip(starts, stops, strict=True)]
        self._sequence(body)
        self._line_start = True
        return int(marks[-1])

    def _sequence(self, text: bytes | bytearray) -> None:
        """Write the bases of sequence lines (no header in them) into the buffer, checked and counted."""
        if not self._in_record:
            if text.translate(None, SPACES + b"\n"):
                raise _Illegal("text before the first header line (a line that begins with '>')")
            return
        view = self._bases(text)
        if len(view):
            self.size += self._count(view)

    def _bases(self, text: bytes | bytearray) -> np.ndarray:
        """The bases in the buffer; lines of one width are copied at once, four times as fast as bytes.replace. Line
        ends inside them (where a line is shorter by chance) stay, and are removed with the blanks."""
        buffer = self.buffer[self.headroom + self.size :]
        first = text.find(b"\n") + 1
        width = text.find(b"\n", first) - first
        rows = (len(text) - first) // (width + 1) if width > 0 else 0
        if rows and (np.ndarray(rows, np.uint8, text, first + width, (width + 1,)) == 10).all():
            head, tail = text[: max(0, first - 1)], text[first + rows * (width + 1) :].replace(b"\n", b"")
            begin, end = len(head), len(head) + rows * width
            buffer[begin:end].view(f"V{width}")[:] = np.ndarray(rows, f"V{width}", text, first, (width + 1,))
        else:
            head, tail = text.replace(b"\n", b""), b""
            end = len(head)
        size = end + len(tail)
        buffer[: len(head)] = np.frombuffer(head, np.uint8)
        buffer[end:size] = np.frombuffer(tail, np.uint8)
        return buffer[:size]

    def _count(self, view: np.ndarray) -> int:
        """Check and count bases in place; returns their number without the blanks inside lines."""
        counts, size = self._counts, len(view)
        if len(self._mask) < size:
            self._mask, self._work = np.empty(size, bool), np.empty(size, np.uint8)
        mask, work = self._mask[:size], self._work[:size]

        def equal_to(base: int) -> int:
            return int(np.count_nonzero(np.equal(work, base, out=mask)))

        np.bitwise_and(view, 0xDB, out=work)
        gc = equal_to(0x43)  # C, G, c, g and nothing else
        np.bitwise_and(view, 0xDF, out=work)
        rest = size - gc - equal_to(ord("A")) - equal_to(ord("T"))
        if rest and rest == equal_to(ord("N")):
            counts.n += rest
            self._add_runs(mask)
        elif rest:
            size = self._count_strange(view)
        counts.gc += gc
        counts.soft_masked += int(np.count_nonzero(np.greater(view[:size], 0x60, out=mask[:size])))
        if self._fold:
            np.bitwise_and(view[:size], 0xDF, out=view[:size])
        return size

    def _count_strange(self, view: np.ndarray) -> int:
        """Characters other than A, C, G, T, N are among them; returns the number of bases without blanks."""
        text = view.tobytes().translate(None, SPACES + b"\n")
        histogram = np.bincount(np.frombuffer(text.upper(), np.uint8), minlength=256)
        if histogram[~LEGAL].any():
            raise _Illegal("")
        self._counts.n += int(histogram[ord("N")])
        for character in np.flatnonzero(histogram).tolist():
            if character not in b"ACGTN":
                name = chr(character)
                self._counts.other[name] = self._counts.other.get(name, 0) + int(histogram[character])
        stored = view[: len(text)]
        stored[:] = np.frombuffer(text.translate(STORED), np.uint8)
        self._add_runs(np.bitwise_and(stored, 0xDF) == 0x4E)
        return len(text)

    def _add_runs(self, mask: np.ndarray) -> None:
        """Remember runs of N; `mask` marks N among the bases about to be added at self.size."""
        if len(mask):
            edges = np.flatnonzero(np.concatenate((mask[:1], mask[1:] != mask[:-1], mask[-1:]))) + self.size
            self._runs.append((edges[::2], edges[1::2]))

    def finish(self, *, last: bool) -> None:
        """End of the text (or of a range of it, which no header line crosses): a header without a line end is a record
        without bases."""
        if self._header is not None:
            if not last:
                raise self._explain(_LONG_HEADER, b"")
            self._continue_header(b"\n")

    def _explain(self, message: str, raw: bytes | bytearray) -> FastaError:
        """The error at the first offending byte of the block."""
        text = bytes(raw)
        if message and message != ">":
            blank = len(text) - len(text.removeprefix(_MARK).lstrip(b"\r\n" + SPACES))
            hints = (
                []
                if self._in_record
                else [what for begin, what in _OTHER_TEXT.items() if text[blank:].startswith(begin)]
            )
            message += "".join(f"; is it {what}?" for what in hints)
            return FastaError(message, self._offset, text, 0 if self._in_record else blank)
        begin = len(_MARK) if self._offset == 0 and text.startswith(_MARK) else 0
        at = begin + first_illegal(text[begin:], in_header=self._header is not None, line_start=self._line_start)
        character = text[at : at + 1]
        if character == b">":
            return FastaError("'>' inside a sequence line", self._offset, text, at)
        what = repr(character.decode("ascii")) if 32 < character[0] < 127 else f"byte 0x{character[0]:02x}"
        hint = "; is it a protein FASTA?" if character.upper() in [bytes([c]) for c in PROTEIN_ONLY] else ""
        hint = "; is it UTF-16 text, or a binary file?" if character == b"\0" else hint
        return FastaError(f"{what} is not a nucleotide code{hint}", self._offset, text, at)


class _Illegal(Exception):
    """Something in the block is not allowed; `first_illegal` then finds where."""


_ILLEGAL = re.compile(rb"[^ACGTNURYKMSWBDHVacgtnurykmswbdhv\-*. \t\v\f\r\n]")


def first_illegal(text: bytes, *, in_header: bool, line_start: bool) -> int:
    """Position of the first byte that is neither part of a header line nor a base; 0 if there is none."""
    at = 0
    while at < len(text):
        if in_header:
            ends = [end for end in (text.find(b"\n", at), text.find(b"\r", at)) if end >= 0]
            if not ends:
                return 0
            at, in_header, line_start = min(ends) + 1, False, True
        found = _ILLEGAL.search(text, at)
        if found is None:
            return 0
        position = found.start()
        starts_line = text[position - 1] in b"\r\n" if position else line_start
        if text[position] != ord(">") or not starts_line:
            return position
        at, in_header = position + 1, True
    return 0


def count_lines(blocks: Iterable[bytes], offset: int) -> int:
    """Line ends (LF, CRLF or CR) in the first `offset` bytes of the text."""
    lines, seen, last = 0, 0, b""
    for block in blocks:
        text = last + block[: offset - seen]
        seen += len(block)
        # Whether a final CR is half of a CRLF is known with the next block.
        last = b"\r" if text.endswith(b"\r") and seen < offset else b""
        text = text[: len(text) - len(last)]
        lines += text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
        if seen >= offset:
            break
    return lines
