"""Speed and memory of `megadna preprocess`, as ratios measured in one run: python tools/bench_preprocess.py [--quick]
[--folder F].

Every round runs the yardsticks (`cat FILE > COPY`, `gzip -dc`) and the builders one after the other on the same files
in the page cache; a row is the median over the rounds of the ratio within a round. CPU seconds are user + system of
the process and its children, so that they mean something on a busy machine too. Results: docs/benchmarks.md.
"""

import argparse
import gzip
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PREPROCESS = [sys.executable, str(ROOT / "tools" / "preprocess.py")]
PEAK = """
import resource, sys
import megadna.commands.preprocess
from megadna.cli import main
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
main(["preprocess", *sys.argv[1:]])
print(max(peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024) - before)
"""
Run = Callable[[], tuple[float, float, float]]
EMPTY = "import megadna.data.builder, megadna.commands.preprocess"


def measure(command: list[str], stdout: Path | None = None) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak MiB of the largest process) of a command."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (stdout or Path(os.devnull)).open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE)
        error = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: {error.decode()}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, max(cpu, usage.ru_utime + usage.ru_stime), usage.ru_maxrss / 1024


def letters(size: int) -> np.ndarray:
    """Random genome: half of it lower case, 5 % N in runs."""
    text = np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(0).integers(0, 4, size, dtype=np.uint8)]
    for start in range(0, size, 20_000):
        text[start : start + 10_000] |= 0x20
    for start in range(0, size, 2_000_000):
        text[start : start + 100_000] = ord("N")
    return text


def write_fasta(path: Path, text: np.ndarray, *, contigs: int, width: int = 60) -> Path:
    """The text cut into contigs of equal length."""
    with path.open("wb") as file:
        for number, contig in enumerate(np.array_split(text, contigs)):
            file.write(b">contig_%d length=%d\n" % (number, len(contig)))
            full = len(contig) // width * width
            lines = np.full((full // width, width + 1), 10, np.uint8)
            lines[:, :width] = contig[:full].reshape(-1, width)
            file.write(lines.tobytes() + (contig[full:].tobytes() + b"\n" if full < len(contig) else b""))
    return path


def write_bgzf(path: Path, plain: Path) -> Path:
    """BGZF of a file (SAM specification, section 4.1)."""
    with plain.open("rb") as source, path.open("wb") as file:
        while True:
            part = source.read(65_280)
            packer = zlib.compressobj(1, zlib.DEFLATED, -15)
            body = packer.compress(part) + packer.flush()
            head = struct.pack("<4BI2BH2BHH", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
            file.write(head + body + struct.pack("<II", zlib.crc32(part), len(part)))
            if not part:
                return path


class Bench:
    """Files, and a table of results."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.rows: list[tuple[str, str, str]] = []

    def build(self, path: Path, *options: str) -> tuple[float, float, float]:
        """One build, without the interpreter's start."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        wall, cpu, memory = measure([*PREPROCESS, "--input", str(path), "--output", str(out), *options])
        start_wall, start_cpu, start_memory = self._start
        return wall - start_wall, cpu - start_cpu, memory - start_memory

    def peak(self, path: Path, *options: str) -> float:
        """MiB of the largest process of a build beyond the imports, as each process itself sees it."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-c", PEAK, "--input", str(path), "--output", str(out), *options]
        done = subprocess.run(command, check=True, capture_output=True, cwd=ROOT, text=True)
        return float(done.stdout.split()[-1])

    def build_pinned(self, path: Path, *options: str) -> tuple[float, float, float]:
        """One build on one core."""
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            return self.build(path, *options)
        finally:
            os.sched_setaffinity(0, cores)

    def cat(self, path: Path) -> tuple[float, float, float]:
        """`cat FILE > COPY`."""
        (self.folder / "copy").unlink(missing_ok=True)
        return measure(["cat", str(path)], self.folder / "copy")

    def start(self) -> None:
        """What the interpreter and its imports cost."""
        runs = [measure([sys.executable, "-c", EMPTY]) for _ in range(3)]
        self._start = tuple(min(column) for column in zip(*runs, strict=True))

    def compare(self, name: str, target: str, first: Run, second: Run) -> None:
        """Row: median of first's time over second's, by wall clock and by CPU seconds."""
        pairs = [(first(), second()) for _ in range(self.rounds)]
        wall = statistics.median(a[0] / b[0] for a, b in pairs)
        used = statistics.median(a[1] / b[1] for a, b in pairs)
        self.row(name, target, f"{wall:.2f} (CPU seconds: {used:.2f})")

    def row(self, name: str, target: str, value: str) -> None:
        """Print and keep."""
        self.rows.append((name, target, value))
        print(f"{name:<58} {target:>12}  {value}", flush=True)


def speed(bench: Bench, size: int) -> None:
    """Plain FASTA by one worker against cat: few contigs, many, and short records."""
    folder, text = bench.folder, letters(size)
    plain = write_fasta(folder / "p.fa", text, contigs=33)
    bench.compare("plain FASTA, 1 worker, against cat", ">= 0.45", lambda: bench.cat(plain), lambda: bench.build(plain))
    cpu = min(bench.build(plain)[1] for _ in range(bench.rounds))
    bench.row("CPU seconds per Gb, 1 worker", "", f"{cpu / size * 1e9:.2f}")
    plain.unlink()
    single = write_fasta(folder / "s.fa", text, contigs=1)
    draft = write_fasta(folder / "d.fa", text, contigs=10_000)
    bench.compare("10,000 contigs against one", ">= 0.70", lambda: bench.build(single), lambda: bench.build(draft))
    single.unlink()
    draft.unlink()
    part = text[: size // 3]
    short = write_fasta(folder / "r.fa", part, contigs=len(part) // 300)
    bench.compare("records of 300 nt against cat", ">= 0.25", lambda: bench.cat(short), lambda: bench.build(short))
    short.unlink()


def scaling(bench: Bench, size: int) -> None:
    """Two workers against one by the wall clock, on an idle machine with two cores (`chrt -r 1` takes a busy one for
    oneself). The ratio of CPU seconds, doubled, is the most that they could reach."""
    text = letters(size)
    plain = write_fasta(bench.folder / "p.fa", text, contigs=33)
    blocks = write_bgzf(bench.folder / "b.fa.gz", write_fasta(bench.folder / "g.fa", text[: size // 3], contigs=11))

    for name, target, path in (("plain", ">= 1.3", plain), ("BGZF", "", blocks)):
        one, two = (lambda path=path: bench.build(path)), (lambda path=path: bench.build(path, "--workers", "2"))
        bench.compare(f"{name}, 2 workers against 1", target, one, two)
    plain.unlink()
    blocks.unlink()


def packed(bench: Bench, size: int) -> None:
    """gzip, on one core and with the decode thread on another, against gzip -dc."""
    plain = write_fasta(bench.folder / "g.fa", letters(size // 3), contigs=11)
    path = bench.folder / "g.fa.gz"
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(plain.read_bytes())
    unpack = lambda: measure(["gzip", "-dc", str(path)])  # noqa: E731
    bench.compare("gzip on one core against gzip -dc", ">= 2.0", unpack, lambda: bench.build_pinned(path))
    bench.compare("gzip with the decode thread against gzip -dc", ">= 2.5", unpack, lambda: bench.build(path))
    path.unlink()


def peers(bench: Bench) -> None:
    """Nucleotides per second beside the figure for Megatron-LM's tools/preprocess_data.py in the same units."""
    path = write_fasta(bench.folder / "m.fa", letters(200_000_000), contigs=33)
    best = 200e6 / min(bench.build(path)[0] for _ in range(bench.rounds))
    bench.row("million nt/s, 1 worker", "", f"{best / 1e6:.0f}")
    bench.row("against tools/preprocess_data.py (1.3, quoted)", ">= 100", f"{best / 1.3e6:.0f}")


def memory(bench: Bench, size: int) -> None:
    """Peak memory beyond the imports on a chromosome of `size` bases, on one line and in 60 columns."""
    block = letters(10_000_000)
    for name, width in (("one line", 0), ("60 columns", 60)):
        path = bench.folder / "big.fa"
        with path.open("wb") as file:
            file.write(b">chr1\n")
            lines = np.full((len(block) // 50, 51), 10, np.uint8)
            lines[:, :50] = block.reshape(-1, 50)
            text = lines.tobytes() if width else block.tobytes()
            for _ in range(size // len(block)):
                file.write(text)
            file.write(b"\n")
        for workers in ("1", "2"):
            peak = bench.peak(path, "--workers", workers)
            bench.row(f"peak MiB beyond imports, {size / 1e9:g} Gb {name}, {workers} workers", "< 150", f"{peak:.0f}")
        path.unlink()


OPENING = """
import json, sys, time, psutil
from megadna.data.dataset import ChunkDataset
import numpy
process = psutil.Process()
before, began = process.memory_full_info().uss, time.perf_counter()
dataset = ChunkDataset(sys.argv[1], "train")
first = dataset[len(dataset) // 2].sum()
print(json.dumps([time.perf_counter() - began, (process.memory_full_info().uss - before) / 2**20, len(dataset)]))
"""


def opening(bench: Bench, num_chunks: int) -> None:
    """Seconds and private memory to open a dataset of 44 million chunks (174 Gnt, sparse .bin)."""
    folder = bench.folder / "huge"
    small = write_fasta(bench.folder / "t.fa", letters(4_000_000), contigs=1)
    measure([*PREPROCESS, "--input", str(small), "--output", str(folder)])
    with (folder / "train.idx").open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 1, num_chunks, 2))
        file.write(np.full(num_chunks, 4000, np.int32).tobytes())
        file.write((np.arange(num_chunks, dtype=np.int64) * 4000).tobytes())
        file.write(np.array([0, num_chunks], np.int64).tobytes())
    os.truncate(folder / "train.bin", num_chunks * 4000)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["chunks"]["train"], manifest["bases"]["train"] = num_chunks, num_chunks * 4000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    output = subprocess.run([sys.executable, "-c", OPENING, str(folder)], check=True, capture_output=True, cwd=ROOT)
    seconds, mebibytes, length = json.loads(output.stdout)
    bench.row(f"seconds to open {length / 1e6:.0f} million chunks", "< 2", f"{seconds:.3f}")
    bench.row("private MiB for that", "< 100", f"{mebibytes:.1f}")
    shutil.rmtree(folder)


def main() -> None:
    """Run all of it and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one round")
    parser.add_argument("--folder", help="where to work (default: a temporary folder); its disk is part of the result")
    parser.add_argument("--only", choices=("speed", "scaling", "packed", "peers", "memory", "opening"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        bench = Bench(Path(folder), 1 if options.quick else 5)
        bench.start()
        scale = 10 if options.quick else 1
        tasks = {
            "speed": lambda: speed(bench, 490_000_000 // scale),
            "scaling": lambda: scaling(bench, 490_000_000 // scale),
            "packed": lambda: packed(bench, 490_000_000 // scale),
            "peers": lambda: peers(bench),
            "memory": lambda: memory(bench, 2_000_000_000 // scale),
            "opening": lambda: opening(bench, 44_000_000 // scale),
        }
        for name, task in tasks.items():
            if options.only in (None, name):
                task()
        print("\n| measure | target | result |\n|---|---|---|")
        for row in bench.rows:
            print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
