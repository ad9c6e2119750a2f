"""Files of a run folder that are read again, by a resumed run or another command: metrics.jsonl, evaluation-*.json.

A kill leaves half a last line at most; anything else that does not fit is damage, and is told by file and line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megadna.errors import UserError, require
from megadna.files import write_text
from megadna.log import get_logger

log = get_logger(__name__)

SCORES = ("bits_per_base", "perplexity", "accuracy")


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of metrics.jsonl in order, and what is wrong with the others, as `file:line: problem`.

    A half-written last line is neither: the run is writing it, or was killed doing so. UserError where the file cannot
    be read at all.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    for _, line, problem in _parsed(path):
        if problem:
            problems.append(problem)
        else:
            lines.append(line)
    return lines, problems


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a half-written last one, so that no step stands twice.

    Damaged lines are left out as well, with a warning.
    """
    if not path.exists():
        if step:
            log.warning("%s: missing, so the numbers up to step %d are lost", path, step)
        return
    kept: list[str] = []
    problems: list[str] = []
    for text, line, problem in _parsed(path):
        if problem:
            problems.append(problem)
        elif line["step"] <= step:
            kept.append(text)
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        log.warning("%s%s; left out", problems[0], more)
    write_text(path, "".join(line + "\n" for line in kept))


def read_evaluation(path: Path) -> dict[str, Any]:
    """evaluation-SPLIT.json as `megadna evaluate` writes it; UserError where it is something else."""
    remedy = "delete it and run `megadna evaluate` again"
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from error
    require(isinstance(evaluation, dict), f"{path}: not an object of names and values; {remedy}")
    missing = {"split", "step", "samples", "hidden_bases", "model", "baselines"} - evaluation.keys()
    require(not missing, f"{path}: lacks {', '.join(sorted(missing))}; {remedy}")
    counts = all(type(evaluation[key]) is int for key in ("step", "samples", "hidden_bases"))
    require(counts, f"{path}: step, samples or hidden_bases is not a count; {remedy}")
    baselines = evaluation["baselines"]
    scores = [evaluation["model"], *baselines.values()] if isinstance(baselines, dict) else [None]
    require(all(map(_is_score, scores)), f"{path}: model or baselines without {', '.join(SCORES)}; {remedy}")
    return dict(evaluation)


def _is_score(score: Any) -> bool:
    if not isinstance(score, dict) or not all(_is_number(score.get(key)) for key in SCORES):
        return False
    return score.get("standard_error") is None or _is_number(score["standard_error"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parsed(path: Path) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(text, line, empty) of each sound line, (text, {}, problem) of each other, but for a half-written last one."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move away what is there") from error
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            if number < len(texts):
                yield text, {}, f"{path}:{number}: not a JSON object ({error})"
            continue
        if not isinstance(line, dict) or type(line.get("step")) is not int:
            yield text, {}, f"{path}:{number}: not a JSON object with a step"
        elif bad := [key for key, value in line.items() if not (value is None or _is_number(value))]:
            yield text, {}, f"{path}:{number}: {bad[0]} is not a number"
        else:
            yield text, line, ""
