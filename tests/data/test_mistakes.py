"""Every mistake of the user ends in one line that names the file and the remedy, and leaves nothing behind."""

import gzip
import random
import struct
from pathlib import Path

import pytest
import zstandard

import megadna.genome.pieces
from megadna.cli import main
from megadna.data.builder import build_dataset
from megadna.data.dataset import ChunkDataset
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError

GOOD = b">chr1\n" + b"ACGTTGCA" * 400 + b"\n>chr2\n" + b"GATTACA" * 300 + b"\n"
DATA = Path(__file__).parents[1] / "data"


def bgzf(text, size=500):
    """BGZF blocks (SAM specification, section 4.1)."""
    import zlib

    out = b""
    for part in [text[at : at + size] for at in range(0, len(text), size)] + [b""]:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(part) + packer.flush()
        head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
        out += head + body + struct.pack("<II", zlib.crc32(part), len(part))
    return out


def run(folder, data, name="x.fa", **values):
    source = folder / name
    if data is not None:
        source.write_bytes(data)
    values = {"chunk_length": 40, "valid_fraction": 0.1, "test_fraction": 0.1, "block_chunks": 1} | values
    return build_dataset(PreprocessOptions(input=[source], output=folder / "out", **values))


MISTAKES = [
    ("x.fa", None, "no such file"),
    ("x.fa", b"", "is empty"),
    ("x.fa", b"\n\n  \n", "is empty"),
    ("x.fa", b"ACGT\nACGT\n", "line 1: text before the first header"),
    ("x.fa", b"@r1\nACGT\n+\nIIII\n", "begins with '>'); is it a FASTQ or SAM file?"),
    ("x.fa", GOOD.decode().encode("utf-16-le"), "line 2: byte 0x00 is not a nucleotide code; is it UTF-16"),
    ("x.fa", b"\n\nACGT\n", "line 3: text before the first header"),
    ("x.fa", b">p\nMKVLAAGE\n", "line 2: 'L' is not a nucleotide code; is it a protein FASTA?"),
    ("x.fa", b">a\r\nACGT\r\n>b\r\nAC!T\r\n", "line 4: '!' is not a nucleotide code"),
    ("x.fa", b">a\nACGT\nAC\x00GT\n", "line 3: byte 0x00"),
    ("x.fa", b">a\nACGT\nAC>GT\n", "line 3: '>' inside a sequence line"),
    ("x.fa", b">a\nACGT\n1 ACGT\n", "line 3: '1' is not a nucleotide code"),
    ("x.fa.gz", gzip.compress(GOOD)[:-20], "cut short or damaged"),
    ("x.fa.gz", gzip.compress(b""), "is empty"),
    ("x.fa.gz", gzip.compress(GOOD + b">p\nACGTJ\n"), "line 6: 'J' is not a nucleotide code"),
    ("x.fa.bgz", bgzf(GOOD)[:-60], "cut short"),
    ("x.fa.zst", zstandard.compress(GOOD)[:-9], "cut short"),
    ("x.fa.xz", b"\xfd7zXZ\x00" + b"\x00" * 20, "packed as xz; unpack it"),
    ("x.2bit", b"\x43\x27\x41\x1a" + b"\x00" * 7, "2bit file is cut short"),
    ("x.csv", b"id,seq\n1,ACGT\n", "name the column"),
    ("x.parquet", b"PAR1garbage", "name the column"),
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("name", "data", "message"), MISTAKES, ids=[f"{m[0]}-{m[2][:20]}" for m in MISTAKES])
def test_mistakes(tmp_path, name, data, message, workers):
    with pytest.raises(UserError) as caught:
        run(tmp_path, data, name, workers=workers)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ([name] if data is not None else [])


def test_line_number_far_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 3000)
    text = b">a\r\n" + b"ACGTACGTAC\r\n" * 5000 + b"ACGX\r\n" + b"ACGT\r\n" * 100
    for workers in (1, 2):
        with pytest.raises(UserError, match="line 5002: 'X' is not a nucleotide code"):
            run(tmp_path, text, workers=workers)


def test_command_line_mistakes(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    genome = tmp_path / "g.fa"
    genome.write_bytes(GOOD)
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("precious")
    base = ["preprocess", "--chunk_length", "40", "--block_chunks", "1", "--output", str(tmp_path / "o"), "--input"]
    cases = [
        ([*base, str(tmp_path / "empty")], "no FASTA file in this folder"),
        ([*base, str(tmp_path / "*.fna")], "no file fits"),
        ([*base, str(genome), str(genome)], "given twice"),
        ([*base, str(genome), "--chunk_lenght", "9"], "did you mean chunk_length"),
        ([*base, str(genome), "--valid_fraction", "1.5"], "valid_fraction"),
        ([*base, str(genome), "--overlap", "40"], "did you mean"),
        ([*base, str(genome), "--contigs", "chr["], "regular expression"),
        ([*base, str(genome), "--exclude_bed", str(tmp_path / "no.bed")], "no such BED"),
        (["preprocess", "--output", str(tmp_path / "o")], "either --input or --sample_sheet"),
        (["preprocess", "--input", str(genome), "--output", str(full)], "not empty"),
        (["preprocess", "--input", str(genome), "--output", str(genome)], "is a file"),
        (["preprocess", "--input", str(genome), "--output", str(tmp_path / "o")], "no chunk is left for train"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and message in error and error.count("\n") == 1, (arguments, error)
    assert (full / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "o").exists() and not list(tmp_path.glob(".*"))


def test_second_run_does_nothing_and_overwrite_replaces(tmp_path):
    first, built = run(tmp_path, GOOD)
    stamp = (tmp_path / "out" / "train.bin").stat().st_mtime_ns
    again, built_again = run(tmp_path, None)
    assert built and not built_again and again == first
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match=r"not empty; .* say --overwrite: it is not this dataset"):
        run(tmp_path, None, seed=5)
    (tmp_path / "x.fa").write_bytes(GOOD.replace(b"GATTACA", b"GATTACC"))  # same size, other bases
    with pytest.raises(UserError, match=r"not empty; .* say --overwrite: it is not this dataset"):
        run(tmp_path, None)
    changed, built = run(tmp_path, None, overwrite=True)
    assert built and changed.dataset_id != first.dataset_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.fa"]


def test_harmless_oddities_are_counted(tmp_path):
    manifest, _ = run(tmp_path, GOOD + b">empty\n>chr1 again\n" + b"ACGT" * 20 + b"\n>")
    assert any("2 records have a header line but no sequence" in note for note in manifest.notes)
    assert any("1 record names occur more than once" in note for note in manifest.notes)
    assert manifest.sources[0].records == 5


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        kind, at = rng.randrange(6), rng.randrange(len(data) + 1)
        if kind == 0:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 1:
            del data[at : at + rng.randrange(1, 200)]
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 3:
            data[at:at] = rng.choice([b"\n>", b">", b"\r", b"\n", b"\x00", b"\n\n", b"N" * 90, b"*", b" "])
        elif kind == 4:
            data = data[:at]
        else:
            data += data[at : at + 300]
    return bytes(data)


def _fuzz(folder, count, seed):
    """Mutated files of every format: a whole dataset with all bases accounted for, or one line and no output."""
    rng = random.Random(seed)
    seeds = [
        ("x.fa", GOOD),
        ("x.fa", GOOD.replace(b"\n", b"\r\n")),
        ("x.fa.gz", gzip.compress(GOOD, mtime=0)),
        ("x.fa.bgz", bgzf(GOOD)),
        ("x.fa.zst", zstandard.compress(GOOD)),
        ("x.fa", gzip.decompress((DATA / "human_mt.fa.gz").read_bytes())[:6000]),
    ]
    built = failed = 0
    for number in range(count):
        name, data = seeds[number % len(seeds)]
        for old in folder.glob("x.*"):
            old.unlink()
        try:
            manifest, _ = run(folder, mutate(rng, data), name, overwrite=True)
        except UserError as error:
            failed += 1
            assert "\n" not in str(error) and not (folder / "out").exists(), number
        else:
            built += 1
            source = manifest.sources[0]
            assert source.kept + sum(source.dropped.values()) == source.bases, number
            assert len(ChunkDataset(folder / "out", "train")) == manifest.chunks["train"]
            for file in (folder / "out").iterdir():
                file.unlink()
            (folder / "out").rmdir()
        assert not (folder / ".out.partial").exists(), number
    return built, failed


def test_fuzz_quick(tmp_path, monkeypatch):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 700)
    built, failed = _fuzz(tmp_path, 150, seed=1)
    assert built > 20 and failed > 20


@pytest.mark.slow
def test_fuzz(tmp_path, monkeypatch):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 700)
    built, failed = _fuzz(tmp_path, 2400, seed=2)
    assert built > 400 and failed > 400
