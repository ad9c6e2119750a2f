"""`finetune --task generation`: a masked language model learns to write sequences of a label, or of a number.

In:  options, tables by split with their targets, a seed.
Out: model/ (what `megadna generate --label` or `--value` reads), metrics.json, and predictions-SPLIT.parquet: the bits
     per base of each sequence, by its own condition and without knowing it.
Absorbing diffusion (Sahoo et al. 2024, "Simple and effective masked diffusion language models", arXiv:2406.07524; also
Shi et al. 2024, arXiv:2406.04329): time t is uniform on (0, 1], each base is hidden with p = t (the linear schedule),
and the loss is the sum of -ln p(base) over the hidden ones, weighted by 1/t: its mean is an upper bound of
-ln p(sequence). The integral over t is taken beforehand: as that of C(L, n) t^(n-1) (1 - t)^(L-n) is 1/n, the number n
of hidden bases of L is uniform on 1..L, and the bound per base is the mean over the hidden ones: the same expectation
with less noise (Hoogeboom et al. 2022, arXiv:2110.02037). The n of a batch are spread evenly. N and its like are never
hidden.
The gain of a condition: p by the own condition over its mean under that and others drawn from train, a lower bound of
the information that sequence and condition share (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748), at most
log2(CONDITIONS) bits a sequence. (The model told nothing is no control: it learns that from the few --dropout rows.)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import set_seed

from megadna.downstream.encoder import SequenceTokenizer, load_masked_model
from megadna.downstream.examples import NO_LABEL, tokenized
from megadna.downstream.inputs import file_names
from megadna.downstream.metrics import with_intervals
from megadna.downstream.modeling_dna_task import DnaForGenerationTask
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.task_training import shared_with_train, task_config, trained
from megadna.downstream.tasks import Target
from megadna.log import rank_from_environment
from megadna.progress import Progress

# Shapes: N sequences, D draws of what is hidden, K conditions of a sequence, B rows of a batch, S tokens.

DRAWS, CONDITIONS = 2, 8
"""What is hidden for the bound of each sequence, so often; its own condition and others."""


def train_generator(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, work: Path
) -> None:
    """Write `work`: model/, metrics.json, and predictions of every split but train."""
    set_seed(seed)
    tokenizer, examples = tokenized(options, tables)
    tokenizer.require_single_bases(options.model)
    with Progress(f"loading {options.model}"):
        model = build_generator(options, target, tokenizer, tables["train"])
    noise = Noise(tokenizer, model.config.base_ids, tables["train"]["target"].to_list(), options.dropout, seed)
    rows = {split: noise.drawn(examples[split], CONDITIONS) for split in tables if split != "train"}
    trainer, predictions = trained(
        model, tokenizer, options, "loss", seed, work,
        train=examples["train"], dev=noise.drawn(examples["dev"], 1), predicted=rows, data_collator=noise,
    )  # fmt: skip
    if not trainer.is_world_process_zero():
        return
    found, stems = {}, file_names(list(rows), "predictions-{}.parquet")
    for split, output in predictions.items():
        sizes_N = np.array([len(noise.bases(example["ids"])) for example in examples[split]])
        bits_N2 = bits_of(output.predictions, np.array([len(row["hidden"]) for row in rows[split]]), sizes_N)
        scores = bound_scores(bits_N2, sizes_N, target, tables[split]["group"].to_numpy(), seed)
        found[split] = {key: {**values, "remark": shared_with_train(tables, split)} for key, values in scores.items()}
        truth = [target.names[one] if target.has_classes else float(one[0]) for one in tables[split]["target"]]
        table = pd.DataFrame({"sequence": tables[split]["sequence"].to_numpy(), "truth": truth})
        table[["bits_per_base", "bits_per_base_without"]] = bits_N2
        table.to_parquet(work / f"predictions-{stems[split]}.parquet")
    (work / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")


def build_generator(
    options: FinetuneOptions, target: Target, tokenizer: SequenceTokenizer, train: pd.DataFrame
) -> DnaForGenerationTask:
    """The language model (with its weights, or random ones) and a new head, which adds zeros."""
    model = load_masked_model(options.model, trust_remote_code=options.trust_remote_code)[0]
    if options.random_weights:
        model = type(model)(model.config)
    config = task_config(options, target, tokenizer, model)
    config.base_ids = [int(number) for number in tokenizer(["ACGT"])[0].ids[tokenizer.prefix :][:4]]
    config.tie_word_embeddings = model.config.tie_word_embeddings
    if target.is_regression:
        numbers_N = np.concatenate(train["target"].to_list())
        config.label_range = [float(numbers_N.min()), float(numbers_N.max())]
    return DnaForGenerationTask(config, model)


class Noise:
    """Tokenized examples -> a padded batch in which part of the bases is hidden, anew each time."""

    def __init__(
        self, tokenizer: SequenceTokenizer, base_ids: list[int], conditions: list[Any], dropout: float, seed: int
    ) -> None:
        """conditions: those of train, a class or an array of one number each."""
        self._pad_id, self._mask_id = tokenizer.pad_id, tokenizer.tokenizer.mask_token_id
        self._code = np.full(len(tokenizer.tokenizer), -1)
        self._code[list(base_ids)] = range(4)
        self._nothing: Any = np.array([np.nan], np.float32) if np.ndim(conditions[0]) else -1
        self._conditions, self._dropout, self._seed = conditions, dropout, seed
        self._rng = np.random.default_rng((seed, rank_from_environment()))

    def bases(self, ids: list[int]) -> np.ndarray:
        """Tokens that are A, C, G or T."""
        return np.flatnonzero(self._code[ids] >= 0)

    def drawn(self, examples: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        """Each example DRAWS times with what is hidden of it, each of these with `count` conditions, its own the first:
        the same for each call."""
        rng, found = np.random.default_rng((self._seed, 1)), []
        for example in examples:
            others = [self._conditions[at] for at in rng.integers(len(self._conditions), size=count - 1)]
            for share in (np.arange(DRAWS) + rng.random()) / DRAWS:
                one = {**example, "hidden": self._hidden(example["ids"], share, rng)}
                found += [{**one, "target": condition} for condition in (example["target"], *others)]
        return found

    def _hidden(self, ids: list[int], share: float, rng: np.random.Generator) -> np.ndarray:
        """Some of the bases: more than this share of them, in [0, 1)."""
        bases = self.bases(ids)
        return rng.choice(bases, int(share * len(bases)) + 1, replace=False)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask and labels [B, S]; condition [B] or [B, 1]."""
        rng, size = self._rng, (len(examples), max(len(example["ids"]) for example in examples))
        ids_BS, mask_BS, labels_BS = np.full(size, self._pad_id), np.zeros(size, int), np.full(size, NO_LABEL)
        shares_B = (rng.permutation(len(examples)) + rng.random()) / len(examples)
        conditions = []
        for row, (example, share) in enumerate(zip(examples, shares_B, strict=True)):
            ids, is_drawn = np.array(example["ids"]), "hidden" in example
            hidden = example["hidden"] if is_drawn else self._hidden(example["ids"], share, rng)
            labels_BS[row, hidden] = self._code[ids[hidden]]
            ids[hidden] = self._mask_id
            ids_BS[row, : len(ids)], mask_BS[row, : len(ids)] = ids, 1
            left_out = not is_drawn and rng.random() < self._dropout
            conditions.append(self._nothing if left_out else example["target"])
        arrays = {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BS}
        arrays["condition"] = np.array(conditions)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def bits_of(nats_M: np.ndarray, hidden_M: np.ndarray, sizes_N: np.ndarray) -> np.ndarray:
    """Bits per base [N, 2], the bound by the own condition and without knowing it, from the mean of -ln p over the
    hidden bases of each row of `drawn` and their number. The gain is that of all of them together: less noise."""
    nats_NDK, hidden_NDK = (values_M.reshape(len(sizes_N), DRAWS, -1) for values_M in (nats_M, hidden_M))
    own_N = nats_NDK[:, :, 0].mean(axis=1)
    log_p_NK = -(nats_NDK * hidden_NDK).sum(axis=1) / hidden_NDK.sum(axis=1) * sizes_N[:, None]
    gain_N = log_p_NK[:, 0] - np.logaddexp.reduce(log_p_NK, axis=1) + np.log(log_p_NK.shape[1])
    return np.stack([own_N, own_N + gain_N / sizes_N], axis=1) / np.log(2)


def bound_scores(
    bits_N2: np.ndarray, sizes_N: np.ndarray, target: Target, group_N: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """value, low and high of both and of the gain, over bases; the bootstrap draws whole groups."""

    def score(sizes: np.ndarray, bits: np.ndarray, _: Target) -> dict[str, float]:
        by, without = (float(np.average(column, weights=sizes)) for column in bits.T)
        return {"bits_per_base": by, "bits_per_base_without": without, "gain": without - by}

    sizes, bits = ([all_[group_N == group] for group in np.unique(group_N)] for all_ in (sizes_N, bits_N2))
    return with_intervals(score, sizes, bits, target, seed=seed)
