"""evaluation-SPLIT.json: reading it, and one line where a model is no better than a baseline."""

from pathlib import Path
from typing import Any

from megadna.errors import require
from megadna.reading import read_json

GUESSING = 2.0
"""Bits per base of a uniform guess among A, C, G and T."""
SCORES = ("bits_per_base", "perplexity", "accuracy")
"""Numbers that every score has (train/bits.py)."""


def read_evaluation(file: Path) -> dict[str, Any]:
    """evaluation-SPLIT.json as `megadna evaluate` writes it; UserError with the remedy where it is something else."""
    remedy = "delete it and run `megadna evaluate` again"
    evaluation = read_json(file, remedy)
    missing = {"split", "samples", "hidden_bases", "model", "baselines"} - evaluation.keys()
    require(not missing, f"{file}: lacks {', '.join(sorted(missing))}; {remedy}")
    counts = [evaluation[key] for key in ("step", "samples", "hidden_bases") if key in evaluation]
    require(all(type(count) is int for count in counts), f"{file}: a count is no whole number; {remedy}")
    baselines = evaluation["baselines"]
    scores = [evaluation["model"], *baselines.values()] if isinstance(baselines, dict) else [None]
    require(all(map(_is_score, scores)), f"{file}: model or baselines without {', '.join(SCORES)}; {remedy}")
    return evaluation


def _is_score(score: Any) -> bool:
    if not isinstance(score, dict) or not all(_is_number(score.get(key)) for key in SCORES):
        return False
    return score.get("standard_error") is None or _is_number(score["standard_error"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def verdict(model: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> str:
    """One line where a model needs as many bits per base as a baseline, or more; empty where it beats all of them.

    model, baselines: scores on the same hidden bases; where there are no baselines, guessing is one.
    """
    bits = model["bits_per_base"]
    others = {name: score["bits_per_base"] for name, score in baselines.items()} or {"uniform": GUESSING}
    better = {name: other for name, other in others.items() if bits >= other}
    if not better:
        return ""
    names = [f"{'guessing' if name == 'uniform' else name} ({other:.4f})" for name, other in better.items()]
    listed = ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
    return f"no better than {listed}: the model needs {bits:.4f} bits per base; train longer, or with another train.lr"


def beside_guessing(bits: float | None) -> str:
    """What to add to bits per base that are shown without baselines."""
    return f" (no better than guessing, {GUESSING:g})" if bits is not None and bits >= GUESSING else ""
