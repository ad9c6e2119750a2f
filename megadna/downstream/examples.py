"""Rows of labelled sequences -> tokenized examples -> padded batches, for every task of `megadna finetune`."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from megadna.downstream.encoder import SequenceTokenizer, load_tokenizer, padded
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.tasks import Target
from megadna.errors import require
from megadna.genome.records import reverse_complement
from megadna.progress import tracked

NO_LABEL = -100


def tokenized(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame]
) -> tuple[SequenceTokenizer, dict[str, list[dict[str, Any]]]]:
    """The model's tokenizer, and the examples of each split."""
    tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code)
    return tokenizer, {
        split: examples_of(table, tokenizer, options, augment=options.augment and split == "train")
        for split, table in tracked(tables.items(), "tokenizing", len(tables), "tables")
    }


class Collator:
    """Tokenized examples -> a padded batch."""

    def __init__(self, pad_id: int, target: Target) -> None:
        self._pad_id, self._target = pad_id, target

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [B, S], labels [B], [B, C], [B, L], [B, L, C] or, of pairs, [B, P, 1]."""
        ids, mask = padded([example["ids"] for example in examples], self._pad_id)
        labels = [torch.tensor(example["target"]) for example in examples]
        if self._target.ragged:
            empty = float("nan") if labels[0].is_floating_point() else NO_LABEL
            stacked = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=empty)
        else:
            stacked = torch.stack(labels)
        return {"input_ids": ids, "attention_mask": mask, "labels": stacked}


def examples_of(
    table: pd.DataFrame, tokenizer: SequenceTokenizer, options: FinetuneOptions, *, augment: bool = False
) -> list[dict[str, Any]]:
    """Tokenized rows; UserError if a sequence is longer than the context, unless --crop."""
    texts, targets = table["sequence"].tolist(), table["target"].tolist()
    axes = (0, 1) if options.task == "contact" else (0,) * options.task.startswith("base_")  # of a target: the bases
    if augment:
        texts += [reverse_complement(text) for text in texts]
        targets += [np.flip(target, axes).copy() if axes else target for target in targets]
    limit = min(tokenizer.max_bases(), max(map(len, texts)))
    for row, text in enumerate(texts):
        size = min(len(text), limit if tokenizer.k else tokenizer.max_bases(text))
        if len(text) > size:
            message = f"{options.data}: a sequence of {len(text)} bases is longer than the context ({size} bases)"
            require(options.crop, f"{message}; --crop keeps its middle")
            start = (len(text) - size) // 2
            texts[row] = text[start : start + size]
            if axes:
                targets[row] = targets[row][(slice(start, start + size),) * len(axes)]
    if options.task == "contact":
        targets = [pairs_of(target) for target in targets]
    tokens = tokenizer(texts)
    return [{"ids": found.ids, "target": target} for found, target in zip(tokens, targets, strict=True)]


def pairs_of(contacts_LL: np.ndarray) -> np.ndarray:
    """fp32 [P, 1] of the pairs (1, 0), (2, 0), (2, 1), (3, 0) ...: those of a shorter sequence come first."""
    return contacts_LL[np.tril_indices(len(contacts_LL), -1)][:, None].astype(np.float32)
