"""Warnings about masking, more files than workers, equal bytes from fresh processes, standard input."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import build, fasta, genome

ROOT = Path(__file__).parents[2]


def test_hard_masked_and_mixed_masking_are_named(tmp_path):
    masked = np.frombuffer(genome(200_000), np.uint8).copy()
    for start in range(0, len(masked), 1000):
        masked[start : start + 150] = ord("N")
    gaps = np.frombuffer(genome(400_000), np.uint8).copy()
    gaps[100_000:160_000] = ord("N")  # an assembly gap of 60 kb, 15 % of the genome
    soft = np.frombuffer(genome(50_000), np.uint8).copy()
    soft[:20_000] |= 0x20
    for name, letters in (("masked", masked), ("gaps", gaps), ("soft", soft)):
        (tmp_path / f"{name}.fa").write_bytes(fasta({"chr1": letters.tobytes()}))
    notes = " | ".join(build(tmp_path, *sorted(tmp_path.glob("*.fa")), chunk_length=1000).notes)
    assert "masked looks hard-masked: 15 %" in notes and "gaps looks" not in notes
    assert "1 of 3 sources are soft-masked, the others are not" in notes
    folded = build(tmp_path, *sorted(tmp_path.glob("*.fa")), chunk_length=1000, soft_mask="fold", output="folded")
    assert "soft-masked" not in " | ".join(folded.notes)


def test_a_split_far_larger_than_asked_for_is_named(tmp_path):
    """Two genomes of 13 and 5 chunks have three blocks; one of 4,000 blocks gets what was asked for."""
    data, few = ROOT / "tests" / "data", {"chunk_length": 4000, "block_chunks": 10}
    manifest = build(tmp_path, data / "lambda.fa.gz", data / "human_mt.fa.gz", **few)
    shares = {split: manifest.bases[split] / sum(manifest.bases.values()) for split in manifest.splits}
    assert max(shares["valid"], shares["test"]) > 0.2
    for split in ("valid", "test"):
        told = f"{split} got {shares[split]:.1%} of the bases, and 10.0% were asked for; add genomes or give --block_"
        assert any(told in note for note in manifest.notes) == (shares[split] > 0.2)
    (tmp_path / "x.fa").write_bytes(fasta({"c": genome(200_000)}))
    assert "asked for" not in " | ".join(build(tmp_path, tmp_path / "x.fa", block_chunks=1, output="even").notes)


def test_more_files_than_workers_and_mixed_formats(tmp_path):
    import gzip

    for number in range(12):
        text = fasta({"c": genome(3000)})
        if number % 3 == 1:
            (tmp_path / f"g{number:02d}.fa.gz").write_bytes(gzip.compress(text))
        else:
            (tmp_path / f"g{number:02d}.fa").write_bytes(text)
    files = sorted(tmp_path.glob("g*"))
    one = build(tmp_path, *files, output="one")
    assert build(tmp_path, *files, output="three", workers=3).dataset_id == one.dataset_id
    assert [source.name for source in one.sources] == [f"g{number:02d}" for number in range(12)]


def test_fresh_processes_write_equal_bytes(tmp_path):
    (tmp_path / "x.fa").write_bytes(fasta({f"c{i}": genome(5000) for i in range(4)}))
    command = [sys.executable, str(ROOT / "tools" / "preprocess.py"), "--chunk_length", "50"]
    contents = []
    for number, source in enumerate(["x.fa", "x.fa", "-"]):
        environment = {**os.environ, "PYTHONHASHSEED": str(number)}
        arguments = ["--valid_fraction", "0.2", "--test_fraction", "0.2", "--input", source, "--output", f"o{number}"]
        with (tmp_path / "x.fa").open("rb") as text:
            subprocess.run(
                [*command, *arguments], check=True, cwd=tmp_path, stdin=text, env=environment, capture_output=True
            )
        contents.append({file.name: file.read_bytes() for file in (tmp_path / f"o{number}").iterdir()})
    assert contents[0] == contents[1]
    for name in ("train.bin", "train.idx", "test.bin", "valid.start.npy"):
        assert contents[2][name] == contents[0][name]


def test_standard_input_cannot_be_read_twice(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "preprocess.py"), "--chunk_length", "50", "--input", "-"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "o"), "--valid_fraction", "1e-9"],
        input=fasta({"c": genome(6000)}),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2 and b"save it to a file first" in done.stderr and not (tmp_path / "o").exists()
