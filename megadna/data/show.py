"""A training batch as text: the genome, what the model sees, and what it must predict, one below the other.

In:  a config whose data.path is a dataset.
Out: the first micro-batch of the run, one column a token: `<` [CLS], `>` [SEP], `_` [MASK], `?` [UNK], `.` [PAD].
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from megadna.config import Config
from megadna.data.batch import Rows
from megadna.data.dataset import open_chunks
from megadna.data.loader import resolve_sequence_length
from megadna.data.samples import Samples
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.build import build_tokenizer

LINE_WIDTH = 100


def show_batch(config: Config, *, max_rows: int = 4, max_lines: int = 3) -> str:
    """Text of the first micro-batch: at most `max_rows` rows, of each at most `max_lines` lines of tokens."""
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
