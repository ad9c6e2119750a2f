"""The communications of one imagined rank: every call of torch.distributed, in order, recorded instead of made.

In:  `imagined_world(..., backend=RECORDING)`, and `recorded()` around the code to watch.
Out: events: a Call when one is made, and its number when the program waits for it; a blocking call gives one after the
     other.

Groups of this backend send nothing. A gather on the CPU returns the rank's own value, so that megatron can read the
objects that it gathers to build an optimizer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RECORDING = "recording"
"""Name of the backend."""
METHODS = {
    "all_reduce": ["allreduce", "allreduce_coalesced"],
    "all_gather": ["all_gather_single", "all_gather_single_coalesced", "allgather"],
    "reduce_scatter": ["reduce_scatter_single", "reduce_scatter_single_coalesced"],
    "broadcast": ["broadcast"],
    "barrier": ["barrier"],
}
"""Collectives, and the methods of a process group that torch 2.13 calls for them."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Call:
    """One communication of one rank."""

    number: int
    """Its number among the events of the rank, from 1."""
    kind: str
    """A key of METHODS, send or recv."""
    group: str
    """Name of the process group, the same on all of its ranks."""
    purpose: str
    """What megatron calls the group."""
    ranks: tuple[int, ...]
    """Members of the group, as ranks of the job."""
    peer: int | None
    """send, recv: the other rank of the job."""
    shapes: Shapes
    """Tensors that the rank sends (recv: receives); several if calls are coalesced."""
    results: Shapes
    """all_gather, reduce_scatter: tensors that it receives."""
    dtype: str
    batch: int | None
    """The same number for sends and receives of one batch_isend_irecv, which run together."""


Event = Call | int
_open: list[list[Event]] = []
_batch: list[int] = []


@contextmanager
def recorded() -> Iterator[list[Event]]:
    """The events of the code inside, without waits for earlier calls."""
    events: list[Event] = []
    original = torch.distributed.batch_isend_irecv

    def batched(*arguments: Any, **options: Any) -> Any:
        _batch.append(len(events))
        try:
            return original(*arguments, **options)
        finally:
            _batch.pop()

    torch.distributed.batch_isend_irecv = batched
    _open.append(events)
    try:
        yield events
    finally:
        _open.pop()
        torch.distributed.batch_isend_irecv = original


class _RecordingGroup(torch.distributed.ProcessGroup):
    """A process group that records the calls it gets."""

    def __init__(self, options: Any, _: Any) -> None:
        super().__init__(options.group_rank, options.group_size)  # type: ignore[call-arg]
        self.label, self.purpose = str(options.group_id), ""
        self.members = tuple(options.global_ranks_in_group) or tuple(range(options.group_size))

    def _set_group_desc(self, description: str) -> None:
        self.purpose = description

    def _note(self, kind: str, given: list[Tensor], taken: list[Tensor], peer: int | None = None) -> SimpleNamespace:
        events = _open[-1] if _open else []
        call = Call(
            number=len(events) + 1,
            kind=kind,
            group=self.label,
            purpose=self.purpose,
            ranks=self.members,
            peer=None if peer is None else self.members[peer],
            shapes=tuple(tuple(tensor.shape) for tensor in given),
            results=tuple(tuple(tensor.shape) for tensor in taken),
            dtype=str(given[0].dtype).removeprefix("torch.") if given else "",
            batch=_batch[-1] if _batch else None,
        )
        events.append(call)
        return SimpleNamespace(wait=lambda *_: events.append(call.number))


def _collective(kind: str) -> Callable[..., SimpleNamespace]:
    """A method called with (taken, given), (tensors) or no tensors, and options; tensors, lists or lists of lists."""

    def method(group: _RecordingGroup, *arguments: Any, **_: Any) -> SimpleNamespace:
        *taken, given = [_flat(argument) for argument in arguments if isinstance(argument, (Tensor, list))] or [[]]
        results = taken[0] if taken else []
        for result in results:
            if result.is_cpu:
                result.copy_(given[0])
        return group._note(kind, given, results)

    return method


def _message(kind: str) -> Callable[..., SimpleNamespace]:
    return lambda group, tensors, peer, tag: group._note(kind, tensors, [], peer)


def _flat(tensors: Any) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else [one for part in tensors for one in _flat(part)]


for _kind, _names in METHODS.items():
    for _name in _names:
        setattr(_RecordingGroup, _name, _collective(_kind))
for _kind in ("send", "recv"):
    setattr(_RecordingGroup, _kind, _message(_kind))
torch.distributed.Backend.register_backend(RECORDING, _RecordingGroup, extended_api=True, devices=["cpu", "cuda"])
