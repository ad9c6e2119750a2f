"""The builder against a slow reference on random FASTA text: every chunk, every split, every base accounted for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from slow_reference import expected, records_of

import megadna.genome.fasta
import megadna.genome.pieces
import megadna.genome.sources
from megadna.data.builder import build_dataset
from megadna.data.dataset import ChunkDataset
from megadna.data.manifest import SPLITS
from megadna.data.options import PreprocessOptions
from megadna.errors import UserError

LETTERS = st.text("ACGTacgtNn", max_size=60)
ODD = st.text("ACGTNnNNNNNRYKMSWBDHVUryu-*. \t", max_size=30)
RUN = st.integers(1, 40).map(lambda n: "N" * n)
SEQUENCE = st.lists(st.one_of(LETTERS, LETTERS, ODD, RUN), max_size=8).map("".join)


@st.composite
def fasta(draw, max_records=5):
    """FASTA text with all oddities at once."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = draw(st.sampled_from([[], [""], ["", " "]]))[:]
    for number in range(draw(st.integers(1, max_records))):
        lines.append(
            ">"
            + draw(st.sampled_from(["chr", "c>x", "scaffold_"]))
            + str(number)
            + draw(st.sampled_from(["", " text > more", "\tx"]))
        )
        sequence = draw(SEQUENCE)
        width = draw(st.sampled_from([1, 3, 7, 60, 10_000]))
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)]
        lines += draw(st.sampled_from([[], [], [""]]))
    return end.join(lines) + draw(st.sampled_from(["", end, end + end]))


@st.composite
def policies(draw):
    return {
        "chunk_length": draw(st.integers(8, 30)),
        "min_tail": draw(st.sampled_from([1, 1, 5, 100])),
        "block_chunks": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
        "valid_fraction": draw(st.sampled_from([0.1, 0.3])),
        "test_fraction": draw(st.sampled_from([0.1, 0.25])),
    }


def _build(folder, text, pieces, **values):
    source = folder / "genome.fa"
    source.write_bytes(text.encode())
    megadna.genome.pieces.PIECE, megadna.genome.pieces.BLOCK = pieces
    megadna.genome.sources.MAX_HEADER = pieces[1] % 50 + 24  # longer than the headers: ranges may begin inside lines
    megadna.genome.fasta.MANY_RECORDS = 2 + pieces[1] % 3
    output = folder / "out"
    options = PreprocessOptions(input=[source], output=output, contigs="all", overwrite=True, **values)
    return options, build_dataset(options)[0]


def _chunks(folder, manifest):
    """(record number, start, letters, split) of every chunk, and the contig rows."""
    found = []
    for split, name in enumerate(SPLITS):
        if manifest.chunks[name]:
            dataset = ChunkDataset(folder / "out", name)
            for index in range(len(dataset)):
                row = dataset.contigs.row_of(name, index)
                found.append((row, int(dataset.starts[index]), bytes(dataset[index]).decode(), split))
                assert dataset.locate(index)[2:] == (found[-1][1], found[-1][1] + len(found[-1][2]))
    return found


@pytest.fixture(autouse=True)
def _restore_sizes():
    places = [
        (megadna.genome.pieces, "PIECE"),
        (megadna.genome.pieces, "BLOCK"),
        (megadna.genome.fasta, "MANY_RECORDS"),
        (megadna.genome.sources, "MAX_HEADER"),
    ]
    sizes = [getattr(module, name) for module, name in places]
    yield
    for (module, name), size in zip(places, sizes, strict=True):
        setattr(module, name, size)


def _compare(folder, text, pieces, values, include=None, exclude=None):
    options = PreprocessOptions(input=[Path("x")], output=folder, **values)
    want = expected(text, options, include, exclude)
    try:
        _, manifest = _build(folder, text, pieces, **values)
    except UserError as error:
        assert "too few chunks" in str(error) or "no chunk is left" in str(error)
        assert not (folder / "out").exists()
        return
    got = _chunks(folder, manifest)
    source = manifest.sources[0]
    stolen = any("would have been empty" in note for note in manifest.notes)
    key = (lambda chunk: chunk[:3]) if stolen else (lambda chunk: chunk)
    assert sorted(map(key, got)) == sorted(map(key, want.chunks))
    assert dict(source.dropped) == want.dropped
    assert (source.bases, source.gc, source.n, source.soft_masked) == (want.bases, want.gc, want.n, want.soft_masked)
    assert dict(source.other) == want.other
    assert source.records == len(want.records)
    assert source.kept + sum(source.dropped.values()) == source.bases


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=fasta(), values=policies(), piece=st.integers(1, 64), block=st.integers(1, 256))
def test_random_fasta(tmp_path_factory, text, values, piece, block):
    _compare(tmp_path_factory.mktemp("x"), text, (piece, block), values)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=fasta(), values=policies(), data=st.data())
def test_random_bed(tmp_path_factory, text, values, data):
    folder = tmp_path_factory.mktemp("x")
    records = {name: len(letters) for name, letters in records_of(text) if letters}
    assume(records)
    beds, spoilt = {}, None
    for kind in data.draw(st.sampled_from([("include",), ("exclude",), ("include", "exclude")])):
        intervals = []
        for name in data.draw(st.lists(st.sampled_from(sorted(records)), min_size=1, max_size=6)):
            start = data.draw(st.integers(0, records[name] - 1))
            intervals.append((name, start, data.draw(st.integers(start + 1, records[name]))))
        wrong = data.draw(st.sampled_from([None] * 9 + [("chr9", 0, 5), (name, 3, 3), (name, 0, records[name] + 1)]))
        intervals, spoilt = ([*intervals, wrong], wrong) if wrong else (intervals, spoilt)
        beds[kind] = {}
        for name, start, end in intervals:
            beds[kind].setdefault(name, []).append((start, end))
        (folder / kind).write_text("".join(f"{name}\t{start}\t{end}\n" for name, start, end in intervals))
        values[f"{kind}_bed"] = folder / kind
    pieces = data.draw(st.integers(1, 64)), data.draw(st.integers(1, 64))
    if not spoilt:
        _compare(folder, text, pieces, values, **beds)
        return
    with pytest.raises(UserError, match=r"line \d: (no contig chr9|the interval 3-3 holds no base|\S+ ends at)"):
        _build(folder, text, pieces, **values)
    assert not (folder / "out").exists()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=fasta(8), values=policies(), piece=st.integers(3, 64), workers=st.integers(2, 3))
def test_workers_write_the_same_bytes(tmp_path_factory, text, values, piece, workers):
    folder = tmp_path_factory.mktemp("x")
    outcomes = []
    for count in (1, workers):
        try:
            _build(folder, text, (piece, piece), workers=count, **values)
        except UserError as error:
            outcomes.append(str(error))
            continue
        files = sorted((folder / "out").iterdir())
        outcomes.append([(file.name, file.read_bytes()) for file in files])
    assert outcomes[0] == outcomes[1]


def test_index_is_byte_identical_to_megatron(tmp_path):
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    text = ">a\nACGTACGTNNNACGTTTGACGTACGTACGTTAGGCAATC\n>b\nAC\n>c\nTTGACATTTACCGAGTTTACGAGGTAC\n"
    _build(tmp_path, text, (1 << 20, 1 << 10), chunk_length=8, valid_fraction=0.0, test_fraction=0.0)
    dataset = ChunkDataset(tmp_path / "out", "train")
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint8)
    row = 0
    for index in range(len(dataset)):
        if dataset.contigs.row_of("train", index) != row:
            builder.end_document()
            row = dataset.contigs.row_of("train", index)
        builder.add_item(torch.from_numpy(dataset[index].copy()))
    builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    for kind in ("bin", "idx"):
        assert (tmp_path / f"theirs.{kind}").read_bytes() == (tmp_path / "out" / f"train.{kind}").read_bytes()
    theirs = IndexedDataset(str(tmp_path / "out" / "train"))
    assert [bytes(theirs[i]) for i in range(len(theirs))] == [bytes(dataset[i]) for i in range(len(dataset))]
