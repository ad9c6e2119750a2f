"""Packed files: every form that is written in the field gives its text, what is cut or foreign is one line."""

import bz2
import gzip
import io
import lzma
import random
import struct
import sys
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from test_mistakes import GOOD, bgzf, mutate, run

from megadna.errors import UserError
from megadna.genome.packed import open_bytes, packing
from megadna.genome.sources import open_sequences, split_ranges, stream_blocks

TEXT = b">a\n" + b"ACGTTGCA\n" * 2000
MORE = b">b\n" + b"GATTACA\n" * 900
SKIP = struct.pack("<II", 0x184D2A50, 4) + b"pzst"  # the frame before each of pzstd's
LAST_SKIP = struct.pack("<II", 0x184D2A5F, 40_000) + bytes(40_000)
CUT = bgzf(TEXT)[:-28]  # a whole number of blocks

WHOLE = {
    "plain": (TEXT, TEXT),
    "gzip, two members": (gzip.compress(TEXT) + gzip.compress(MORE), TEXT + MORE),
    "gzip, filled up with zeros": (gzip.compress(TEXT) + bytes(300_000), TEXT),
    "gzip, zeros between members": (gzip.compress(TEXT) + bytes(70) + gzip.compress(MORE), TEXT + MORE),
    "bgzf": (bgzf(TEXT), TEXT),
    "bgzf, two files": (bgzf(TEXT) + bgzf(MORE), TEXT + MORE),
    "bgzf, then gzip": (bgzf(TEXT) + gzip.compress(MORE), TEXT + MORE),
    "bgzf, then gzip, then bgzf": (bgzf(TEXT) + gzip.compress(MORE) + bgzf(TEXT), TEXT + MORE + TEXT),
    "bgzf, filled up with zeros": (bgzf(TEXT) + bytes(300_000), TEXT),
    "bgzf, zeros, then gzip": (bgzf(TEXT) + bytes(99) + gzip.compress(MORE), TEXT + MORE),
    "bgzf without text": (bgzf(b""), b""),
    "gzip, then bgzf": (gzip.compress(TEXT) + bgzf(MORE), TEXT + MORE),
    "zstd": (zstandard.compress(TEXT), TEXT),
    "zstd, two frames": (zstandard.compress(TEXT) + zstandard.compress(MORE), TEXT + MORE),
    "pzstd": (SKIP + zstandard.compress(TEXT) + SKIP + zstandard.compress(MORE), TEXT + MORE),
    "zstd, skippable frames": (LAST_SKIP + SKIP + zstandard.compress(TEXT) + LAST_SKIP, TEXT),
    "zstd, skippable frames alone": (SKIP + LAST_SKIP, b""),
}

REFUSED = {
    "bgzf without its end": (CUT, "the BGZF file is cut short: it lacks its end block; fetch it again"),
    "bgzf without its end, zeros": (CUT + bytes(100), "lacks its end block"),
    "bgzf without its end, then gzip": (CUT + gzip.compress(MORE), "lacks its end block"),
    "bgzf cut within a block": (bgzf(TEXT)[:-40], "the BGZF file is cut short"),
    "bgzf cut within a block's head": (CUT[: CUT.rindex(b"\x1f\x8b\x08\x04") + 9], "the BGZF file is cut short"),
    "bgzf of one block, without its end": (bgzf(TEXT, 60_000)[:-28], "lacks its end block"),
    "bgzf, other bytes": (bgzf(TEXT) + b"<html>not found</html>", "other bytes follow its gzip data"),
    "bgzf, then a cut gzip": (bgzf(TEXT) + gzip.compress(MORE)[:-6], "cut short or damaged"),
    "bgzf, damaged": (bgzf(TEXT)[:20] + b"xyz" + bgzf(TEXT)[23:], "damaged"),
    "gzip, cut": (gzip.compress(TEXT)[:-3], "cut short or damaged"),
    "gzip, other bytes": (gzip.compress(TEXT) + b"<html>not found</html>", "other bytes follow its gzip data"),
    "zstd, cut": (zstandard.compress(TEXT)[:-3], "cut short or damaged"),
    "pzstd, cut within a skippable frame": (SKIP + zstandard.compress(TEXT) + SKIP[:9], "cut short or damaged"),
    "zstd, other bytes": (zstandard.compress(TEXT) + b"<html>not found</html>", "cut short or damaged"),
    "gzip of gzip": (gzip.compress(gzip.compress(TEXT)), "packed twice; unpack it once"),
    "bgzf of zstd": (bgzf(zstandard.compress(TEXT)), "packed twice; unpack it once"),
    "zstd of xz": (zstandard.compress(lzma.compress(TEXT)), "packed as xz; unpack it (unxz)"),
    "bam": (bgzf(b"BAM\x01" + bytes(40)), "a BAM or CRAM file"),
    "packed 2bit": (gzip.compress(b"\x43\x27\x41\x1a" + bytes(40)), "a packed 2bit file; unpack it"),
    "packed parquet": (gzip.compress(b"PAR1" + bytes(40)), "a packed Parquet file; unpack it"),
    "bzip2": (bz2.compress(TEXT), "packed as bzip2; unpack it (bunzip2)"),
    "xz": (lzma.compress(TEXT), "packed as xz; unpack it (unxz)"),
    "zip": (b"PK\x03\x04" + bytes(40), "packed as zip; unpack it (unzip)"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(40), "packed as lz4; unpack it (unlz4)"),
    "lz4, skippable frame": (SKIP + b"\x04\x22\x4d\x18" + bytes(40), "packed as lz4; unpack it (unlz4)"),
    "compress": (b"\x1f\x9d\x90" + bytes(40), "packed by compress (.Z); unpack it (gzip -d)"),
    "utf-16": (TEXT.decode().encode("utf-16"), "UTF-16 text; convert it (iconv"),
}


def both_ways(path: Path, size: int = 400) -> list[bytes | str]:
    """The text as one worker reads it and as several do; the message where it is a UserError."""
    found: list[bytes | str] = []
    for several in (False, True):
        try:
            source = open_sequences(path)
            if several and source.kind == "plain":
                ranges = split_ranges(path, size)
                found.append(b"".join(bytes(block) for part in ranges for block in stream_blocks(source, part)))
            else:
                found.append(b"".join(map(bytes, stream_blocks(source))))
        except UserError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("form", WHOLE)
def test_every_form_gives_its_text_to_one_worker_and_to_several(form: str, tmp_path: Path) -> None:
    data, text = WHOLE[form]
    path = tmp_path / "x"
    path.write_bytes(data)
    assert both_ways(path) == [text, text]
    with open_bytes(path) as file:
        assert file.read(5) + file.read() == text
    with open_bytes(path) as file:
        assert list(file) == text.splitlines(keepends=True)


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_whole_packed_text_is_one_line(form: str, tmp_path: Path) -> None:
    data, words = REFUSED[form]
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught, open_bytes(path) as file:
        file.read()
    for message in (str(caught.value), *both_ways(path)):
        assert isinstance(message, str) and message.startswith(f"{path}: ") and "\n" not in message
        assert words in message


def test_a_bgzf_file_cut_between_blocks_is_refused_by_the_builder(tmp_path: Path) -> None:
    """Without the end block nothing but a missing piece of the genome tells."""
    data = bgzf(GOOD)
    ends = [at for at in range(len(data)) if data.startswith(b"\x1f\x8b\x08\x04", at)][1:-1]
    for workers, end in ((1, ends[2]), (2, ends[2]), (1, ends[-1])):
        with pytest.raises(UserError, match="the BGZF file is cut short"):
            run(tmp_path, data[:end], "x.fa.gz", workers=workers)
    assert not (tmp_path / "out").exists()


def test_gzip_after_bgzf_is_the_same_dataset_for_one_worker_and_two(tmp_path: Path) -> None:
    more = b">chr3\n" + b"GATTACAT" * 300 + b"\n"
    plain = run(tmp_path, GOOD + more, "x.fa")[0].dataset_id
    for name, data in (("a.gz", bgzf(GOOD) + gzip.compress(more)), ("b.gz", bgzf(GOOD + more) + bytes(500))):
        for workers in (1, 2):
            assert run(tmp_path, data, name, workers=workers, overwrite=True)[0].dataset_id == plain


def test_a_missing_file_a_folder_and_packed_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file"):
        packing(tmp_path / "x")
    with pytest.raises(UserError, match="is a folder"):
        packing(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(TEXT))))
    with pytest.raises(UserError, match="standard input: packed; unpack it before the pipe"):
        list(stream_blocks(open_sequences(Path("-"))))


def fuzz(path: Path, count: int, seed: int) -> tuple[int, int]:
    """Mutated files: for one worker and several the same text, or a line of error for both."""
    rng = random.Random(seed)
    forms = [data for data, _ in WHOLE.values()] + [
        bgzf(GOOD, 90),
        gzip.compress(GOOD),
        SKIP + zstandard.compress(GOOD),
    ]
    read = refused = 0
    for number in range(count):
        path.write_bytes(mutate(rng, forms[number % len(forms)][:30_000]))
        one, several = both_ways(path, rng.choice([300, 3000]))
        if isinstance(one, str):
            refused += 1
            assert isinstance(several, str) and "\n" not in one + several, number
        else:
            read += 1
            assert one == several, number
        if b"\x1f\x8b" in path.read_bytes()[:2]:  # what zlib reads whole is the same text
            try:
                expected = gzip.decompress(path.read_bytes())
            except Exception:
                assert isinstance(one, str), number
            else:
                assert one == expected or isinstance(one, str), number
    return read, refused


def test_mutated_files_read_the_same_quick(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "x", 200, seed=3)
    assert read > 30 and refused > 60


@pytest.mark.slow
def test_mutated_files_read_the_same(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "x", 4000, seed=4)
    assert read > 500 and refused > 1000
