"""Copies that the chunk grid hides are found by sketches: shifted, reverse-complemented, and with substitutions."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import build, chunks, fasta, genome

from megadna.cli import main
from megadna.data.dataset import ChunkDataset
from megadna.data.leakage import kmer_codes
from megadna.data.manifest import load_manifest

COMPLEMENT = bytes.maketrans(b"ACGT", b"TGCA")


def test_codes_against_a_slow_one():
    letters = genome(300) + b"N" + genome(40).lower() + b"RA"
    codes, good = kmer_codes(np.frombuffer(letters, np.uint8))
    for place in range(len(letters) - 30):
        word = letters[place : place + 31].upper()
        assert good[place] == (not set(word) - set(b"ACGT"))
        if good[place]:
            values = [
                sum(b"ACGT".index(c) << 2 * (30 - i) for i, c in enumerate(w))
                for w in (word, word.translate(COMPLEMENT)[::-1])
            ]
            assert codes[place] == min(values)


def _mutated(text, share):
    rng = np.random.default_rng(3)
    letters = np.frombuffer(text, np.uint8).copy()
    places = np.flatnonzero(rng.random(len(letters)) < share)
    letters[places] = np.frombuffer(genome(len(places), rng), np.uint8)
    return letters.tobytes()


@pytest.mark.parametrize("kind", ["shifted", "reversed", "mutated", "unrelated"])
def test_a_copy_is_flagged(tmp_path, kind):
    text = genome(60_000, np.random.default_rng(1))
    copy = {
        "shifted": text[1:],
        "reversed": text.translate(COMPLEMENT)[::-1],
        "mutated": _mutated(text, 0.0133),  # 1 % of the bases change: a quarter of the draws gives the same letter
        "unrelated": genome(60_000, np.random.default_rng(2)),
    }[kind]
    for name, letters in (("held", text), ("other", copy)):
        (tmp_path / f"{name}.fa").write_bytes(fasta({name: letters}))
    inputs = tmp_path / "held.fa", tmp_path / "other.fa"
    values = {"chunk_length": 4000, "split": "genome", "test": ["held"], "leakage": "report"}
    manifest = build(tmp_path, *inputs, **values)
    shares = np.load(tmp_path / "out" / "test.containment.npy")
    assert len(shares) == manifest.chunks["test"] == 15
    low, high = {"shifted": (1.0, 1.0), "reversed": (1.0, 1.0), "mutated": (0.5, 0.95), "unrelated": (0.0, 0.0)}[kind]
    assert low <= shares.mean() <= high
    assert manifest.leakage["flagged"] == (0 if kind == "unrelated" else 15)
    letters = {key[0] for key in chunks(tmp_path)}
    assert letters == {"held", "other"}


@pytest.mark.parametrize("workers", [1, 2])
def test_dropping(tmp_path, workers):
    text = genome(40_000, np.random.default_rng(1))
    (tmp_path / "held.fa").write_bytes(fasta({"held": text}))
    (tmp_path / "other.fa").write_bytes(
        fasta({"first": genome(30_000), "copy": genome(2_000) + text[10_000:22_000] + genome(5_000)})
    )
    inputs = tmp_path / "held.fa", tmp_path / "other.fa"
    values = {"chunk_length": 4000, "split": "genome", "test": ["held"], "workers": workers}
    for mode, dropped in (("drop_from_heldout", ("held", {"leakage": 16_000})), ("drop_from_train", ("other", None))):
        manifest = build(tmp_path, *inputs, leakage=mode, overwrite=True, **values)
        assert manifest.leakage["flagged"] == 0 and manifest.leakage["flagged_before"] == 4
        source = next(source for source in manifest.sources if source.name == dropped[0])
        assert source.dropped == (dropped[1] or {"leakage": 16_000})
        assert source.kept + sum(source.dropped.values()) == source.bases


def test_inspect_says_what_a_folder_seems_to_be(tmp_path, capsys):
    build_folder = tmp_path / ".out.partial"
    for folder, file in (
        ("fa", "x.fna.gz"),
        ("hf", "config.json"),
        ("notes", "a.txt"),
        ("empty", None),
        ("up/d", "manifest.json"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        if file:
            (tmp_path / folder / file).write_text("")
    (build_folder / "parts").mkdir(parents=True)
    (build_folder / "options.json").write_text("{}")
    for folder, hint in {
        "fa": "it holds sequences (x.fna.gz): megadna preprocess",
        "hf": "Hugging Face model: megadna evaluate",
        "notes": "it holds a.txt",
        "empty": "it is empty",
        "up": f"did you mean {tmp_path / 'up' / 'd'}?",
        ".out.partial": "an interrupted build",
        "nothing": "there is no such folder",
        "notes/a.txt": "it is a file",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(tmp_path / folder)])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and "no manifest.json" in error and hint in error and error.count("\n") == 1


def test_inspect_and_leakage_commands(tmp_path, capsys):
    text = genome(40_000, np.random.default_rng(1))
    (tmp_path / "x.fa").write_bytes(fasta({"chr1": text + text[:20_000]}))
    build(tmp_path, tmp_path / "x.fa", chunk_length=1000, block_chunks=1)
    out = str(tmp_path / "out")
    main(["inspect", out, "--leakage", "--verify"])
    printed = capsys.readouterr().out
    assert "leakage:" in printed and "every checksum fits" in printed
    assert load_manifest(out).leakage["flagged"] > 0
    dataset = ChunkDataset(out, "valid")
    place = dataset.locate(1)
    main(["inspect", out, "--locate", "valid:1"])
    assert capsys.readouterr().out == f"chr1:{place.start + 1}-{place.end}\tx\n"
    table = tmp_path / "bench.csv"
    train = ChunkDataset(out, "train")
    inside = [bytes(train[i][100:170]).decode() for i in range(0, 30, 3)]
    table.write_text(
        "sequence,label\n" + "".join(f"{row},1\n" for row in [*inside, *(genome(70).decode() for _ in range(10))])
    )
    main(["leakage", "--data", out, "--input", str(table), "--output", str(tmp_path / "o.tsv")])
    assert "10 of 20 sequences (50.00 %)" in capsys.readouterr().out
    shares = [float(line.split("\t")[1]) for line in (tmp_path / "o.tsv").read_text().splitlines()[1:]]
    assert shares == [1.0] * 10 + [0.0] * 10
    table.write_text("sequence\nACGT\n")
    main(["leakage", "--data", out, "--input", str(table)])
    printed = capsys.readouterr().out
    assert "0 of 0 sequences" in printed and "1 sequences are too short" in printed and "nan" not in printed
    (tmp_path / "b.bed").write_text(f"chr1\t{place.start}\t{place.end}\n")
    main(["leakage", "--data", out, "--input", str(tmp_path / "b.bed")])
    assert "0 of 1 sequences (0.00 %)" in capsys.readouterr().out
    data = bytearray((tmp_path / "out" / "train.bin").read_bytes())
    data[7] ^= 1
    (tmp_path / "out" / "train.bin").write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", out, "--verify"])
    assert ended.value.code == 2 and "train.bin: checksum differs" in capsys.readouterr().err
