"""Micro-batches of one data-parallel rank, read ahead by worker processes; and the first of them as text.

In:  the config, a tokenizer, the rank, the number of samples already consumed.
Out: an endless iterator of Batch. Micro-batch m since the start holds the samples consumed + (m * size + rank) * B +
0..B-1, so the global batches do not depend on ranks, workers, micro-batch size or where a run was stopped.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from megadna.config import Config
from megadna.data.batch import Batch, Rows
from megadna.data.dataset import open_chunks
from megadna.data.samples import Samples, masking_fraction, resolve_schedule
from megadna.errors import require
from megadna.log import get_logger
from megadna.processes import STOP_SIGNALS, die_with_parent
from megadna.tokenizer.base import NUM_SPECIAL, Tokenizer
from megadna.tokenizer.build import build_tokenizer

log = get_logger(__name__)

AUTO_MULTIPLE = 32
"""`auto` gives multiples of this, which tensor (sequence) and context parallel sizes up to it divide, where cheap."""
AUTO_LOSS = 64
"""Cheap: it costs at most one token in AUTO_LOSS."""
PREFETCH = 4
"""Micro-batches that each worker reads ahead."""
LINE_WIDTH = 100
"""Of a batch as text."""


def resolve_sequence_length(config: Config, chunk_length: int, tokenizer: Tokenizer) -> int:
    """Tokens of a row, special tokens included.

    `auto`: what a chunk gives, rounded down to a multiple of 32 (where that costs at most 1/64) or of what the layout
    divides. A number is rounded up to what the layout divides; UserError where a chunk, or the table of learned
    positions, is shorter.
    """
    layout, model = config.parallel.sequence_multiple, config.model
    longest = tokenizer.num_tokens(chunk_length) + NUM_SPECIAL
    asked = config.data.sequence_length
    if asked == "auto":
        multiple = math.lcm(AUTO_MULTIPLE, layout)
        length = longest // multiple * multiple
        if longest - length > longest // AUTO_LOSS:
            length = longest // layout * layout
    else:
        require(
            asked <= longest,
            f"data.sequence_length {asked} is larger than the dataset's chunks allow: {chunk_length} bases give "
            f"{longest} tokens, [CLS] and [SEP] included; use at most {longest}, or preprocess "
            "with a larger --chunk_length",
        )
        length = -(-asked // layout) * layout
        if length != asked:
            log.info("data.sequence_length %d is padded to %d, a multiple of %d (parallel)", asked, length, layout)
    require(
        model.positions == "rotary" or length <= model.max_positions,
        f"data.sequence_length {asked} makes rows of {length} tokens, model.max_positions is {model.max_positions}; "
        "set data.sequence_length to at most that",
    )
    return length


class _MicroBatches(Dataset[Rows]):
    """The micro-batch that begins with a given sample of the run."""

    def __init__(self, samples: Samples, micro_batch_size: int) -> None:
        self._samples = samples
        self._offsets = np.arange(micro_batch_size)

    def __getitem__(self, start: int) -> Rows:
        return self._samples.rows(start + self._offsets)


class TrainBatches(Iterator[Batch]):
    """Endless micro-batches of one data-parallel rank, and what to log about them."""

    def __init__(self, config: Config, samples: Samples, loader: DataLoader[Rows]) -> None:
        self._config = resolve_schedule(config)
        self._samples = samples
        self._pin = config.engine.device != "cpu" and torch.cuda.is_available()
        self._rows: Iterator[Rows] = iter(loader)
        self._tokens = self._padding = self._pairs = 0
        self._wait = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        rows = next(self._rows)
        self._tokens += rows.tokens_BS.size
        self._padding += rows.tokens_BS.size - int(rows.lengths_B.sum())
        self._pairs += rows.attended_pairs()
        batch = rows.batch(pin=self._pin)
        self._wait += time.perf_counter() - start
        return batch

    def close(self) -> None:
        """End the worker processes, which ignore SIGTERM: a process that still has them at its end never ends."""
        self._rows = iter(())

    def metrics(self, consumed_samples: int) -> dict[str, float]:
        """epoch and consumed_bases of all ranks, the last masking rate used; of this rank since the call before: the
        padded share, how many tokens a token attends to (itself included) on average, and the wait for batches."""
        passes = [consumed_samples * rows.group.share / len(rows) for rows in self._samples.groups]
        bases = [rows.group.bases for rows in self._samples.groups]
        consumed = sum(number * count for number, count in zip(passes, bases, strict=True))
        numbers = {
            "epoch": consumed / sum(bases),
            "consumed_bases": float(round(consumed)),
            "masking_fraction": masking_fraction(self._config, max(0, consumed_samples - 1)),
            "padded_fraction": self._padding / max(1, self._tokens),
            "attended_tokens": self._pairs / max(1, self._tokens - self._padding),
            "data_wait_seconds": self._wait,
        }
        self._tokens = self._padding = self._pairs = 0
        self._wait = 0.0
        return numbers


def train_batches(
    config: Config,
    tokenizer: Tokenizer,
    *,
    sequence_length: int,
    rank: int,
    size: int,
    consumed_samples: int,
    skipped: Sequence[tuple[int, int]] = (),
) -> TrainBatches:
    """Endless micro-batches of data-parallel rank `rank` of `size`, from the `consumed_samples`-th sample on.

    The state of the data is `consumed_samples` and `skipped`: half-open ranges of sample indices left out.
    """
    pool = open_chunks(config.data.path, "train")
    samples = Samples(config, tokenizer, pool, sequence_length=sequence_length, skipped=skipped)
    _log_passes(config, samples)
    rows, num_workers = config.train.micro_batch_size, config.data.num_workers
    loader = DataLoader(
        _MicroBatches(samples, rows),
        sampler=count(consumed_samples + rank * rows, size * rows),
        batch_size=None,
        num_workers=num_workers,
        # The default could be a fork server, which instead of this process would be the workers' parent.
        multiprocessing_context=("fork" if sys.platform == "linux" else "spawn") if num_workers else None,
        prefetch_factor=PREFETCH if num_workers else None,
        persistent_workers=num_workers > 0,
        worker_init_fn=partial(_start_worker, os.getpid()),
    )
    return TrainBatches(config, samples, loader)


def _start_worker(training: int, _worker: int) -> None:
    """A signal to the whole process group asks for a save, and for batches until the step is done."""
    die_with_parent(training)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _log_passes(config: Config, samples: Samples) -> None:
    total = config.train.samples_after(config.train.steps)
    for rows in samples.groups:
        share = "" if rows.group.share == 1 else f", {rows.group.share:.1%} of the batch"
        passes = total * rows.group.share / len(rows)
        text = "data %s: %s bases, %s samples an epoch%s, %.3g passes"
        log.info(text, rows.group.name, f"{rows.group.bases:,}", f"{len(rows):,}", share, passes)


def show_batch(config: Config, *, max_rows: int = 4, max_lines: int = 3) -> str:
    """The first micro-batch as text, a column a token: the genome, what the model sees, and what it must predict.

    At most `max_rows` rows, of each at most `max_lines` lines. `<` [CLS], `>` [SEP], `_` [MASK], `?` [UNK], `.` [PAD].
    """
    pool = open_chunks(config.data.path, "train")
    tokenizer = build_tokenizer(config.tokenizer)
    length = resolve_sequence_length(config, pool.chunk_length, tokenizer)
    samples = Samples(config, tokenizer, pool, sequence_length=length)
    rows = samples.rows(np.arange(min(max_rows, config.train.micro_batch_size)))
    masked = len(rows.positions_M) / rows.lengths_B.sum()
    lines = [f"{len(rows.lengths_B)} rows of {length} tokens, {100 * masked:.1f} % of them masked"]
    for number in range(len(rows.lengths_B)):
        lines += ["", f"sample {rows.samples_B[number]}: {rows.lengths_B[number]} tokens"]
        lines += _row_lines(rows, number, tokenizer, max_lines)
    return "\n".join(lines) + "\n"


def _row_lines(rows: Rows, number: int, tokenizer: Tokenizer, max_lines: int) -> Iterator[str]:
    seen = rows.tokens_BS[number].astype(np.int64)
    positions = rows.positions_M - number * len(seen)
    here = (positions >= 0) & (positions < len(seen))
    true, labels = seen.copy(), np.full(len(seen), -1)
    true[positions[here]] = labels[positions[here]] = rows.targets_M[here]
    width = max(map(len, _texts(true[: rows.lengths_B[number]], tokenizer)))
    columns = max(1, LINE_WIDTH // (width + (width > 1)))
    for start in range(0, min(len(seen), max_lines * columns), columns):
        part = slice(start, start + columns)
        for title, ids in (("genome", true), ("model sees", seen), ("predicts", labels)):
            texts = (text.ljust(width) for text in _texts(ids[part], tokenizer))
            yield f"  {title:<11}{(' ' if width > 1 else '').join(texts)}".rstrip()
        yield ""


def _texts(ids: NDArray[np.int64], tokenizer: Tokenizer) -> list[str]:
    symbols = {
        -1: " ",
        tokenizer.cls_id: "<",
        tokenizer.sep_id: ">",
        tokenizer.mask_id: "_",
        tokenizer.unk_id: "?",
        tokenizer.pad_id: ".",
    }
    return [symbols[number] if number in symbols else tokenizer.decode(np.array([number])) for number in ids.tolist()]
