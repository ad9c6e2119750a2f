"""Killed at any moment the output is absent or whole; --resume goes on; a full disk is one line."""

import contextlib
import gzip
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_formats_and_splits import build, fasta, genome

import megadna.genome.pieces
from megadna.data.dataset import ChunkDataset
from megadna.data.manifest import load_manifest
from megadna.errors import UserError
from megadna.files import claimed

COMMAND = [sys.executable, "-m", "megadna", "preprocess", "--chunk_length", "50", "--block_chunks", "2"]


def _genomes(folder, count=6, size=20_000):
    for number in range(count):
        (folder / f"g{number}.fa").write_bytes(fasta({"chr1": genome(size), "chr2": genome(size // 3)}))
    return sorted(folder.glob("g*.fa"))


def _contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("workers", [1, 2])
def test_resume_goes_on_from_finished_sources(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 3000)
    files = _genomes(tmp_path)
    whole = build(tmp_path, *files, output="whole", workers=workers)
    good = files[3].read_bytes()
    files[3].write_bytes(good[:5000] + b"!" + good[5001:])
    with pytest.raises(UserError, match=r"g3.fa: line \d+: '!'"):
        build(tmp_path, *files, workers=workers)
    assert not (tmp_path / "out").exists()
    marks = sorted(file.name for file in (tmp_path / ".out.partial" / "new" / "parts").glob("*.json"))
    assert marks[:2] == ["000000.json", "000001.json"]
    stamp = (tmp_path / ".out.partial" / "new" / "parts" / "000000.names").stat().st_mtime_ns
    files[3].write_bytes(good)
    opened = []
    real = megadna.genome.pieces.stream_blocks
    monkeypatch.setattr(
        megadna.genome.pieces, "stream_blocks", lambda source, part: opened.append(source.path) or real(source, part)
    )
    with pytest.raises(UserError, match="built with other options"):
        build(tmp_path, *files, resume=True, seed=9)
    assert (tmp_path / ".out.partial" / "new" / "parts" / "000000.names").stat().st_mtime_ns == stamp
    resumed = build(tmp_path, *files, resume=True, workers=1)
    assert opened == files[len(marks) :]
    assert resumed.dataset_id == whole.dataset_id
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")
    assert not (tmp_path / ".out.partial").exists()


def test_resume_reads_a_changed_source_again(tmp_path):
    files = _genomes(tmp_path, 3)
    good = files[2].read_bytes()
    files[2].write_bytes(b"ACGT")
    with pytest.raises(UserError):
        build(tmp_path, *files)
    files[2].write_bytes(good)
    files[1].write_bytes(fasta({"other": genome(9000)}))
    resumed = build(tmp_path, *files, resume=True)
    assert resumed.dataset_id == build(tmp_path, *files, output="fresh").dataset_id


@pytest.mark.parametrize("deleted", [0, 3, 8, 20])
def test_killed_while_it_clears_an_older_attempt(tmp_path, monkeypatch, deleted):
    files = _genomes(tmp_path, 3)
    whole = build(tmp_path, *files, output="whole")
    good = files[2].read_bytes()
    files[2].write_bytes(b"ACGT")
    with pytest.raises(UserError):
        build(tmp_path, *files)
    files[2].write_bytes(good)

    def killed_rmtree(folder):
        for file in sorted((file for file in Path(folder).rglob("*") if file.is_file()), reverse=True)[:deleted]:
            file.unlink()
        os._exit(9)

    def begin_again():
        monkeypatch.setattr(shutil, "rmtree", killed_rmtree)
        build(tmp_path, *files)

    process = multiprocessing.get_context("fork").Process(target=begin_again)
    process.start()
    process.join()
    assert process.exitcode == 9 and not (tmp_path / "out").exists()
    assert build(tmp_path, *files, resume=True).dataset_id == whole.dataset_id
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("limit", [4096, 20_000])  # bytes a file may have: too few for an index file, for the .bin
def test_full_disk_is_one_line(tmp_path, limit):
    files = _genomes(tmp_path, 1)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(UserError, match="File too large; free disk space") as caught:
            build(tmp_path, *files)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["g0.fa"]


def test_a_second_builder_leaves_the_first_ones_work_alone(tmp_path):
    files = _genomes(tmp_path, 1)
    with claimed(tmp_path / "out") as claim:
        (claim.fresh() / "train.bin").write_bytes(b"ACGT")
        for more in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(
                UserError, match=rf"another process is writing it \(process {os.getpid()}, since .*wait"
            ):
                build(tmp_path, *files, **more)
        assert (claim.new / "train.bin").read_bytes() == b"ACGT"
    assert build(tmp_path, *files).chunks["train"]
    assert not (tmp_path / ".out.partial").exists()


def test_old_dataset_stays_until_the_new_one_is_whole(tmp_path):
    files = _genomes(tmp_path, 2)
    build(tmp_path, *files)
    before = _contents(tmp_path / "out")
    files[1].write_bytes(b">x\nQQQ\n")
    with pytest.raises(UserError):
        build(tmp_path, *files, overwrite=True)
    assert _contents(tmp_path / "out") == before


WORKERS = """
import multiprocessing, os, sys
from pathlib import Path
import megadna.genome.pieces as pieces
from megadna.data.inputs import SourceFile
pieces.PIECE = 1000
path = Path(sys.argv[1])
found = pieces.read_pieces([SourceFile(path, "g", "plain", 0)], 0, 3, fold=False, headroom=0)
next(found), next(found)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), 9)
"""


def test_workers_end_with_the_builder(tmp_path):
    (file,) = _genomes(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", WORKERS, str(file)], capture_output=True, text=True, check=False)
    workers = [Path(f"/proc/{number}/stat") for number in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(workers) == 3, done.stderr
    until = time.monotonic() + 60
    while any(stat.exists() and stat.read_text().split()[2] != "Z" for stat in workers):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_killed_worker_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(megadna.genome.pieces, "PIECE", 1000)
    real = megadna.genome.pieces.stream_blocks

    def stream(source, part):
        os.kill(os.getpid(), signal.SIGKILL) if source.path.name == "g3.fa.gz" else None
        return real(source, part)

    monkeypatch.setattr(megadna.genome.pieces, "stream_blocks", stream)
    for file in _genomes(tmp_path):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(UserError, match="a worker process was killed") as caught:
        build(tmp_path, *sorted(tmp_path.glob("*.gz")), workers=2)
    assert "\n" not in str(caught.value) and not multiprocessing.active_children()
    monkeypatch.undo()
    assert build(tmp_path, *sorted(tmp_path.glob("*.gz")), workers=2, resume=True).chunks["train"]
    assert not multiprocessing.active_children()


def test_interrupt_ends_the_workers(tmp_path):
    (file,) = _genomes(tmp_path, 1, 9_000_000)
    process = subprocess.Popen(
        [*COMMAND, "--workers", "2", "--input", str(file), "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial/new/*.bin")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):  # done already
        os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert (process.returncode == 130 and not output) or (tmp_path / "out").is_dir(), output
    assert not list(tmp_path.glob(".out.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_loop(tmp_path, workers):
    files = _genomes(tmp_path, 8, 900_000)
    command = [*COMMAND, "--workers", str(workers), "--input", *map(str, files), "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    usual = float("inf")  # the quickest run so far: a busy machine must not make every kill come too late
    for number in range(3):
        began = time.monotonic()
        subprocess.run([*command, str(tmp_path / f"time{number}")], check=True, capture_output=True)
        usual = min(usual, time.monotonic() - began)
    rng = random.Random(workers)
    killed = 0
    for number in range(15):
        output = tmp_path / f"out{number}"
        resume: list[str] = []
        for _ in range(20):
            process = subprocess.Popen(
                [*command, str(output), *resume],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                _, error = process.communicate(timeout=rng.uniform(0.2, 1.0) * usual)
                assert process.returncode == 0, error.decode()
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                killed += 1
                if output.exists():  # killed between the rename and the end
                    load_manifest(output)
                resume = rng.choice([[], ["--resume"]])
        else:
            subprocess.run([*command, str(output), "--resume"], check=True, capture_output=True)
        assert _contents(output) == _contents(tmp_path / "whole")
        assert len(ChunkDataset(output, "train")) > 0
    assert killed > 3  # how many kills land in time is up to the machine
