"""One fine-tuning run: an encoder with a new head, trained by transformers' Trainer, scored, and written to a folder.

In:  options, tables by split with their targets, a seed.
Out: model/ (encoder, adapted fully, by LoRA or not at all, and head; transformers loads it without megadna),
     metrics.json, and predictions and plots of every split but train.
Separate from megadna.downstream.finetune, which checks options and data before torch and transformers are imported.
"""

import inspect
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from megadna.downstream import modeling_dna_task
from megadna.downstream.encoder import SequenceTokenizer, load_model
from megadna.downstream.examples import NO_LABEL, Collator, tokenized
from megadna.downstream.inputs import file_names, value_columns
from megadna.downstream.metrics import probabilities, scored, scores, write_plots
from megadna.downstream.modeling_dna_task import DnaForBaseTask, DnaForPairTask, DnaForSequenceTask, DnaTaskConfig
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.tasks import Target
from megadna.errors import require
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)
_TIMINGS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")  # among Trainer's metrics
_IMPORT_HERE = "# A saved copy imports the encoder's class and configuration here.\n"
_QUERY_VALUE = {"query", "value", "q_proj", "v_proj", "Wqkv", "query_key_value"}  # what LoRA adapts, as its paper does
_PROBLEMS = {"classification": "single_label_classification", "multilabel": "multi_label_classification"}
_PROBLEMS["contact"] = _PROBLEMS["multilabel"]
_AUTO_CLASSES = {
    "DnaForSequenceTask": "AutoModelForSequenceClassification",
    "DnaForBaseTask": "AutoModelForTokenClassification",
    "DnaForPairTask": "AutoModel",
    "DnaForGenerationTask": "AutoModelForMaskedLM",
}


def train_and_score(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, work: Path
) -> None:
    """Write `work`: model/, metrics.json, predictions and plots of every split but train."""
    set_seed(seed)
    tokenizer, examples = tokenized(options, tables)
    weights = _class_weights(tables["train"], target) if options.class_weights else None
    with Progress(f"loading {options.model}"):
        model = build_model(options, target, tokenizer, weights)
    trainer, predictions = trained(
        model, tokenizer, options, target.main_score, seed, work,
        train=examples.pop("train"), dev=examples["dev"], predicted=examples,
        data_collator=Collator(tokenizer.pad_id, target),
        compute_metrics=lambda found: scores(*_flat(*_rows(found.label_ids, found.predictions, target)), target),
    )  # fmt: skip
    if not trainer.is_world_process_zero():
        return
    found, stems = {}, file_names(list(predictions), "predictions-{}.parquet")
    for split, output in predictions.items():
        truth, predicted = _rows(output.label_ids, output.predictions, target)
        groups = tables[split]["group"].to_numpy() if "group" in tables[split] else None
        found[split] = scored(truth, predicted, target, seed=seed, groups=groups)
        _add_remark(found[split], shared_with_train(tables, split))
        table = _predictions_table(tables[split], truth, predicted, target)
        table.to_parquet(work / f"predictions-{stems[split]}.parquet")
        if split != "dev" or len(predictions) == 1:
            write_plots(*_flat(truth, predicted), target, work, split, stems[split])
    _remark_on_training(found["dev"], target.main_score, trainer.state.log_history)
    (work / "metrics.json").write_text(json.dumps(_without_nan(found), indent=1) + "\n")


def trained(
    model: Any,
    tokenizer: SequenceTokenizer,
    options: FinetuneOptions,
    best: str,
    seed: int,
    work: Path,
    *,
    train: list[Any],
    dev: list[Any],
    predicted: dict[str, list[Any]],
    **how: Any,
) -> tuple[Trainer, dict[str, Any]]:
    """A Trainer that has trained, and what it predicts of each of the `predicted` splits; model/ is written. best: the
    score on dev that chooses the model; how: what the Trainer takes besides."""
    trainer = Trainer(
        model=adapt(model, options),
        args=_arguments(options, best, len(train), seed, work),
        callbacks=[EarlyStoppingCallback(options.patience)] if options.patience else [],
        train_dataset=train,
        eval_dataset=dev,
        **how,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(reporter := Reporter())
    with reporter.during(f"training with seed {seed}", "steps"):
        trainer.train()
    predictions = {}
    for split, examples in predicted.items():
        with reporter.during(f"predicting {split}", "batches"):
            predictions[split] = trainer.predict(examples)
        _log_scores(split, trainer.state, predictions[split].metrics)
    if trainer.is_world_process_zero():
        shutil.rmtree(work / "trainer", ignore_errors=True)
        save_model(trainer.model, model, tokenizer, work / "model")
    return trainer, predictions


def _remark_on_training(dev: dict[str, dict[str, Any]], best: str, history: list[dict[str, float]]) -> None:
    """Add to dev's remarks if the score that chooses the model never changed."""
    values = [entry[f"eval_{best}"] for entry in history if f"eval_{best}" in entry]
    remark = ""
    if values and all(map(math.isnan, values)):
        remark = f"{best} was undefined at every evaluation ({len(values)}), so the last model is kept"
    elif len(values) > 1 and len(set(values)) == 1:
        remark = f"{best} was {values[0]:.4f} at every evaluation ({len(values)}), so the first model is kept"
    _add_remark(dev, remark)


def shared_with_train(tables: dict[str, pd.DataFrame], split: str) -> str:
    """How many rows train has relatives of (--leakage report); "" for none."""
    if "group" not in tables[split]:
        return ""
    shared = tables[split]["group"].isin(tables["train"]["group"]).sum()
    return f"{shared} of {len(tables[split])} rows are of a group that train has too" if shared else ""


def _add_remark(scores: dict[str, dict[str, Any]], remark: str) -> None:
    for score in scores.values():
        score["remark"] = "; ".join(filter(None, [score["remark"], remark]))


def _without_nan(found: Any) -> Any:
    """null instead of NaN, which JSON does not have."""
    if isinstance(found, dict):
        return {key: _without_nan(value) for key, value in found.items()}
    return None if isinstance(found, float) and math.isnan(found) else found


def _log_scores(split: str, state: TrainerState, metrics: dict[str, float]) -> None:
    """One line: the split, where in the training, and the Trainer's metrics of the model less its timings."""
    found = {name.partition("_")[2]: value for name, value in metrics.items() if name.startswith(("eval_", "test_"))}
    shown = [f"{name} {value:.4f}" for name, value in found.items() if name not in _TIMINGS]
    log.info("%s | epoch %.3g, step %d | %s", split, state.epoch or 0, state.global_step, " | ".join(shown))


def _arguments(options: FinetuneOptions, best: str, num_examples: int, seed: int, work: Path) -> Any:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    steps = options.max_steps or options.epochs * -(-num_examples // (options.batch_size * ranks))
    cuda = torch.cuda.is_available()
    strategy = "steps" if options.eval_steps else "epoch"
    return TrainingArguments(
        output_dir=str(work / "trainer"),
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=4 * options.batch_size,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule if options.schedule != "constant" else "constant_with_warmup",
        warmup_steps=int(options.warmup_fraction * steps),
        weight_decay=options.weight_decay,
        eval_strategy=strategy,
        save_strategy=strategy,
        eval_steps=options.eval_steps or None,
        save_steps=options.eval_steps or 500,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=best,
        greater_is_better=best != "loss",
        bf16=options.precision == "bf16" or (options.precision == "auto" and cuda),
        use_cpu=not cuda,
        seed=seed,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,  # Reporter shows them
        logging_steps=max(1, steps // 100),
        report_to="none",
    )


def _class_weights(train: pd.DataFrame, target: Target) -> list[float]:
    counts = np.bincount(np.concatenate(list(map(np.ravel, train["target"]))), minlength=len(target.names))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()


def _rows(labels: np.ndarray, logits: np.ndarray, target: Target) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truth and probabilities (or numbers) of each sequence: a row per sequence, nucleotide or pair, no padding."""
    if not target.ragged:
        return list(labels[:, None]), list(probabilities(logits, target)[:, None])
    truth, predicted = [], []
    for label_L, logits_LC in zip(labels, logits, strict=True):
        padding = np.isnan(label_L) | (label_L == NO_LABEL)
        padding = padding if padding.ndim == 1 else padding.any(axis=1)
        truth.append(label_L[~padding])
        predicted.append(probabilities(logits_LC[: len(label_L)][~padding], target))
    return truth, predicted


def _flat(truth: list[np.ndarray], predicted: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(truth), np.concatenate(predicted)


def _predictions_table(
    table: pd.DataFrame, truth: list[np.ndarray], predicted: list[np.ndarray], target: Target
) -> pd.DataFrame:
    """sequence, truth, label (of classes: the most probable), a column of probabilities (or numbers) for each name, and
    the group; classes by their names. A cell of a task per nucleotide or pair is a list."""
    names = np.array(target.names, object)
    shown = table[["sequence"]].copy()
    if target.has_classes:
        for key, numbers in (("truth", truth), ("label", [rows.argmax(axis=1) for rows in predicted])):
            lists = [names[each.astype(int)].tolist() for each in numbers]
            shown[key] = lists if target.ragged else [cells[0] for cells in lists]
    else:
        given = truth if target.ragged else table["target"]
        shown["truth"] = [np.ravel(numbers).tolist() for numbers in given]
    for number, column in enumerate(value_columns(target.names, is_regression=target.is_regression)):
        values = [rows[:, number].astype(np.float32) for rows in predicted]
        shown[column] = values if target.ragged else np.concatenate(values)
    if "group" in table:
        shown["group"] = table["group"]
    return shown.reset_index(drop=True)


def build_model(
    options: FinetuneOptions, target: Target, tokenizer: SequenceTokenizer, class_weights: list[float] | None
) -> Any:
    """The encoder (with its weights, or random ones) and a new head for the target."""
    encoder = load_model(options.model, trust_remote_code=options.trust_remote_code)
    if options.random_weights:
        encoder = type(encoder)(encoder.config)
    require(
        not target.ragged or (tokenizer.k > 0 and tokenizer.stride in (1, tokenizer.k)),
        f"{options.model}: its tokens vary in length; a task per nucleotide needs tokens of one length",
    )
    config = task_config(options, target, tokenizer, encoder)
    config.class_weights = class_weights
    kind = DnaForPairTask if target.task == "contact" else DnaForBaseTask if target.ragged else DnaForSequenceTask
    return kind(config, encoder)


def task_config(options: FinetuneOptions, target: Target, tokenizer: SequenceTokenizer, encoder: Any) -> DnaTaskConfig:
    """What the folder states of the head and its tokens."""
    return DnaTaskConfig(
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
        label_means=target.means or None,
        label_scales=target.scales or None,
        problem_type="regression" if target.is_regression else _PROBLEMS[target.task.removeprefix("base_")],
        id2label=dict(enumerate(target.names)),
        label2id={name: number for number, name in enumerate(target.names)},
        max_position_embeddings=tokenizer.max_tokens,
        pad_token_id=tokenizer.pad_id,
    )


def adapt(model: Any, options: FinetuneOptions) -> Any:
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
        _AUTO_CLASSES[type(model).__name__]: f"{own}.{type(model).__name__}",
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


class Reporter(TrainerCallback):
    """A callback that shows the Trainer's steps and batches as megadna's progress."""

    def __init__(self) -> None:
        self._progress = Progress("")
        self._batches = 0

    @contextmanager
    def during(self, what: str, unit: str) -> Iterator[None]:
        """Around one piece of work; `unit`: steps (of training), or batches (of a prediction)."""
        with Progress(what, unit=unit) as self._progress:
            yield

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The number of steps is known now."""
        self._progress.total = state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """One step."""
        self._progress.advance()
        losses = [f", loss {entry['loss']:.4f}" for entry in state.log_history[-3:] if "loss" in entry]
        self._progress.note = f"epoch {state.epoch:.3g}{''.join(losses[-1:])}"

    def on_prediction_step(self, args: Any, state: Any, control: Any, **loaders: Any) -> None:
        """One batch of an evaluation during training, or of a prediction."""
        self._batches += 1
        total = len(loaders["eval_dataloader"])
        if self._progress.unit == "batches":
            self._progress.total = total
            self._progress.advance()
        else:
            self._progress.note = f"epoch {state.epoch:.3g}, scoring dev: batch {self._batches} of {total}"

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **unused: Any) -> None:
        """The end of an evaluation during training."""
        self._batches, self._progress.note = 0, ""
        _log_scores("dev", state, metrics)
