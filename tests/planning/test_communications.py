"""The communications of every rank of a job, recorded on one process, fit together; a fault of each kind is named."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from communications import Call, Event, Replay, record_step, traffic
from ranks import run_ranks
from toy import toy_config

from megadna.config import Config, ParallelConfig
from megadna.planning.step_time import GPUS, step_time

MICRO_BATCHES = 4
LAYOUTS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "all at once": (16, 4, {"tensor": 2, "sequence": True, "pipeline": 2, "virtual_pipeline": 2, "context": 2}),
    "uneven stages": (3, 4, {"pipeline": 3, "pipeline_layers": [1, 2, 1]}),
}
SLOW: dict[str, tuple[int, int, dict[str, Any]]] = {
    "interleaved, 4 stages": (8, 8, {"pipeline": 4, "virtual_pipeline": 2, "overlap_grad_reduce": True}),
    "tensor, overlap": (4, 8, {"tensor": 2, "overlap_grad_reduce": True, "overlap_param_gather": True}),
    "tensor, recompute": (4, 8, {"tensor": 2, "recompute": "full"}),
    "sequence, recompute": (4, 8, {"tensor": 2, "sequence": True, "recompute": "full"}),
    "context": (4, 4, {"context": 2}),
}
"""Ranks, layers and the keys of `parallel`."""
Programs = list[list[Event]]


def job(size: int, layers: int, split: dict[str, Any]) -> Config:
    """As many micro-batches a step on every rank under each layout."""
    config, parallel = toy_config(Path("none"), precision="bf16"), ParallelConfig(**split)
    batch = MICRO_BATCHES * size // parallel.model_size * config.train.micro_batch_size
    model, train = replace(config.model, num_layers=layers), replace(config.train, global_batch_size=batch)
    return replace(config, model=model, parallel=parallel, train=train)


def record(layouts: dict[str, tuple[int, int, dict[str, Any]]], blocking: bool = False) -> dict[str, Programs]:
    import torch

    if blocking:  # a wrong pipeline: each message is waited for before the next is posted, and both sides send first
        torch.distributed.batch_isend_irecv = lambda messages: [
            message.op(message.tensor, message.peer, message.group).wait() for message in messages
        ][:0]
    found = {}
    for name, layout in layouts.items():
        config, size = job(*layout), layout[0]
        ranks = [replace(config, engine=replace(config.engine, dry_run=f"{rank}/{size}")) for rank in range(size)]
        found[name] = [record_step(rank) for rank in ranks]
    return found


@pytest.fixture(scope="module")
def recorded() -> dict[str, Programs]:
    found: dict[str, Programs] = run_ranks(record, 1, LAYOUTS)[0]
    return found


def check_clean(name: str, layout: tuple[int, int, dict[str, Any]], programs: Programs) -> None:
    """No fault; what is sent is what the planner says, but for embeddings and head, which it leaves out of `tensor`."""
    assert len(programs) == layout[0] and all(map(calls, programs))
    assert Replay(programs).faults == {}, name
    planned = step_time(job(*layout), 16, 128, layout[0], GPUS["h100"]).traffic
    found = [traffic(program) for program in programs]
    for kind, sent in planned.items():
        more = 0.2 if kind == "tensor" else 1e-9
        assert sent <= max(one.get(kind, (0, 0.0))[1] for one in found) <= sent * (1 + more), (name, kind)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_real_engine_has_no_fault_and_sends_what_is_planned(name: str, recorded: dict[str, Programs]) -> None:
    check_clean(name, LAYOUTS[name], recorded[name])


@pytest.mark.slow
def test_so_do_other_layouts_and_ranks_of_two_of_them_do_not_fit_together() -> None:
    """In the mixed job the last rank recomputes and does not overlap, as the others do not and do."""
    found = run_ranks(record, 1, SLOW)[0]
    for name, programs in found.items():
        check_clean(name, SLOW[name], programs)
    (fault,) = Replay([*found["tensor, overlap"][:3], found["tensor, recompute"][3]]).faults.values()
    assert fault.startswith("another shape: rank 2, ") and "; rank 3, " in fault


def test_messages_of_a_pipeline_are_those_of_its_schedule(recorded: dict[str, Programs]) -> None:
    """A micro-batch crosses each border of stages forth and back once."""
    stages = [
        Counter((call.kind, call.peer) for call in calls(program) if call.peer is not None)
        for program in recorded["uneven stages"]
    ]
    assert stages[0] == stages[2] == {(kind, 1): MICRO_BATCHES for kind in ("send", "recv")}
    assert stages[1] == {(kind, peer): MICRO_BATCHES for kind in ("send", "recv") for peer in (0, 2)}


def calls(program: Sequence[Event]) -> list[Call]:
    return [event for event in program if isinstance(event, Call)]


def where(program: list[Event], **wanted: Any) -> int:
    """Position of the third call with these attributes."""
    found = [call for call in calls(program) if all(getattr(call, key) == value for key, value in wanted.items())]
    return program.index(found[2])


def without(program: list[Event], position: int) -> None:
    """Drop a call and the wait for it."""
    call = program.pop(position)
    assert isinstance(call, Call)
    program.remove(call.number)


def change(program: list[Event], position: int, **values: Any) -> None:
    call = program[position]
    assert isinstance(call, Call)
    program[position] = replace(call, **values)


def swap(program: list[Event], first: int, second: int) -> None:
    """Exchange two blocking calls, each with the wait after it."""
    one, other = program[first : first + 2], program[second : second + 2]
    program[first : first + 2], program[second : second + 2] = other, one


TENSOR, PIPELINE = "TENSOR_MODEL_PARALLEL_GROUP", "PIPELINE_MODEL_PARALLEL_GROUP"


def drop_receive(programs: Programs) -> None:
    without(programs[1], where(programs[1], kind="recv", peer=0))


def drop_send(programs: Programs) -> None:
    without(programs[1], where(programs[1], kind="send", peer=2))


def end_early(programs: Programs) -> None:
    last = [call for call in calls(programs[2]) if len(call.ranks) > 1][-1]
    without(programs[2], programs[2].index(last))


def reshape_message(programs: Programs) -> None:
    change(programs[1], where(programs[1], kind="send", peer=2), shapes=((128, 2, 32),))


def retype_message(programs: Programs) -> None:
    change(programs[1], where(programs[1], kind="recv", peer=2), dtype="float32")


def reshape_gather(programs: Programs) -> None:
    change(programs[3], where(programs[3], kind="all_gather", purpose=TENSOR), shapes=((31, 2, 64),))


def retype_gather(programs: Programs) -> None:
    change(programs[3], where(programs[3], kind="all_gather", purpose=TENSOR), dtype="float32")


def shorten_result(programs: Programs) -> None:
    for program in programs[2:4]:
        change(program, where(program, kind="all_gather", purpose=TENSOR), results=((63, 2, 64),))


def reorder(programs: Programs) -> None:
    swap(
        programs[3],
        where(programs[3], kind="all_gather", purpose=TENSOR),
        where(programs[3], kind="reduce_scatter", purpose=TENSOR),
    )


def cross(programs: Programs) -> None:
    """One rank sums embeddings with the other stage after the sum over all ranks, where the others do it before."""
    sums = {call.purpose: programs[0].index(call) for call in calls(programs[0])[::-1] if call.kind == "all_reduce"}
    embedding, world = sums["EMBEDDING_GROUP"], sums["default_pg"]
    swap(programs[0], embedding, world)


@pytest.mark.parametrize(
    ("inject", "name", "line"),
    [
        (drop_receive, "uneven stages", f"unmatched: 1 send from rank 0 to rank 1, in {PIPELINE}"),
        (drop_send, "uneven stages", f"unmatched: 1 receive from rank 1 to rank 2, in {PIPELINE}"),
        (end_early, "uneven stages", "unmatched: rank "),
        (reshape_message, "uneven stages", "another shape: rank "),
        (retype_message, "uneven stages", "another type: rank "),
        (reshape_gather, "all at once", "another shape: rank "),
        (retype_gather, "all at once", "another type: rank "),
        (shorten_result, "all at once", "a result of 8064 elements: rank "),
        (reorder, "all at once", "another order: rank "),
        (cross, "all at once", "circular wait: rank "),
    ],
)
def test_an_injected_fault_is_named_in_one_line(
    inject: Callable[[Programs], None], name: str, line: str, recorded: dict[str, Programs]
) -> None:
    programs = [list(program) for program in recorded[name]]
    inject(programs)
    faults = list(Replay(programs).faults.values())
    assert len(faults) == 1 and faults[0].startswith(line) and "\n" not in faults[0], faults


def test_two_stages_that_both_send_first_wait_for_each_other() -> None:
    """Not injected: the engine runs with messages that block."""
    programs = run_ranks(record, 1, {"stages": (2, 2, {"pipeline": 2})}, True)[0]["stages"]
    (fault,) = Replay(programs).faults.values()
    assert fault.startswith("circular wait: rank ") and "send to rank 0" in fault and "send to rank 1" in fault
