"""The reader of a dataset folder: mapped, picklable, clear about faults, and quick however many chunks there are."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import build, fasta, genome

from megadna.commands.inspect import main
from megadna.data.dataset import check_rising
from megadna.data.dataset import ChunkDataset
from megadna.data.manifest import dataset_identity, load_manifest
from megadna.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "g.fa").write_bytes(fasta({"a": genome(9_030), "b": genome(20), "c": genome(4_000)}))
    build(tmp_path, tmp_path / "g.fa")
    return tmp_path / "out"


def test_chunks_are_read_only_views(folder):
    dataset = ChunkDataset(folder, "train")
    assert dataset.lengths.dtype == np.int32 and len(dataset) == dataset.manifest.chunks["train"]
    chunk = dataset[5]
    assert chunk.dtype == np.uint8 and chunk.base is not None and not chunk.flags.writeable
    assert (dataset[-1] == dataset[len(dataset) - 1]).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    again = pickle.loads(pickle.dumps(dataset))
    assert all((again[i] == dataset[i]).all() for i in range(len(dataset)))
    assert len(pickle.dumps(dataset)) < 10_000  # no letters travel to a loader worker
    assert {dataset.locate(i).contig for i in range(len(dataset))} == {"a", "b", "c"}
    with pytest.raises(UserError, match="no chunk 99999"):
        dataset.locate(99_999)


def test_locate_without_the_table_is_the_same(folder, capsys):
    for split in ("train", "valid", "test"):
        dataset, alone = ChunkDataset(folder, split), ChunkDataset(folder, split)
        places = [dataset.locate(i) for i in range(len(dataset))]
        assert places == [alone.locate(i, keep_table=False) for i in range(len(dataset))]
        assert "contigs" not in vars(alone)
    main([str(folder), "--locate", "train:0"])
    first = ChunkDataset(folder, "train").locate(0)
    assert capsys.readouterr().out == f"{first.contig}:{first.start + 1}-{first.end}\t{first.source}\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [lines[0].replace("record", "name"), *lines[1:]], "line 1: damaged"),
        (lambda lines: [*lines[:2], "g\tb\t20\n", *lines[2:]], "line 3: damaged"),
        (lambda lines: [*lines[:-1], lines[-1].rstrip("\n")], "line 4: damaged"),
        (lambda lines: [lines[0], "g\ta\t9\tx\t1\t\t\t\t\n"], "'x' is no number"),
        (lambda lines: [lines[0], lines[1], lines[1]], "train columns do not rise"),
        (lambda lines: None, "contigs.tsv: missing"),
    ],
)
def test_a_damaged_table_of_records_is_named(folder, damage, message):
    file = folder / "contigs.tsv"
    lines = damage(file.read_text().splitlines(keepends=True))
    file.write_text("".join(lines)) if lines else file.unlink()
    with pytest.raises(UserError, match=message):
        check_rising(file)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak memory")
def test_locating_among_many_records_takes_no_memory(tmp_path):
    """`inspect --locate` and `inspect` of 200,000 short records stay below 100 MB; the table alone would add 80."""
    records = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), (200_000, 60))
    text = b"".join(b">contig_%07d\n%s\n" % (number, row.tobytes()) for number, row in enumerate(records))
    (tmp_path / "g.fa").write_bytes(text)
    build(tmp_path, tmp_path / "g.fa", chunk_length=64)
    code = "import sys; from megadna.cli import main; main(sys.argv[1:]); print(open('/proc/self/status').read())"
    for words in (["--locate", "train:150000"], []):
        command = [sys.executable, "-c", code, "inspect", str(tmp_path / "out"), *words]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert int(re.search(r"VmHWM:\s+(\d+) kB", printed)[1]) < 100_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "not a finished dataset"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not a manifest, or damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"format_version": 99}'), "upgrade megadna"),
        (lambda folder: (folder / "manifest.json").write_text('{"format_version": 1}'), "not a manifest, or damaged"),
        (lambda folder: (folder / "train.bin").unlink(), "train.bin: missing"),
        (lambda folder: os.truncate(folder / "train.bin", 100), "does not fit manifest.json"),
        (lambda folder: os.truncate(folder / "train.idx", 100), "not a whole uint8 index"),
        (lambda folder: os.truncate(folder / "train.idx", 10), "cut short"),
        (lambda folder: os.truncate(folder / "train.idx", 0), "empty"),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        ChunkDataset(folder, "train")
    assert str(folder) in str(caught.value)


def test_missing_folder_and_split(folder):
    with pytest.raises(UserError, match="no such dataset folder"):
        ChunkDataset(folder / "nope", "train")
    with pytest.raises(UserError, match="no split 'dev'"):
        ChunkDataset(folder, "dev")
    build(folder.parent, folder.parent / "g.fa", output="no_test", test_fraction=0.0)
    with pytest.raises(UserError, match="holds no test chunks"):
        ChunkDataset(folder.parent / "no_test", "test")


def test_manifest_identity_and_ranges(folder):
    manifest = load_manifest(folder)
    assert manifest.dataset_id == dataset_identity(manifest.files)
    assert manifest.sources[0].ranges == {split: (0, count) for split, count in manifest.chunks.items()}
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw["options"]["chunk_length"] == 50 and raw["sources"][0]["sha256"] and raw["program_version"]


OPENING = """
import json, sys, time, psutil
from megadna.commands.inspect import main
from megadna.data.dataset import check_rising
from megadna.data.dataset import ChunkDataset
process = psutil.Process()
before, began = process.memory_full_info().uss, time.perf_counter()
dataset = ChunkDataset(sys.argv[1], "train")
dataset[len(dataset) // 2].sum(), dataset[len(dataset) - 1].sum()
print(json.dumps([time.perf_counter() - began, process.memory_full_info().uss - before, len(dataset)]))
"""


@pytest.mark.slow
def test_opening_44_million_chunks(folder):
    count = 44_000_000
    with (folder / "train.idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 1, count, 2))
        file.write(np.full(count, 4000, np.int32).tobytes())
        file.write((np.arange(count, dtype=np.int64) * 4000).tobytes())
        file.write(np.array([0, count], np.int64).tobytes())
    os.truncate(folder / "train.bin", count * 4000)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["chunks"]["train"], manifest["bases"]["train"] = count, count * 4000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, "-c", OPENING, str(folder)], capture_output=True, check=True)
    seconds, size, length = json.loads(done.stdout)
    assert length == count and seconds < 2 and size < 100e6
