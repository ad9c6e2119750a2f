"""The run folder: its lock, which folder is one, which files in it megadna wrote, and evaluation-SPLIT.json.

In:  a folder.
Out: the lock RUN/.running for as long as any process of a training lives; a Kind that ownership.py checks before
     anything is deleted; evaluations as dictionaries, and one line if a model is no better than a baseline.

The lock is flock's: forked processes and the ranks that the launcher starts hold it as well, so it is free only after
the last process that could write into the folder has ended, however the others ended.
"""

import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from megadna.arguments import load_config
from megadna.errors import UserError, require
from megadna.log import get_logger
from megadna.ownership import Kind, read_mark
from megadna.reading import read_json

log = get_logger(__name__)

NAME = ".running"


@contextmanager
def running(run: Path) -> Iterator[list[int]]:
    """Lock `run`, created if absent, during the block; yields the descriptors that hold the lock.

    UserError if a process of this machine holds it. A lock of another machine is only a warning, as on a network file
    system a dead node may have left it; so is a file system without locks.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run}: is a file; --output must name the run folder")
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    run.mkdir(parents=True, exist_ok=True)
    path = run / NAME
    descriptor = _open(path)
    try:
        if not _lock(descriptor, path):
            yield []
            return
        os.ftruncate(descriptor, 0)
        holder = f"process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}, on {socket.gethostname()}\n"
        os.pwrite(descriptor, holder.encode(), 0)
        try:
            yield [descriptor]
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
        for folder in made:  # empty ones, after a start that was refused
            with suppress(OSError):
                folder.rmdir()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); megadna locks this file during a training: remove what is "
            "there, or give another --output"
        ) from error


def _lock(descriptor: int, path: Path) -> bool:
    """Lock the open file `path`; False if another machine holds the lock, UserError if a process of this one does."""
    holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        host = re.search(r" on (\S+)$", holder)
        if host is None or host[1] == socket.gethostname():
            who = holder or "process not yet known"
            raise UserError(
                f"{path.parent}: another megadna train is writing here ({who}); stop it first, or give another --output"
            ) from error
        log.warning("%s: another megadna train may be writing here (%s)", path.parent, holder)
        return False
    except OSError as error:
        log.warning("%s: cannot be locked (%s); make sure that no other training writes here", path, error.strerror)
        return True
    # A training that ended between our open and our lock has deleted the file.
    if not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
        raise UserError(f"{path.parent}: another megadna train has just ended here; start again")
    return True


_CHECKPOINT = r"(state\.json|config\.yaml|complete|weights/(\.metadata|common\.pt|metadata\.json|[^/]+\.distcp))"
_FILES = "|".join(
    (
        r"(config\.yaml|(metrics|skipped)\.jsonl|log\.txt|\.running)",
        r"(baselines|evaluation-[^/]+)\.json",
        r"checkpoints/(latest|\.latest\.partial)",
        rf"checkpoints/step-\d+/{_CHECKPOINT}",
        r"checkpoints/damaged-step-\d+-[0-9a-f]{8}/.+",
        r"checkpoints/\.step-\d+\.[0-9a-f]{8}\.partial/.+",
        r"tensorboard/events\.out\.tfevents\.[^/]+",
        r"wandb/.+",
        r"profile/(steps|memory)-\d+-\d+\.(json|pickle|partial)",
        r"report/(report\.html|[a-z_]+\.png)",
    )
)


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run: it has megadna's mark, or the files of runs from before there was a mark."""
    if read_mark(folder).get("kind") == "run":
        return True
    if not any((folder / name).exists() for name in ("log.txt", "metrics.jsonl", "checkpoints")):
        return False
    try:
        load_config(folder / "config.yaml", is_trained=True)
    except UserError:
        return False
    return True


RUN = Kind(name="run", files=lambda folder: _FILES if is_run(folder) else None)


GUESSING = 2.0
"""Bits per base of a uniform guess among A, C, G and T."""
SCORES = ("bits_per_base", "perplexity", "accuracy")
"""Keys of every score (train/bits.py)."""


def read_evaluation(file: Path) -> dict[str, Any]:
    """evaluation-SPLIT.json as `megadna evaluate` writes it; UserError with the remedy if it is something else."""
    remedy = "delete it and run `megadna evaluate` again"
    evaluation = read_json(file, remedy)
    missing = {"split", "samples", "hidden_bases", "model", "baselines"} - evaluation.keys()
    require(not missing, f"{file}: lacks {', '.join(sorted(missing))}; {remedy}")
    counts = [evaluation[key] for key in ("step", "samples", "hidden_bases") if key in evaluation]
    require(all(type(count) is int for count in counts), f"{file}: a count is not an integer; {remedy}")
    baselines = evaluation["baselines"]
    scores = [evaluation["model"], *baselines.values()] if isinstance(baselines, dict) else [None]
    require(all(map(is_score, scores)), f"{file}: model or baselines without {', '.join(SCORES)}; {remedy}")
    return evaluation


def is_score(score: Any) -> bool:
    """Whether a value read from JSON has SCORES as numbers."""
    if not isinstance(score, dict) or not all(_is_number(score.get(key)) for key in SCORES):
        return False
    return score.get("standard_error") is None or _is_number(score["standard_error"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def verdict(model: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> str:
    """One line if a model needs as many bits per base as a baseline, or more; empty if it beats all of them.

    model, baselines: scores on the same hidden bases; without baselines, the model is compared with guessing.
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
    """Text to add to bits per base that are shown without baselines."""
    return f" (no better than guessing, {GUESSING:g})" if bits is not None and bits >= GUESSING else ""


def flat_keys(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.num_layers": 12, ...} of a nested dictionary; tuples as lists."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= flat_keys(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
