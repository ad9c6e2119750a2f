"""Every rank of a job is dry-run for one step, and its communications are written down.

In:  a config whose data.sequence_length is a number, the number of ranks, a folder.
Out: FOLDER/rank-00000.jsonl ..., a line an event: a Call, or the number of the one that is waited for; the same events
for the replay (megadna/planning/replay.py); calls and bytes by kind.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path

import torch

from megadna.config import Config
from megadna.engine.recording import Call, Event
from megadna.processes import die_with_parent
from megadna.progress import tracked

KINDS = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tensor",
    "CONTEXT_PARALLEL_GROUP": "context",
    "DATA_PARALLEL_GROUP_WITH_CP": "data",
}
"""Kinds of StepTime.traffic by megatron's groups; sends and receives are `pipeline`, all else is `other`."""


def record_ranks(config: Config, num_ranks: int, folder: Path, *, workers: int = 1) -> Iterator[list[Event]]:
    """The events of every rank in turn, by `workers` processes; each list is written to `folder` as well."""
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        found = pool.map(partial(_record, config, num_ranks, folder), range(num_ranks))
        yield from tracked(found, "dry-running", num_ranks, "ranks")


def _record(config: Config, num_ranks: int, folder: Path, rank: int) -> list[Event]:
    from megadna.train.dry_run import record_step

    events = record_step(replace(config, engine=replace(config.engine, dry_run=f"{rank}/{num_ranks}")))
    lines = (json.dumps(asdict(event) if isinstance(event, Call) else {"wait": event}) for event in events)
    (folder / f"rank-{rank:05d}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return events


def traffic(events: Iterable[Event]) -> dict[str, tuple[int, float]]:
    """Calls of one rank and bytes that it sends, by kind of traffic; calls of one rank alone are left out."""
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for call in events:
        if isinstance(call, Call) and len(call.ranks) > 1:
            kind = KINDS.get(call.purpose, "other") if call.peer is None else "pipeline"
            number, sent = found[kind]
            found[kind] = number + 1, sent + sent_bytes(call)
    return dict(found)


def sent_bytes(call: Call) -> float:
    """Bytes that the rank sends, collectives as rings."""
    given, taken = (sum(map(prod, shapes)) for shapes in (call.shapes, call.results))
    ring = (len(call.ranks) - 1) / len(call.ranks)
    elements = {
        "all_reduce": 2 * ring * given,
        "all_gather": taken - given,
        "reduce_scatter": given - taken,
        "broadcast": ring * given,
        "send": given,
    }
    return elements.get(call.kind, 0) * getattr(torch, call.dtype).itemsize if call.dtype else 0.0
