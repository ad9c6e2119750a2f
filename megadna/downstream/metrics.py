"""Scores of predictions with bootstrap intervals, remarks on scores that mean little, plots; and both readings of the
DNABERT model card's splice-site scores."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import rankdata

from megadna.downstream.tasks import CLASS_SCORES, NUMBER_SCORES, SPLICE_NAMES, Target, is_constant
from megadna.progress import tracked

RESAMPLES = 500
MOST_NUMBERED = 20
"""Classes of a confusion matrix whose cells have numbers in them."""


def probabilities(logits: np.ndarray, target: Target) -> np.ndarray:
    """[N, C] of classes or labels; numbers as they are."""
    if target.is_regression:
        return logits
    return expit(logits) if target.independent else softmax(logits, axis=1)


def scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """Of probabilities or numbers [N, C] against class numbers [N] or numbers [N, C].

    accuracy, f1_macro, mcc, auroc, auprc (several classes: mean of one against the rest; several labels: mean of
    labels, accuracy over all label decisions), or pearson, spearman, r2 (1 - mse / variance of the truth), mse: the
    mean over several numbers, and those of each as NAME.pearson and so on.
    """
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # a class without rows gives NaN, as the table should
        if target.is_regression:
            found_C4 = [_of_numbers(a, b) for a, b in zip(truth.T, predicted_NC.T, strict=True)]
            found = dict(zip(NUMBER_SCORES, map(_mean, zip(*found_C4, strict=True)), strict=True))
            if len(found_C4) > 1:
                for name, values in zip(target.names, found_C4, strict=True):
                    found |= {f"{name}.{score}": value for score, value in zip(NUMBER_SCORES, values, strict=True)}
            return found
        several = target.independent
        hard = predicted_NC > 0.5 if several else predicted_NC.argmax(axis=1)
        truth_NC = truth if several else np.eye(len(target.names))[truth]
        columns = [1] if len(target.names) == 2 and not several else range(len(target.names))
        used = [c for c in columns if 0 < truth_NC[:, c].sum() < len(truth_NC)]
        flat = (truth.ravel(), hard.ravel()) if several else (truth, hard)
        accuracy, f1_macro, mcc = from_counts(_counts(*flat, 2 if several else len(target.names)))
        if several:
            f1_macro = _mean([_f1(_counts(truth[:, c], hard[:, c], 2))[1] for c in columns])
        areas = [_areas(truth_NC[:, c] > 0, predicted_NC[:, c]) for c in used]
        auroc, auprc = map(_mean, zip(*areas, strict=True)) if areas else (float("nan"), float("nan"))
        return dict(zip(CLASS_SCORES, (accuracy, f1_macro, mcc, auroc, auprc), strict=True))


def _of_numbers(truth_N: np.ndarray, predicted_N: np.ndarray) -> tuple[float, float, float, float]:
    """NUMBER_SCORES of one number; NaN where the truth, or for correlations the prediction, is constant."""
    truth_N, predicted_N = truth_N.astype(np.float64), predicted_N.astype(np.float64)
    mse = np.mean((truth_N - predicted_N) ** 2)
    if is_constant(truth_N):
        return float("nan"), float("nan"), float("nan"), float(mse)
    r2 = float(1 - mse / truth_N.var())
    if is_constant(predicted_N):
        return float("nan"), float("nan"), r2, float(mse)
    pearson = np.corrcoef(truth_N, predicted_N)[0, 1]
    spearman = np.corrcoef(rankdata(truth_N), rankdata(predicted_N))[0, 1]
    return float(pearson), float(spearman), r2, float(mse)


# scikit-learn's functions check their input at each call: 8.4 ms for the five scores of 100 rows, hundreds of times in
# a bootstrap; 0.3 ms here. The definitions are the same (a test compares), computed from one table of counts.


def _counts(truth: np.ndarray, called: np.ndarray, size: int) -> np.ndarray:
    """Rows by true class (row) and called class (column)."""
    pairs = truth.astype(np.int64) * size + called.astype(np.int64)
    return np.bincount(pairs, minlength=size * size).reshape(size, size).astype(float)


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of each class; NaN for a class that is neither true nor called anywhere."""
    return 2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))


def from_counts(counts: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, macro F1, Matthews' correlation (Gorodkin 2004; 0 if only one class is true or called)."""
    total, right = counts.sum(), np.trace(counts)
    true, called = counts.sum(axis=1), counts.sum(axis=0)
    spread = np.sqrt((total**2 - (true**2).sum()) * (total**2 - (called**2).sum()))
    mcc = (right * total - (true * called).sum()) / spread if spread else 0.0
    return float(right / total), float(np.nanmean(_f1(counts))), float(mcc)


def _areas(truth: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve (Mann-Whitney) and average precision; ties count half, or as one threshold."""
    positives, total = truth.sum(), len(truth)
    auroc = (rankdata(score)[truth].sum() - positives * (positives + 1) / 2) / (positives * (total - positives))
    order = np.argsort(-score, kind="stable")
    hits, last = np.cumsum(truth[order]), np.append(np.flatnonzero(np.diff(score[order])), total - 1)
    return float(auroc), float((np.diff(hits[last], prepend=0) * hits[last] / (last + 1)).sum() / positives)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def splice_scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """The card's scores of donor, acceptor and their mean, in both readings; {} for other classes.

    class_vs_negative: rows of that class and negatives only (only this fits the counts of the card's table).
    confusions_as_false_positives: also rows of the other class that are called this class (the card's text).
    """
    if set(target.names) != set(SPLICE_NAMES):
        return {}
    names, called = np.array(target.names)[truth], np.array(target.names)[predicted_NC.argmax(axis=1)]
    found: dict[str, float] = {}
    for reading in ("class_vs_negative", "confusions_as_false_positives"):
        for site in SPLICE_NAMES[:2]:
            rows = np.isin(names, [site, "negative"])
            if reading != "class_vs_negative":
                rows |= called == site
            counts = _counts(names[rows] == site, called[rows] == site, 2)
            accuracy, _, mcc = from_counts(counts)
            values = {"accuracy": accuracy, "f1": float(_f1(counts)[1]), "mcc": mcc}
            found |= {f"{reading}.{site}.{name}": value for name, value in values.items()}
        for name in ("accuracy", "f1", "mcc"):
            found[f"{reading}.mean.{name}"] = _mean([found[f"{reading}.{s}.{name}"] for s in SPLICE_NAMES[:2]])
    return found


def all_scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """All scores of these predictions."""
    return scores(truth, predicted_NC, target) | splice_scores(truth, predicted_NC, target)


def remark(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> str:
    """Why these scores mean little: classes without rows, one prediction for every row, constant numbers; "" if nothing
    is odd. Arguments as for `scores`."""
    if not len(truth):
        return f"no {target.unit}"
    one = [f"one {target.unit} only"] * (len(truth) == 1)
    of_task = _odd_numbers if target.is_regression else _odd_labels if target.independent else _odd_classes
    return "; ".join([*one, *of_task(truth, predicted_NC, target)])


def _odd_numbers(truth_NC: np.ndarray, predicted_NC: np.ndarray, target: Target) -> Iterator[str]:
    for column, name in enumerate(target.names):
        for numbers, what, lost in (
            (truth_NC[:, column], "is", "pearson, spearman and r2"),
            (predicted_NC[:, column], "is predicted", "pearson and spearman"),
        ):
            if is_constant(numbers):
                yield f"{name} {what} {numbers[0]:.4g} in every {target.unit}: {lost} are undefined"


def _odd_labels(truth_NC: np.ndarray, predicted_NC: np.ndarray, target: Target) -> Iterator[str]:
    for column, name in enumerate(target.names):
        true, called = truth_NC[:, column] > 0.5, predicted_NC[:, column] > 0.5
        if true.all() or not true.any():
            yield f"{name} is {int(true[0])} in every {target.unit}: auroc and auprc leave it out"
        if called.all() or not called.any():
            yield f"{name} is predicted as {int(called[0])} in every {target.unit}"


def _odd_classes(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> Iterator[str]:
    counts = np.bincount(truth.astype(np.int64), minlength=len(target.names))
    absent = [name for name, count in zip(target.names, counts, strict=True) if not count]
    called = np.unique(predicted_NC.argmax(axis=1))
    if len(absent) == len(target.names) - 1:
        only = target.names[counts.argmax()]
        yield f"every {target.unit} is of class {only}: auroc and auprc are undefined, mcc is 0"
    elif absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        yield f"no {target.unit} of class {', '.join(absent[:10])}{more}: auroc and auprc leave it out"
    if len(called) == 1:
        yield f"every {target.unit} is predicted as {target.names[called[0]]}, so mcc is 0"


def scored(
    truth: list[np.ndarray],
    predicted: list[np.ndarray],
    target: Target,
    *,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """value, low, high and remark by score; one array per sequence. `groups` [N]: the bootstrap draws whole groups."""
    text = remark(np.concatenate(truth), np.concatenate(predicted), target)
    if groups is not None:
        rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        truth, predicted = ([np.concatenate([all_[i] for i in own]) for own in rows] for all_ in (truth, predicted))
        one = "" if len(rows) > 1 else f"one group of {target.unit}s only: its intervals are empty"
        text = "; ".join(filter(None, [text, one]))
    found = with_intervals(all_scores, truth, predicted, target, seed=seed)
    return {name: {**values, "remark": text} for name, values in found.items()}


def with_intervals(
    score: Callable[[np.ndarray, np.ndarray, Target], dict[str, float]],
    truth: list[np.ndarray],
    predicted: list[np.ndarray],
    target: Target,
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """value, low and high (95 %, percentiles of a bootstrap over arrays) by score; one array per sequence, or
    per group of sequences."""
    rng = np.random.default_rng((seed, 9))
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES)]

    def joined(rows: np.ndarray) -> dict[str, float]:
        return score(np.concatenate([truth[i] for i in rows]), np.concatenate([predicted[i] for i in rows]), target)

    values = joined(np.arange(len(truth)))
    resampled = [joined(rows) for rows in tracked(draws, "bootstrap intervals", RESAMPLES, "samples")]
    result = {}
    for name, value in values.items():
        spread = np.array([sample[name] for sample in resampled])
        low, high = np.nanpercentile(spread, [2.5, 97.5]) if np.isfinite(spread).any() else (np.nan, np.nan)
        result[name] = {"value": value, "low": float(low), "high": float(high)}
    return result


def write_plots(
    truth: np.ndarray, predicted_NC: np.ndarray, target: Target, folder: Path, split: str, file_name: str
) -> None:
    """confusion-SPLIT.png, roc-SPLIT.png and pr-SPLIT.png, or scatter-SPLIT.png; `file_name` replaces SPLIT."""
    from matplotlib.figure import Figure
    from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

    from megadna.downstream.pictures import png, styled

    names = [f" {name}" if name.startswith("_") else name for name in target.names]  # a legend hides those with _
    kinds = {"roc": (RocCurveDisplay, "ROC curve"), "pr": (PrecisionRecallDisplay, "precision and recall")}
    truth_NC = truth if target.is_regression or target.independent else np.eye(len(names))[truth]
    with styled():
        if target.is_regression:
            figure = Figure(figsize=(5, 4.25))
            axes = figure.subplots()
            for number, name in enumerate(names):
                axes.plot(truth_NC[:, number], predicted_NC[:, number], ".", markersize=3, label=name)
            axes.set(xlabel="true", ylabel="predicted", title=split)
            axes.legend()
            (folder / f"scatter-{file_name}.png").write_bytes(png(figure, dpi=120))
            return
        for kind, (display, what) in kinds.items():
            figure = Figure(figsize=(5, 4.25))
            axes = figure.subplots()
            for number, name in enumerate(names):
                if 0 < truth_NC[:, number].sum() < len(truth_NC):
                    display.from_predictions(truth_NC[:, number], predicted_NC[:, number], name=name, ax=axes)
            axes.set_title(f"{split}: {what}")
            (folder / f"{kind}-{file_name}.png").write_bytes(png(figure, dpi=120))
    if not target.independent:
        write_confusion(truth, predicted_NC.argmax(axis=1), target, split, folder / f"confusion-{file_name}.png")


def write_confusion(truth_N: np.ndarray, called_N: np.ndarray, target: Target, split: str, path: Path) -> None:
    """The confusion matrix as a picture: of each true class (a row) the share and the number called each class."""
    from matplotlib.figure import Figure

    from megadna.downstream.pictures import MISSING, png, styled

    counts_CC, count = _counts(truth_N, called_N, len(target.names)), len(target.names)
    sums_C = counts_CC.sum(axis=1)
    shares_CC = np.divide(counts_CC, sums_C[:, None], out=np.full_like(counts_CC, np.nan), where=sums_C[:, None] > 0)
    names = [name if len(name) <= 30 else f"{name[:27]}..." for name in target.names]
    with styled():
        width = max(4.6, min(20, 0.85 * count + 2.2))
        figure = Figure(figsize=(width, 0.85 * width))
        axes = figure.subplots()
        image = axes.imshow(np.ma.masked_invalid(shares_CC), cmap="Blues", vmin=0, vmax=1)
        axes.set_facecolor(MISSING)
        is_long = count * max(map(len, names)) > 40
        axes.set_xticks(range(count), names, rotation=45 * is_long, ha="right" if is_long else "center")
        axes.set_yticks(range(count), [f"{name} ({total:,.0f})" for name, total in zip(names, sums_C, strict=True)])
        axes.set(xlabel="predicted class", ylabel=f"true class ({target.unit}s)")
        figure.suptitle(f"{split}: confusion matrix", x=0.01, ha="left", weight="bold", fontsize=11.5)
        axes.set_title(f"share of each true class, and number; {sums_C.sum():,.0f} {target.unit}s", fontsize=8)
        if count > MOST_NUMBERED:
            figure.colorbar(image, ax=axes, label="share of the true class")
        else:
            for (row, column), share in np.ndenumerate(shares_CC):
                text = f"{100 * share:.1f} %\n{counts_CC[row, column]:,.0f}" if np.isfinite(share) else "0"
                shade = "white" if share > 0.6 else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
        path.write_bytes(png(figure, dpi=150))
