"""How fast masked batches come: tokens per second, beside a plain copy and megatron-core's BERT dataset.

    python tools/bench_loader.py [DATASET] [--seconds 3] [--batch 8]

Without DATASET, E. coli of tests/data is cut into 4,000-nt chunks first. Prints one Markdown table. Work within this
process is timed by its CPU seconds, which other programs on the machine disturb least; what a loader process
delivers, by the clock.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megadna.commands import preprocess
from megadna.config import Config, DataConfig, EngineConfig, TokenizerConfig, TrainConfig
from megadna.data.batch import Batch
from megadna.data.dataset import ChunkPool, open_chunks
from megadna.data.loader import resolve_sequence_length, train_batches
from megadna.data.order import epoch_rows
from megadna.data.samples import Samples
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.bpe import train_bpe
from megadna.tokenizer.build import build_tokenizer

ECOLI = Path(__file__).parents[1] / "tests" / "data" / "ecoli_K12_MG1655.fna.gz"


def per_second(work: Callable[[], int], seconds: float, clock: Callable[[], float] = time.process_time) -> float:
    """Units that `work` returns, per second of `clock`: the best of three stretches, for shared machines."""
    work()
    rates = []
    for _ in range(3):
        start, done = clock(), 0
        while clock() - start < seconds / 3:
            done += work()
        rates.append(done / (clock() - start))
    return max(rates)


def through_workers(config: Config, tokenizer: Tokenizer, length: int, seconds: float) -> tuple[float, float]:
    """Tokens per second that arrive from the loader processes; MiB that one of them has for itself."""
    batches = train_batches(config, tokenizer, sequence_length=length, rank=0, size=1, consumed_samples=0)
    workers = psutil.Process().children()
    for _ in range(4 * max(1, len(workers)) + 4):
        next(batches)
    rate = per_second(lambda: next(batches).tokens_BS.numel(), seconds, time.perf_counter)
    return rate, max(map(own_memory, workers), default=0.0)


def own_memory(process: psutil.Process) -> float:
    """MiB that a process has written for itself: what it shares with its parent and the page cache do not count."""
    os.sync()  # or freshly written pages of the dataset would count
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def in_process(config: Config, tokenizer: Tokenizer, length: int, pool: ChunkPool, seconds: float) -> float:
    """Tokens per second of sampling, masking and collating alone."""
    samples = Samples(config, tokenizer, pool, sequence_length=length)
    steps: Iterator[int] = iter(range(10**9))
    rows = np.arange(config.train.micro_batch_size)
    return per_second(lambda: samples.rows(next(steps) * len(rows) + rows).tokens_BS.size, seconds)


def copy_rate(batch: Batch, seconds: float) -> float:
    """Tokens per second of copying the tensors of a batch."""
    tensors = [batch.tokens_BS.numpy(), batch.labels_BS.numpy(), batch.weights_BS.numpy()]

    def work() -> int:
        for tensor in tensors:
            tensor.copy()
        return tensors[0].size

    return per_second(work, seconds)


def megatron_rate(tokenizer: Tokenizer, length: int, pool: ChunkPool, seconds: float, max_ngram: int) -> float:
    """Tokens per second of megatron-core's BERTMaskedWordPieceDataset.__getitem__ on the same chunks."""
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset

    texts = tokenizer.tokens()
    dataset = object.__new__(BERTMaskedWordPieceDataset)  # its own index building needs a process group; not timed
    dataset.config = SimpleNamespace(
        tokenizer=SimpleNamespace(
            cls=tokenizer.cls_id, sep=tokenizer.sep_id, mask=tokenizer.mask_id, inv_vocab=dict(enumerate(texts))
        ),
        random_seed=1234,
        sequence_length=length,
        classification_head=False,
        masking_probability=0.15,
        masking_max_ngram=max_ngram,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
    )
    dataset.dataset = [tokenizer.encode(pool[chunk])[: length - 3].astype(np.int64) for chunk in range(64)]
    dataset.sample_index = [(chunk, chunk + 1, length - 3) for chunk in range(64)]
    dataset.token_lookup = list(range(len(texts)))
    dataset._pad_token_id = tokenizer.pad_id
    steps = iter(range(10**9))
    return per_second(lambda: dataset[next(steps) % 64]["text"].size, seconds)


def measure(name: str, config: Config, seconds: float) -> None:
    """One line of the table, and for nucleotides the two references."""
    tokenizer = build_tokenizer(config.tokenizer)
    pool = open_chunks(config.data.path, "train")
    length = resolve_sequence_length(config, pool.chunk_length, tokenizer)
    alone = in_process(config, tokenizer, length, pool, seconds)
    rate, memory = through_workers(config, tokenizer, length, seconds)
    zero = replace(config, data=replace(config.data, num_workers=0))
    batches = train_batches(zero, tokenizer, sequence_length=length, rank=0, size=1, consumed_samples=0)
    whole = per_second(lambda: next(batches).tokens_BS.numel(), seconds)
    copied = copy_rate(next(batches), seconds)
    cells = [name, f"{length}", *(f"{value / 1e6:.1f}" for value in (alone, whole, rate))]
    print("|", " | ".join([*cells, f"{copied / whole:.1f}", f"{memory:.0f}"]), "|", flush=True)
    if config.tokenizer.kind == "nucleotide":
        for max_ngram in (1, 3):
            theirs = megatron_rate(tokenizer, length, pool, seconds, max_ngram)
            note = f"megatron-core BERT dataset, n-grams to {max_ngram}"
            print(f"| {note} | {length} | {theirs / 1e6:.3f} | | ours is {whole / theirs:.0f}x | | |", flush=True)


def _share(rank: int, config: Config, folder: str) -> None:
    """One of two ranks that need the same batches: by broadcast from rank 0, or read by each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    tokenizer = build_tokenizer(config.tokenizer)
    pool = open_chunks(config.data.path, "train")
    samples = Samples(config, tokenizer, pool, sequence_length=4000)
    rows = np.arange(config.train.micro_batch_size)
    batch = samples.rows(rows).batch()
    times = []
    for work in (
        lambda step: [dist.broadcast(tensor, 0) for tensor in (batch.tokens_BS, batch.labels_BS, batch.weights_BS)],
        lambda step: samples.rows(rows + step).batch(),
    ):
        dist.barrier()
        start = time.perf_counter()
        for step in range(50):
            work(step)
        dist.barrier()
        times.append((time.perf_counter() - start) / 50 * 1e3)
    if rank == 0:
        print(f"\nsame batch on two ranks: broadcast {times[0]:.2f} ms, each reads for itself {times[1]:.2f} ms")
    dist.destroy_process_group()


def measure_memory(config: Config) -> None:
    """MiB that each of 1, 2 and 4 loader processes has for itself, after it has read for a while."""
    tokenizer = build_tokenizer(config.tokenizer)
    others = psutil.Process().children()
    for workers in (1, 2, 4):
        several = replace(config, data=replace(config.data, num_workers=workers))
        batches = train_batches(several, tokenizer, sequence_length=4000, rank=0, size=1, consumed_samples=0)
        for _ in range(1000):
            next(batches)
        children = [child for child in psutil.Process().children() if child not in others]
        print(workers, "loader processes have", [f"{own_memory(child):.0f} MiB" for child in children], "of their own")
        del batches


def measure_start(config: Config) -> None:
    """Seconds from nothing to the first batch's order, at 44 million chunks."""
    size, rows = 44_000_000, np.arange(config.train.micro_batch_size)
    start = time.perf_counter()
    epoch_rows(rows, size, seed=config.seed, group=0)
    print(
        f"order of a micro-batch among 44 million chunks: {1e3 * (time.perf_counter() - start):.2f} ms, nothing built"
    )


def main() -> None:
    """Measure the tokenizers in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = options.dataset or f"{folder}/dataset"
        if not options.dataset:
            preprocess.main(["--input", str(ECOLI), "--output", path])
        base = Config(
            data=DataConfig(path=path, num_workers=1),
            train=TrainConfig(micro_batch_size=options.batch, global_batch_size=options.batch),
            engine=EngineConfig(device="cpu"),
        )
        pool = open_chunks(path, "train")
        chunks = (pool[chunk] for chunk in range(0, len(pool), max(1, len(pool) // 500)))
        train_bpe(chunks, Path(folder) / "bpe", vocab_size=4096, max_piece_length=16, info={})
        print(f"\n{os.cpu_count()} cores, micro-batch {options.batch}; million tokens per second\n")
        print("| tokenizer | length | rows | batches, 0 workers | batches, 1 worker | copy / batches | MiB a worker |")
        print("|---|---|---|---|---|---|---|")
        for name, tokenizer in {
            "nucleotide": TokenizerConfig(),
            "6-mers, stride 1, spans": TokenizerConfig(kind="kmer", k=6),
            "6-mers, stride 6": TokenizerConfig(kind="kmer", k=6, stride=6),
            "sentencepiece 4096": TokenizerConfig(kind="sentencepiece", model=f"{folder}/bpe"),
        }.items():
            measure(name, replace(base, tokenizer=tokenizer), options.seconds)
        mp.spawn(_share, args=(base, folder), nprocs=2)
        measure_memory(base)
        measure_start(base)


if __name__ == "__main__":
    main()
