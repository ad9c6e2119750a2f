"""Scores of predictions, with bootstrap intervals, and the two readings of the DNABERT card's splice-site scores."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as sk

from megadna.downstream.tasks import Target

RESAMPLES = 200
SPLICE_NAMES = ("donor", "acceptor", "negative")


def probabilities(logits: np.ndarray, target: Target) -> np.ndarray:
    """[N, C] of classes or labels; numbers as they are."""
    if target.is_regression:
        return logits
    return expit(logits) if target.task == "multilabel" else softmax(logits, axis=1)


def scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """Of probabilities or numbers [N, C] against class numbers [N] or numbers [N, C].

    accuracy, f1_macro, mcc, auroc, auprc (several classes: mean of one against the rest; several labels: mean of
    labels, accuracy over all label decisions), or pearson, spearman, mse (mean over outputs).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class without rows gives NaN, which is what the table should say
        if target.is_regression:
            pairs = list(zip(truth.T, predicted_NC.T, strict=True))
            return {
                "pearson": float(np.mean([pearsonr(a, b)[0] for a, b in pairs])),
                "spearman": float(np.mean([spearmanr(a, b)[0] for a, b in pairs])),
                "mse": float(np.mean((truth - predicted_NC) ** 2)),
            }
        several = target.task == "multilabel"
        hard = predicted_NC > 0.5 if several else predicted_NC.argmax(axis=1)
        flat = (truth.ravel(), hard.ravel()) if several else (truth, hard)
        truth_NC = truth if several else np.eye(len(target.names))[truth]
        columns = [1] if len(target.names) == 2 and not several else range(len(target.names))
        used = [c for c in columns if 0 < truth_NC[:, c].sum() < len(truth_NC)]
        return {
            "accuracy": float(sk.accuracy_score(*flat)),
            "f1_macro": float(sk.f1_score(truth, hard, average="macro")),
            "mcc": float(sk.matthews_corrcoef(*flat)),
            "auroc": _mean([sk.roc_auc_score(truth_NC[:, c], predicted_NC[:, c]) for c in used]),
            "auprc": _mean([sk.average_precision_score(truth_NC[:, c], predicted_NC[:, c]) for c in used]),
        }


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def splice_scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """The card's scores of donor, acceptor and their mean, in both readings; {} where the classes are others.

    class_vs_negative: rows of that class and negatives only (the counts of the card's table fit this one alone).
    confusions_as_false_positives: besides, rows of the other class that are called this class (the card's text).
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
            actual, positive = names[rows] == site, called[rows] == site
            values = (sk.accuracy_score, sk.f1_score, sk.matthews_corrcoef)
            for name, score in zip(("accuracy", "f1", "mcc"), values, strict=True):
                found[f"{reading}.{site}.{name}"] = float(score(actual, positive)) if rows.any() else float("nan")
        for name in ("accuracy", "f1", "mcc"):
            pair = [found[f"{reading}.{site}.{name}"] for site in SPLICE_NAMES[:2]]
            found[f"{reading}.mean.{name}"] = float(np.mean(pair))
    return found


def all_scores(truth: np.ndarray, predicted_NC: np.ndarray, target: Target) -> dict[str, float]:
    """Everything there is to say about these predictions."""
    return scores(truth, predicted_NC, target) | splice_scores(truth, predicted_NC, target)


def with_intervals(
    score: Callable[[np.ndarray, np.ndarray, Target], dict[str, float]],
    truth: list[np.ndarray],
    predicted: list[np.ndarray],
    target: Target,
    *,
    seed: int,
) -> dict[str, dict[str, float]]:
    """value, low and high (95 %, percentiles of a bootstrap over sequences) by score; one array a sequence."""
    rng = np.random.default_rng((seed, 9))
    draws = [rng.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES)]

    def joined(rows: np.ndarray) -> dict[str, float]:
        return score(np.concatenate([truth[i] for i in rows]), np.concatenate([predicted[i] for i in rows]), target)

    values = joined(np.arange(len(truth)))
    resampled = [joined(rows) for rows in draws]
    result = {}
    for name, value in values.items():
        spread = np.array([sample[name] for sample in resampled])
        low, high = np.nanpercentile(spread, [2.5, 97.5]) if np.isfinite(spread).any() else (np.nan, np.nan)
        result[name] = {"value": value, "low": float(low), "high": float(high)}
    return result
