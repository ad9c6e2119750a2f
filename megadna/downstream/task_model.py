"""What is trained: tokenized examples in padded batches, and an encoder with a head.

The encoder is adapted fully, by LoRA or not at all, and saved with its head as a folder that transformers loads without
megadna.
"""

import inspect
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from megadna.downstream import modeling_dna_task
from megadna.downstream.encoder import SequenceTokenizer, load_model
from megadna.downstream.modeling_dna_task import DnaForBaseTask, DnaForPairTask, DnaForSequenceTask, DnaTaskConfig
from megadna.downstream.tasks import Target
from megadna.errors import require
from megadna.genome.records import reverse_complement

if TYPE_CHECKING:
    from megadna.downstream.options import FinetuneOptions

NO_LABEL = -100


class Collator:
    """Tokenized examples -> a padded batch."""

    def __init__(self, pad_id: int, target: Target) -> None:
        self._pad_id, self._target = pad_id, target

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [B, S], labels [B], [B, C], [B, L], [B, L, C] or, of pairs, [B, P, 1]."""
        longest = max(len(example["ids"]) for example in examples)
        ids = torch.full((len(examples), longest), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            ids[row, : len(example["ids"])] = torch.tensor(example["ids"])
            mask[row, : len(example["ids"])] = 1
        labels = [torch.tensor(example["target"]) for example in examples]
        if self._target.ragged:
            empty = float("nan") if labels[0].is_floating_point() else NO_LABEL
            stacked = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=empty)
        else:
            stacked = torch.stack(labels)
        return {"input_ids": ids, "attention_mask": mask, "labels": stacked}


def examples_of(
    table: pd.DataFrame, tokenizer: SequenceTokenizer, options: "FinetuneOptions", *, augment: bool = False
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
            require(options.crop, f"{message}; --crop keeps its middle, --max_tokens widens the context")
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


_IMPORT_HERE = "# A saved copy imports the encoder's class and configuration here.\n"
_QUERY_VALUE = {"query", "value", "q_proj", "v_proj", "Wqkv", "query_key_value"}  # what LoRA adapts, as its paper does
_PROBLEMS = {"classification": "single_label_classification", "multilabel": "multi_label_classification"}
_PROBLEMS["contact"] = _PROBLEMS["multilabel"]
_AUTO_CLASSES = {
    DnaForSequenceTask: "AutoModelForSequenceClassification",
    DnaForBaseTask: "AutoModelForTokenClassification",
    DnaForPairTask: "AutoModel",
}


def build_model(
    options: "FinetuneOptions", target: Target, tokenizer: SequenceTokenizer, class_weights: list[float] | None
) -> Any:
    """The encoder (with its weights, or random ones) and a new head for the target."""
    encoder = load_model(options.model, trust_remote_code=options.trust_remote_code)
    if options.random_weights:
        encoder = type(encoder)(encoder.config)
    require(
        not target.ragged or (tokenizer.k > 0 and tokenizer.stride in (1, tokenizer.k)),
        f"{options.model}: its tokens vary in length; a task per nucleotide needs tokens of one length",
    )
    problem = "regression" if target.is_regression else _PROBLEMS[target.task.removeprefix("base_")]
    config = DnaTaskConfig(
        encoder=encoder.config.to_dict(),
        pooling=options.pooling,
        pool_special_tokens=False,
        head_sizes=tuple(options.head_sizes),
        head_activation=options.head_activation,
        head_dropout=options.dropout,
        k=max(1, tokenizer.k),
        stride=tokenizer.stride,
        prefix=tokenizer.prefix,
        suffix=tokenizer.suffix,
        class_weights=class_weights,
        problem_type=problem,
        id2label=dict(enumerate(target.names)),
        label2id={name: number for number, name in enumerate(target.names)},
        max_position_embeddings=tokenizer.max_tokens,
        pad_token_id=tokenizer.pad_id,
    )
    kind = DnaForPairTask if target.task == "contact" else DnaForBaseTask if target.ragged else DnaForSequenceTask
    return kind(config, encoder)


def adapt(model: Any, options: "FinetuneOptions") -> Any:
    """The model, frozen as far as it is not trained; for LoRA a peft model."""
    if options.adapt == "frozen":
        model.encoder.requires_grad_(False)
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    if options.adapt != "lora":
        return model
    from peft import LoraConfig, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, m in model.encoder.named_modules() if isinstance(m, torch.nn.Linear)}
    targets = sorted(linear & _QUERY_VALUE) or sorted(linear)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.dropout,
        target_modules=rf"encoder\..*\.({'|'.join(targets)})",
        modules_to_save=["head"],
    )
    return get_peft_model(model, config)


def save_model(trained: Any, model: Any, tokenizer: SequenceTokenizer, folder: Path) -> None:
    """Weights (LoRA merged), tokenizer and the Python files that the folder needs; no megadna is needed to load it."""
    if trained is not model:
        model = trained.merge_and_unload()
    own = "modeling_dna_task"
    model.config.auto_map = {
        "AutoConfig": f"{own}.DnaTaskConfig",
        _AUTO_CLASSES[type(model)]: f"{own}.{type(model).__name__}",
    }
    model.save_pretrained(folder)
    tokenizer.tokenizer.save_pretrained(folder)
    imports = ""
    for part, name in ((model.encoder, "Encoder"), (model.encoder.config, "EncoderConfig"), (tokenizer.tokenizer, "")):
        module = type(part).__module__
        if module.startswith("transformers."):
            source = "transformers"
        else:
            path = Path(inspect.getfile(type(part)))
            source = f".{path.stem}"
            shutil.copyfile(path, folder / path.name)
        imports += f"from {source} import {type(part).__name__} as {name}\n" if name else ""
    text = Path(modeling_dna_task.__file__).read_text(encoding="utf-8")
    (folder / f"{own}.py").write_text(text.replace(_IMPORT_HERE, _IMPORT_HERE + imports), encoding="utf-8")
