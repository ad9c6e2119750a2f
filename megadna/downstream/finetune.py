"""Fine-tuning of any Hugging Face DNA encoder through transformers' Trainer and peft.

In:  an encoder's folder, labelled sequences (megadna.downstream.tasks).
Out: RUN/ (RUN/seed-1/, RUN/fold-0/ ... where there are several): model/ (a Hugging Face folder that pipeline() runs),
     options.json, metrics.json, predictions-SPLIT.parquet, and plots. metrics.csv has every score of every run.
A run folder appears whole, under its name, at the end; a command that was stopped skips the runs that are whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from megadna.downstream.encoder import load_config, load_tokenizer
from megadna.downstream.metrics import CLASS_SCORES, NUMBER_SCORES, all_scores, probabilities, scores, with_intervals
from megadna.downstream.options import ModelOptions
from megadna.downstream.task_batches import NO_LABEL, Collator, examples_of
from megadna.downstream.task_model import adapt, build_model, save_model
from megadna.downstream.task_plots import write_plots
from megadna.downstream.tasks import Columns, Target, Task, add_targets, make_target, read_task
from megadna.errors import UserError, require, require_share
from megadna.files import atomic_file, atomic_folder, work_folder
from megadna.log import get_logger, rank_from_environment
from megadna.ownership import clear_folder, is_unused, refuse_occupied

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ModelOptions):
    """A fine-tuning experiment: data, head, and how to train."""

    model: str = ""
    """Hugging Face folder of the encoder."""
    data: Path = Path()
    """Folder of train, dev and test tables, or one table."""
    output: Path | None = None
    """Folder to write."""
    test: list[str] = field(default_factory=list)
    """Further test sets, as name=path."""
    task: Task = "classification"
    """What a label is: a class, 0/1 in several columns, a number, (base_...) one for every nucleotide, or (contact)
    pairs of nucleotides, as 3-17 9-40."""
    sequence_column: str = ""
    """Column of the sequences (default: sequence)."""
    label_columns: list[str] = field(default_factory=list)
    """Columns of the labels (default: label)."""
    label_names: list[str] = field(default_factory=list)
    """Names of the classes 0, 1, ..."""
    subset: str = ""
    """Task of a table that holds several (column task)."""
    dev_fraction: float = 0.1
    """Share of train that becomes dev, by seed, where there is no dev table."""
    folds: int = 0
    """Cross-validation: this many runs, each with another part of train as dev; 0: none."""
    seeds: list[int] = field(default_factory=list)
    """A run for each (default: 1)."""
    adapt: Literal["full", "lora", "frozen"] = "full"
    """What is trained beside the head."""
    random_weights: bool = False
    """Start from random weights instead of the model's (to see what pretraining gives)."""
    lora_rank: int = 16
    """LoRA: rank."""
    lora_alpha: int = 32
    """LoRA: scale."""
    lora_targets: list[str] = field(default_factory=list)
    """LoRA: names of the linear layers (default: query and value projections)."""
    pooling: Literal["mean", "cls", "max", "centre"] = "mean"
    """What a sequence head reads; centre: the middle token."""
    head_sizes: list[int] = field(default_factory=list)
    """Hidden layers of the head."""
    head_activation: Literal["tanh", "relu"] = "tanh"
    """Between layers of the head."""
    dropout: float = 0.1
    """Of the head and of LoRA."""
    epochs: int = 5
    """Passes over train."""
    max_steps: int = 0
    """Steps, instead of epochs."""
    batch_size: int = 32
    """Sequences a step and rank."""
    learning_rate: float = 3e-5
    """Peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps."""
    weight_decay: float = 0.01
    """AdamW's."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency."""
    patience: int = 0
    """Evaluations on dev without a better score before training stops; 0: no early stopping."""
    eval_steps: int = 0
    """Steps from evaluation to evaluation; 0: once an epoch."""
    best: str = ""
    """Score of dev by which the model is kept (default: mcc; pearson for numbers, auprc for contacts)."""
    stranded: bool = False
    """The label depends on the strand (also known from a column strand)."""
    augment: bool = False
    """Add the reverse complement of every train sequence; labels of nucleotides are reversed along."""
    force_augment: bool = False
    """--augment even where the task is stranded."""
    crop: bool = False
    """Cut sequences that are longer than the context to their middle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("dev_fraction", "warmup_fraction", "dropout"):
            require_share(f"--{key}", getattr(self, key))
        for key in ("epochs", "batch_size", "learning_rate", "lora_rank"):
            require(getattr(self, key) > 0, f"--{key} must be positive, got {getattr(self, key)}")
        require(self.folds == 0 or self.folds > 1, f"--folds must be 0 or at least 2, got {self.folds}")

    @property
    def columns(self) -> Columns:
        """Of the tables."""
        return Columns(self.sequence_column, tuple(self.label_columns), self.subset)


def finetune(model: Path | str, data: Path | str, output: Path | str, **options: Any) -> pd.DataFrame:
    """Fine-tune, write `output`, return every score: seed, fold, split, score, value, low, high.

    Keyword arguments are the fields of FinetuneOptions.
    """
    return finetune_with(FinetuneOptions(model=str(model), data=Path(data), output=Path(output), **options))


def finetune_with(options: FinetuneOptions) -> pd.DataFrame:
    """What `megadna finetune` does."""
    for key in ("model", "data", "output"):
        require(bool(getattr(options, key)) and getattr(options, key) != Path(), f"say --{key}")
    assert options.output is not None
    tables = read_task(options.data, options.columns)
    require("train" in tables, f"{options.data}: no train table (train.csv, .tsv, .parquet, .fna)")
    target = make_target(options.task, tables, options.columns, options.label_names, options.data)
    known = NUMBER_SCORES if target.is_regression else CLASS_SCORES
    require(options.best in ("", *known), f"--best {options.best}: must be one of {', '.join(known)}")
    for entry in options.test:
        name, _, path = entry.partition("=")
        require(bool(path) and name not in tables, f"--test {entry}: must be name=path, each name once")
        more = read_task(Path(path), options.columns)
        tables[name] = more["test"] if "test" in more else next(iter(more.values()))
    tables = {name: add_targets(table, target, f"{options.data} ({name})") for name, table in tables.items()}
    if options.augment and not options.force_augment:
        stranded = options.stranded or "strand" in tables["train"]
        require(not stranded, "--augment: the label of this task depends on the strand; --force_augment does it anyway")
    is_main = rank_from_environment() == 0
    is_new = is_main and _begin(options)
    try:
        found = [_one_run(options, tables, target, seed, fold) for seed, fold in _runs(options)]
    except UserError:
        if is_new and [entry.name for entry in options.output.iterdir()] == ["options.json"]:
            clear_folder(options.output)
            options.output.rmdir()
        raise
    frame = pd.concat(found, ignore_index=True)
    if is_main:
        with atomic_file(options.output / "metrics.csv") as temporary:
            frame.to_csv(temporary, index=False)
    return frame


def _runs(options: FinetuneOptions) -> Iterator[tuple[int, int]]:
    return ((seed, fold) for seed in options.seeds or [1] for fold in range(max(1, options.folds)))


def _stated(options: FinetuneOptions) -> str:
    return json.dumps(asdict(replace(options, seeds=[0])), default=str, indent=1)


def _begin(options: FinetuneOptions) -> bool:
    """Note the options in the output folder; False where a stopped run of these very options has. UserError where the
    folder contains something else."""
    assert options.output is not None
    output, note = options.output, options.output / "options.json"
    if note.is_file() and note.read_text(encoding="utf-8") == _stated(options):
        return False
    if not is_unused(output):
        refuse_occupied(output, " (it contains no stopped run of these options)")
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(note, replace=False) as temporary:
        temporary.write_text(_stated(options), encoding="utf-8")
    return True


def _one_run(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, fold: int
) -> pd.DataFrame:
    """Train, score and write one run, or read it back where it is whole already."""
    assert options.output is not None
    folder = options.output / (f"seed-{seed}" + (f"-fold-{fold}" if options.folds else ""))
    if not (folder / "metrics.json").is_file():
        is_main = rank_from_environment() == 0
        with atomic_folder(folder) if is_main else nullcontext(work_folder(folder)) as work:
            _train_and_score(options, _with_dev(tables, options, target, seed, fold), target, seed, work)
    if rank_from_environment() > 0:
        return pd.DataFrame()
    rows = [
        {"seed": seed, "fold": fold, "split": split, "score": score, **values}
        for split, found in json.loads((folder / "metrics.json").read_text()).items()
        for score, values in found.items()
    ]
    return pd.DataFrame(rows)


def _with_dev(
    tables: dict[str, pd.DataFrame], options: FinetuneOptions, target: Target, seed: int, fold: int
) -> dict[str, pd.DataFrame]:
    """The tables with a dev part of train: the fold, or a share by seed where there is no dev table."""
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

    train = tables["train"]
    labels = train["target"].to_numpy() if target.task == "classification" else None
    if "dev" in tables and not options.folds:
        return tables
    try:
        if options.folds:
            splitter = (KFold if labels is None else StratifiedKFold)(options.folds, shuffle=True, random_state=seed)
            chosen, dev = list(splitter.split(train, labels))[fold]
        else:
            rare = labels is None or np.bincount(labels)[np.unique(labels)].min() < 2
            stratify = None if rare else labels
            chosen, dev = train_test_split(
                np.arange(len(train)), test_size=options.dev_fraction, random_state=seed, stratify=stratify
            )
    except ValueError as error:
        raise UserError(f"{options.data}: {len(train)} train rows cannot give a dev part ({error})") from error
    return {**tables, "train": train.iloc[chosen], "dev": train.iloc[dev]}


def _train_and_score(
    options: FinetuneOptions, tables: dict[str, pd.DataFrame], target: Target, seed: int, work: Path
) -> None:
    from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, set_seed

    set_seed(seed)
    trust = options.trust_remote_code
    config = load_config(options.model, trust_remote_code=trust)
    tokenizer = load_tokenizer(options.model, config, trust_remote_code=trust, max_tokens=options.max_tokens)
    examples = {
        split: examples_of(table, tokenizer, options, augment=options.augment and split == "train")
        for split, table in tables.items()
    }
    weights = _class_weights(tables["train"], target) if options.class_weights else None
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
    trainer.train()
    predictions = {split: trainer.predict(examples[split]) for split in tables if split != "train"}
    if not trainer.is_world_process_zero():
        return
    shutil.rmtree(work / "trainer", ignore_errors=True)
    save_model(trainer.model, model, tokenizer, work / "model")
    found = {}
    for split, output in predictions.items():
        truth, predicted = _rows(output.label_ids, output.predictions, target)
        found[split] = with_intervals(all_scores, truth, predicted, target, seed=seed)
        _predictions_table(tables[split], truth, predicted, target).to_parquet(work / f"predictions-{split}.parquet")
        if split != "dev" or len(predictions) == 1:
            write_plots(*_flat(truth, predicted), target, work, split)
    (work / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")


def _logged(labels: np.ndarray, logits: np.ndarray, target: Target) -> dict[str, float]:
    found = scores(*_flat(*_rows(labels, logits, target)), target)
    log.info("%s", " | ".join(f"{name} {value:.4f}" for name, value in found.items()))
    return found


def _arguments(options: FinetuneOptions, target: Target, num_examples: int, seed: int, work: Path) -> Any:
    from transformers import TrainingArguments

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
        disable_tqdm=not os.isatty(2),
        logging_steps=max(1, steps // 100),
        report_to="none",
    )


def _class_weights(train: pd.DataFrame, target: Target) -> list[float]:
    has_classes = target.task in ("classification", "base_classification", "contact")
    require(has_classes, f"--class_weights: task {target.task} has no classes")
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
    """sequence, truth, and a column of probabilities (or numbers) for each name."""
    given = truth if target.ragged else table["target"]
    shown = table[["sequence"]].assign(truth=[np.ravel(t).tolist() if np.ndim(t) else t for t in given])
    for place, name in enumerate(target.names):
        values = [rows[:, place].astype(np.float32) for rows in predicted]
        shown[name] = values if target.ragged else np.concatenate(values)
    return shown.reset_index(drop=True)
