"""One fine-tuning run through transformers' Trainer: train, score, plot, write the run's folder.

In:  options, tables by split with their targets, a seed.
Out: model/, metrics.json, and predictions and plots of every split but train.
Separate from megadna.downstream.finetune, which checks options and data before torch and transformers are imported.
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
    """confusion-SPLIT.png, roc-SPLIT.png and pr-SPLIT.png, or scatter-SPLIT.png; `file_name` replaces SPLIT."""
    title, names = _shown(split), [_shown(name) for name in target.names]
    if target.is_regression:
        figure, axes = _figure()
        for number, name in enumerate(names):
            axes.plot(truth[:, number], predicted_NC[:, number], ".", markersize=3, label=name)
        axes.set(xlabel="true", ylabel="predicted", title=title)
        axes.legend()
        figure.savefig(folder / f"scatter-{file_name}.png")
        return
    truth_NC = truth if target.independent else np.eye(len(names))[truth]
    if not target.independent:
        figure, axes = _figure()
        ConfusionMatrixDisplay.from_predictions(
            truth,
            predicted_NC.argmax(axis=1),
            labels=list(range(len(names))),
            display_labels=names,
            ax=axes,
            colorbar=False,
        )
        figure.savefig(folder / f"confusion-{file_name}.png")
    for kind, display in (("roc", RocCurveDisplay), ("pr", PrecisionRecallDisplay)):
        figure, axes = _figure()
        for number, name in enumerate(names):
            if 0 < truth_NC[:, number].sum() < len(truth_NC):
                display.from_predictions(truth_NC[:, number], predicted_NC[:, number], name=name, ax=axes)
        axes.set_title(title)
        figure.savefig(folder / f"{kind}-{file_name}.png")


def _shown(name: str) -> str:
    """The name, escaped for matplotlib, which takes text between $ as a formula and hides legend entries with _."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    return figure, figure.subplots()


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

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **unused: Any
    ) -> None:
        """One batch of an evaluation during training, or of a prediction."""
        self._batches += 1
        if self._progress.unit == "batches":
            self._progress.total = len(eval_dataloader)
            self._progress.advance()
        else:
            self._progress.note = f"evaluating, batch {self._batches} of {len(eval_dataloader)}"

    def on_evaluate(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The end of an evaluation during training."""
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
    _remark_on_training(found["dev"], target.main_score, trainer.state.log_history)
    (work / "metrics.json").write_text(json.dumps(_without_nan(found), indent=1) + "\n")


def _remark_on_training(dev: dict[str, dict[str, Any]], best: str, history: list[dict[str, float]]) -> None:
    """Add to dev's remarks if the score that chooses the model never changed."""
    values = [entry[f"eval_{best}"] for entry in history if f"eval_{best}" in entry]
    remark = ""
    if values and all(map(math.isnan, values)):
        remark = f"{best} was undefined at every evaluation ({len(values)}), so the last model is kept"
    elif len(values) > 1 and len(set(values)) == 1:
        remark = f"{best} was {values[0]:.4f} at every evaluation ({len(values)}), so the first model is kept"
    for score in dev.values():
        score["remark"] = "; ".join(filter(None, [score["remark"], remark]))


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
        metric_for_best_model=target.main_score,
        greater_is_better=True,
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
    """sequence, truth, label (of classes: the most probable), and a column of probabilities (or numbers) for each name;
    classes by their names. A cell of a task per nucleotide or pair is a list."""
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
    return shown.reset_index(drop=True)
