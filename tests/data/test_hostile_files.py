"""Files that a stranger may have damaged or made up: genomes, tables, sample sheets, dataset folders."""

import csv
import json
import random
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hostile import mutated, refused
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import build, fasta, genome, twobit

from megadna.cli import main
from megadna.data.dataset import ChunkDataset
from megadna.data.inputs import find_sources
from megadna.data.manifest import SPLITS, load_manifest
from megadna.data.options import PreprocessOptions
from megadna.downstream.tasks import read_table
from megadna.genome import tables
from megadna.genome.sources import twobit_blocks
from megadna.genome.tables import table_blocks, text_batches

RECORDS = {"a": genome(701), "b": b"NNNNN" + genome(300).lower() + b"NN" + genome(61), "c": genome(4)}
COLUMN = "sequence"


def size_of(blocks):
    return sum(map(len, blocks))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "g.fa").write_bytes(fasta({"a": genome(9_030), "b": genome(20), "c": genome(4_000)}))
    build(folder, folder / "g.fa", leakage="report")
    return folder / "out"


@pytest.fixture
def copy(dataset, tmp_path):
    return Path(shutil.copytree(dataset, tmp_path / "copy"))


HEAD = struct.pack("<IIII", 0x1A412743, 0, 1, 0)


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"\x01a" + struct.pack("<III", 22, 8, 2**32 - 1),  # blocks of N, 34 GB of them
        HEAD + b"\x01a" + struct.pack("<III", 2**32 - 1, 8, 0),  # a record past the end
        HEAD + b"\x01a" + struct.pack("<IIIIII", 22, 2**32 - 1, 0, 0, 0, 0),  # 4 billion bases
        HEAD + b"\x01a" + struct.pack("<7I", 22, 8, 1, 4, 5, 0, 0) + b"\x00\x00",  # a block past the end
        HEAD + b"\x01a" + struct.pack("<9I", 22, 8, 2, 4, 1, 2, 2, 0, 0) + b"\x00\x00",  # blocks out of order
        HEAD + b"\x03a\nb" + struct.pack("<IIIII", 24, 4, 0, 0, 0) + b"\x00",  # a name of two lines
        HEAD[:8] + struct.pack("<II", 2**32 - 1, 0),  # 4 billion names
        struct.pack("<IIII", 0x1A412743, 1, 1, 0) + b"\x01a" + b"\xff" * 8,  # 64-bit offset past what a file can have
    ],
)
def test_a_2bit_file_that_claims_more_than_it_has(tmp_path, data):
    (tmp_path / "x.2bit").write_bytes(data)
    assert "cut short or damaged" in refused(lambda: size_of(twobit_blocks(tmp_path / "x.2bit")))


def test_records_of_a_2bit_file_share_no_bytes(tmp_path):
    names = [b"%05d" % number for number in range(2_000)]
    offset = 16 + 10 * len(names)
    index = b"".join(b"\x05" + name + struct.pack("<I", offset) for name in names)
    record = struct.pack("<IIII", 400_000, 0, 0, 0) + bytes(100_000)
    path = tmp_path / "x.2bit"
    path.write_bytes(struct.pack("<IIII", 0x1A412743, 0, len(names), 0) + index + record)
    assert "cut short or damaged" in refused(lambda: size_of(twobit_blocks(path)))


def repeated(path, rows, text, **options):
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])
    table = pa.table({"sequence": values, "label": pa.array(np.arange(rows) % 2)})
    parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, **options)
    return path


def test_a_small_parquet_of_repeated_rows_is_read_by_bytes(tmp_path):
    """1 kB of Parquet are 90 MB of letters, or any number, of which a batch of rows is held."""
    for store_schema in (True, False):
        path = repeated(tmp_path / "x.parquet", 30, "ACGT" * 750_000, store_schema=store_schema)
        assert path.stat().st_size < 1500
        blocks = text_batches(path, "sequence")
        assert [batch.num_rows for batch in blocks] == [5] * 6
        assert size_of(table_blocks(path, COLUMN)) == 30 * 3_000_000 + size_of(b">row_%d\n\n" % n for n in range(1, 31))
    path = repeated(tmp_path / "x.parquet", 200, "ACGT" * 750_000)
    message = refused(lambda: read_table(path))
    assert message.startswith(f"{path}: ") and "bytes unpack to 60" in message and "not read" in message
    path = repeated(tmp_path / "small.parquet", 400, "ACGT" * 10)
    assert len(read_table(path)) == 400


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_every_encoding_of_parquet_gives_its_rows(tmp_path, encoding):
    rows = [genome(60 + number).decode() for number in range(1_500)]
    table = pa.table({"sequence": rows})
    parquet.write_table(table, tmp_path / "x.parquet", use_dictionary=False, column_encoding={"sequence": encoding})
    lines = b"".join(table_blocks(tmp_path / "x.parquet", COLUMN)).decode().split("\n")
    assert lines[1::2] == rows


def test_a_page_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_SMALL", 1 << 23)
    values = pa.array(["A" * 1_000_000]).take(pa.array(np.zeros(15, np.int64)))
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"sequence": values}), path, compression="zstd", use_dictionary=False)
    assert "not read" in refused(lambda: size_of(table_blocks(path, COLUMN)))


def test_a_column_of_something_else_is_no_text(tmp_path):
    parquet.write_table(pa.table({"sequence": [[1, 2], [3]]}), tmp_path / "x.parquet")
    message = refused(lambda: size_of(table_blocks(tmp_path / "x.parquet", COLUMN)))
    assert "column 'sequence' holds list" in message and "not text" in message


def test_long_cells_of_tables_are_read(tmp_path):
    for size in (131_072, 131_073, 3_000_000):
        text = genome(size).decode()
        (tmp_path / "x.csv").write_text(f"sequence,label\n{text},1\nACGT,0\n")
        assert read_table(tmp_path / "x.csv")["sequence"].tolist() == [text, "ACGT"]
        assert size_of(table_blocks(tmp_path / "x.csv", COLUMN)) == size + 4 + len(">row_1\n\n") * 2


def test_a_table_of_too_many_columns_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("sequence,label" + ",c" * 100_000 + "\nACGT,1" + ",1" * 100_000 + "\n")
    assert "more than 5,000 columns" in refused(lambda: read_table(tmp_path / "x.csv"))


def sheet(path, content):
    path.write_bytes(content)
    options = PreprocessOptions(sample_sheet=path, output=path.parent / "out")
    return refused(lambda: find_sources(options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path\tspecies\ng.fa\tcaf\u00e9\n".encode("latin-1"),
            "line 2: not UTF-8 (byte 0xe9); save the sheet as UTF-8",
        ),
        (b"path\tspecies\ng.fa\tx\ng.fa\t" + b"y" * 131_073 + b"\n", "line 3: no row of a sample sheet"),
        (b"\xff\xfep\x00a\x00", "line 1: not UTF-8"),
        (b"path\tspecies\ng.fa\t\x00\n", ""),
    ],
)
def test_a_sample_sheet_that_is_no_text_names_the_line(tmp_path, content, message):
    (tmp_path / "g.fa").write_bytes(fasta({"a": genome(90)}))
    csv.field_size_limit(131_072)  # Python's own, which scipy.io lifts
    assert message in sheet(tmp_path / "samples.tsv", content)


def change(path, *keys, value):
    """A manifest with another value."""
    manifest = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["chunks", "train"], "12", "chunks.train is not a count but '12'"),
        (["chunks", "train"], -1, "chunks.train is not a count"),
        (["chunks", "train"], 1e300, "chunks.train is not a count"),
        (["chunks", "train"], True, "chunks.train is not a count"),
        (["chunks"], {"train": 4}, "no key chunks.valid"),
        (["chunk_length"], 0, "chunk_length is 0"),
        (["chunk_length"], None, "chunk_length is not a count but None"),
        (["format_version"], "1", "format_version is not a count"),
        (["format_version"], [[1]], "format_version is not a count"),
        (["sources"], {}, "sources is not a list"),
        (["sources", 0], [], "sources[0] is not an object"),
        (["sources", 0, "bases"], 2**70, "sources[0].bases is not a count"),
        (["sources", 0, "ranges", "train"], [1], "sources[0].ranges.train is not a list of 2"),
        (["sources", 0, "ranges", "train"], [0, 10**12], "sources[0].ranges.train is not within"),
        (["sources", 0, "taxa"], {"x": 1}, "sources[0].taxa.x is not text"),
        (["sources", 0, "evil"], 1, "unknown key sources[0].evil"),
        (["files", "../../other"], {"size": 1, "xxh128": ""}, "'../../other' is not the name of a file"),
        (["files", "train.bin"], 7, "files.train.bin is not an object"),
        (["notes"], "text", "notes is not a list"),
        (["leakage"], {"splits": {"valid": 1}}, "leakage.splits.valid"),
        (["options"], [], "options is not an object"),
    ],
)
def test_a_manifest_names_the_key_that_is_wrong(copy, capsys, keys, value, message):
    change(copy / "manifest.json", *keys, value=value)
    assert message in refused(lambda: load_manifest(copy))
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(copy)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[]", "3", '{"a": ' + "9" * 5_000 + "}", "\xff"])
def test_a_manifest_that_is_no_object_is_refused(copy, text):
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "not a manifest, or damaged" in (message := refused(lambda: load_manifest(copy))) or "not UTF-8" in message


def test_an_index_that_points_elsewhere_is_named(copy):
    whole = (copy / "train.idx").read_bytes()
    count = len(ChunkDataset(copy, "train"))
    for at, value in ((34, -5), (34, 2**31 - 1), (34 + 4 * count, 2**40), (34 + 4 * count, -1)):
        data = bytearray(whole)
        data[at : at + 4 + 4 * (at > 34)] = value.to_bytes(4 + 4 * (at > 34), "little", signed=True)
        (copy / "train.idx").write_bytes(data)
        assert "chunk 0 lies outside the .bin file" in refused(lambda: ChunkDataset(copy, "train")[0])
    (copy / "train.idx").write_bytes(whole)
    for array in (np.zeros(3, np.uint64), np.zeros(count), np.array([None] * count)):
        np.save(copy / "train.start.npy", array, allow_pickle=True)
        assert "train.start.npy: not a" in refused(lambda: ChunkDataset(copy, "train").starts)


def read_everything(folder):
    """What training, `inspect` and a report read."""
    for split in SPLITS:
        data = ChunkDataset(folder, split)
        for index in range(0, len(data), 7):
            data[index].sum()
            data.locate(index)


def fuzz(tmp_path, dataset, count, seed):
    """Damage one file at a time; how many are read and how many refused."""
    rng, read, refusals = random.Random(seed), 0, 0
    table = pa.table({"sequence": [genome(n).decode() for n in (70, 120, 31)] * 3, "label": ["a", "b", "c"] * 3})
    parquet.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.2bit").write_bytes(twobit(RECORDS))
    (tmp_path / "samples.tsv").write_bytes(b"path\tspecies\tsplit\ng.fa\tx\ttrain\n\t\t\n")
    (tmp_path / "g.fa").write_bytes(fasta(RECORDS))
    options = PreprocessOptions(sample_sheet=tmp_path / "samples.tsv", output=tmp_path / "out")
    readers = {
        tmp_path / "x.2bit": lambda: size_of(twobit_blocks(tmp_path / "x.2bit")),
        tmp_path / "x.parquet": lambda: (
            size_of(table_blocks(tmp_path / "x.parquet", COLUMN)),
            read_table(tmp_path / "x.parquet"),
        ),
        tmp_path / "samples.tsv": lambda: find_sources(options),
    }
    names = ("manifest.json", "train.idx", "train.start.npy", "contigs.tsv")
    readers |= {dataset / name: lambda: read_everything(dataset) for name in names}
    whole = {path: path.read_bytes() for path in readers}
    for number in range(count):
        path = list(readers)[number % len(readers)]
        path.write_bytes(mutated(whole[path], rng))
        if refused(readers[path]):
            refusals += 1
        else:
            read += 1
        path.write_bytes(whole[path])
    return read, refusals


def test_fuzz_quick(tmp_path, copy):
    read, refusals = fuzz(tmp_path, copy, 420, seed=1)
    assert read > 30 and refusals > 150


@pytest.mark.slow
def test_fuzz(tmp_path, copy):
    read, refusals = fuzz(tmp_path, copy, 4_000, seed=2)
    assert read > 200 and refusals > 1_500
