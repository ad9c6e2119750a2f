"""PNG plots of a test set: confusion matrix, ROC and precision-recall curves, or predicted against true numbers.

Tells of the steps and batches of transformers' Trainer through megadna.progress.

One run of fine-tuning through transformers' Trainer: train, score, write the run's folder.

Apart from megadna.downstream.finetune, which checks options and data before torch and transformers are imported.
"""

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
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from megadna.downstream.encoder import load_config, load_tokenizer
from megadna.downstream.inputs import file_names, value_columns
from megadna.downstream.metrics import probabilities, scored, scores
from megadna.downstream.options import FinetuneOptions
from megadna.downstream.task_model import NO_LABEL, Collator, adapt, build_model, examples_of, save_model
from megadna.downstream.tasks import Target
from megadna.log import get_logger
from megadna.progress import Progress, tracked

log = get_logger(__name__)


def write_plots(
    truth: np.ndarray, predicted_NC: np.ndarray, target: Target, folder: Path, split: str, file_name: str
) -> None:
    """confusion-SPLIT.png, roc-SPLIT.png and pr-SPLIT.png, or scatter-SPLIT.png; `file_name` is the split's part."""
    title, names = _shown(split), [_shown(name) for name in target.names]
    if target.is_regression:
        figure, axes = _figure()
        for place, name in enumerate(names):
            axes.plot(truth[:, place], predicted_NC[:, place], ".", markersize=3, label=name)
        axes.set(xlabel="true", ylabel="predicted", title=title)
        axes.legend()
        figure.savefig(folder / f"scatter-{file_name}.png")
        return
    several = target.independent
    truth_NC = truth if several else np.eye(len(target.names))[truth]
    if not several:
        figure, axes = _figure()
        called = predicted_NC.argmax(axis=1)
        labels = list(range(len(target.names)))
        ConfusionMatrixDisplay.from_predictions(
            truth, called, labels=labels, display_labels=names, ax=axes, colorbar=False
        )
        figure.savefig(folder / f"confusion-{file_name}.png")
    for kind, display in (("roc", RocCurveDisplay), ("pr", PrecisionRecallDisplay)):
        figure, axes = _figure()
        for place, name in enumerate(names):
            if 0 < truth_NC[:, place].sum() < len(truth_NC):
                display.from_predictions(truth_NC[:, place], predicted_NC[:, place], name=name, ax=axes)
        axes.set_title(title)
        figure.savefig(folder / f"{kind}-{file_name}.png")


def _shown(name: str) -> str:
    """The name as matplotlib draws it: no formula between dollar signs, no legend entry left out for its underscore."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    return figure, figure.subplots()


class Reporter(TrainerCallback):
    """A callback; what the Trainer does within `during` is told."""

    def __init__(self) -> None:
        self._progress = Progress("")
        self._batches = 0

    @contextmanager
    def during(self, what: str, unit: str) -> Iterator[None]:
        """`unit`: steps (of training), or batches (of a prediction)."""
        with Progress(what, unit=unit) as self._progress:
            yield

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The number of steps is known from now on."""
        self._progress.total = state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """One step."""
        self._progress.advance()

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **unused: Any
    ) -> None:
        """One batch of an evaluation while training, or of a prediction."""
        self._batches += 1
        if self._progress.unit == "batches":
            self._progress.total = len(eval_dataloader)
            self._progress.advance()
        else:
            self._progress.note = f"evaluating, batch {self._batches} of {len(eval_dataloader)}"

    def on_evaluate(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The end of an evaluation while training."""
        self._batches, self._progress.note = 0, ""


def train_and_score(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, work: Path
) -> None:
    """Write `work`: model/, metrics.json, predictions and plots of every split but train."""
    set_seed(seed)
    trust = options.trust_remote_code
    config = load_config(options.model, trust_remote_code=trust)
    tokenizer = load_tokenizer(options.model, config, trust_remote_code=trust, max_tokens=options.max_tokens)
    examples = {
        split: examples_of(table, tokenizer, options, augment=options.augment and split == "train")
        for split, table in tracked(tables.items(), "tokenizing", len(tables), "tables")
    }
    weights = _class_weights(tables["train"], target) if options.class_weights else None
    with Progress(f"loading {options.model}"):
        model = build_model(options, target, tokenizer, weights)
    trainer = Trainer(
        model=adapt(model, options),
        args=_arguments(options, target, len(examples["train"]), seed, work),
        train_dataset=examples["train"],
        eval_dataset=examples["dev"],
        data_collator=Collator(tokenizer.pad_id, target),
        compute_metrics=lambda found: _logged(found.label_ids, found.predictions, target),
        callbacks=[EarlyStoppingCallback(options.patience)] if options.patience else [],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(reporter := Reporter())
    with reporter.during(f"training with seed {seed}", "steps"):
        trainer.train()
    predictions = {}
    for split in (name for name in tables if name != "train"):
        with reporter.during(f"predicting {split}", "batches"):
            predictions[split] = trainer.predict(examples[split])
    if not trainer.is_world_process_zero():
        return
    shutil.rmtree(work / "trainer", ignore_errors=True)
    save_model(trainer.model, model, tokenizer, work / "model")
    found, stems = {}, file_names(list(predictions), "predictions-{}.parquet")
    for split, output in predictions.items():
        truth, predicted = _rows(output.label_ids, output.predictions, target)
        found[split] = scored(truth, predicted, target, seed=seed)
        table = _predictions_table(tables[split], truth, predicted, target)
        table.to_parquet(work / f"predictions-{stems[split]}.parquet")
        if split != "dev" or len(predictions) == 1:
            write_plots(*_flat(truth, predicted), target, work, split, stems[split])
    _remark_on_training(found["dev"], options.best or target.main_score, trainer.state.log_history)
    (work / "metrics.json").write_text(json.dumps(_without_nan(found), indent=1) + "\n")


def _remark_on_training(dev: dict[str, dict[str, Any]], best: str, history: list[dict[str, float]]) -> None:
    """Add to dev's remarks that the score by which the model is chosen never changed."""
    values = [entry[f"eval_{best}"] for entry in history if f"eval_{best}" in entry]
    said = ""
    if values and all(map(math.isnan, values)):
        said = f"{best} was undefined at every evaluation ({len(values)}), so the last model is kept"
    elif len(values) > 1 and len(set(values)) == 1:
        said = f"{best} was {values[0]:.4f} at every evaluation ({len(values)}), so the first model is kept"
    for score in dev.values():
        score["remark"] = "; ".join(filter(None, [score["remark"], said]))


def _without_nan(found: Any) -> Any:
    """null instead of NaN, which JSON does not have."""
    if isinstance(found, dict):
        return {key: _without_nan(value) for key, value in found.items()}
    return None if isinstance(found, float) and math.isnan(found) else found


def _logged(labels: np.ndarray, logits: np.ndarray, target: Target) -> dict[str, float]:
    found = scores(*_flat(*_rows(labels, logits, target)), target)
    log.info("%s", " | ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


def _arguments(options: FinetuneOptions, target: Target, num_examples: int, seed: int, work: Path) -> Any:
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
        metric_for_best_model=options.best or target.main_score,
        greater_is_better=options.best != "mse",
        bf16=options.precision == "bf16" or (options.precision == "auto" and cuda),
        use_cpu=not cuda,
        seed=seed,
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,  # task_progress.py tells
        logging_steps=max(1, steps // 100),
        report_to="none",
    )


def _class_weights(train: pd.DataFrame, target: Target) -> list[float]:
    counts = np.bincount(np.concatenate(list(map(np.ravel, train["target"]))), minlength=len(target.names))
    return (counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist()


def _rows(labels: np.ndarray, logits: np.ndarray, target: Target) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truth and probabilities (or numbers) of each sequence: a row a sequence, nucleotide or pair, padding left out."""
    if not target.ragged:
        return list(labels[:, None] if labels.ndim == 1 else labels[:, None, :]), list(
            probabilities(logits, target)[:, None, :]
        )
    truth, predicted = [], []
    for label_L, logits_LC in zip(labels, logits, strict=True):
        padding = (
            (label_L == NO_LABEL) if label_L.ndim == 1 else (np.isnan(label_L) | (label_L == NO_LABEL)).any(axis=1)
        )
        truth.append(label_L[~padding])
        predicted.append(probabilities(logits_LC[: len(label_L)][~padding], target))
    return truth, predicted


def _flat(truth: list[np.ndarray], predicted: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(truth), np.concatenate(predicted)


def _predictions_table(
    table: pd.DataFrame, truth: list[np.ndarray], predicted: list[np.ndarray], target: Target
) -> pd.DataFrame:
    """sequence, truth, label (of classes: the most probable), and a column of probabilities (or numbers) for each name;
    classes by their names. A cell of a task per nucleotide or pair is a list."""
    names = np.array(target.names, object)
    shown = table[["sequence"]]
    if target.has_classes:
        classes = {"truth": truth, "label": [rows.argmax(axis=1) for rows in predicted]}
        lists = {key: [names[numbers.astype(int)].tolist() for numbers in values] for key, values in classes.items()}
        one_each = {key: [cells[0] for cells in values] for key, values in lists.items()}
        shown = shown.assign(**(lists if target.ragged else one_each))
    else:
        given = truth if target.ragged else table["target"]
        shown = shown.assign(truth=[np.ravel(numbers).tolist() for numbers in given])
    for place, column in enumerate(value_columns(target.names, is_regression=target.is_regression)):
        values = [rows[:, place].astype(np.float32) for rows in predicted]
        shown[column] = values if target.ragged else np.concatenate(values)
    return shown.reset_index(drop=True)
