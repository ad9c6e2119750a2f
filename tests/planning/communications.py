"""Do the communications of all ranks of a job fit together? One process records them rank by rank, and replays all.

record_step: one optimizer step of one rank of the real engine on torch's `meta` device, under a process group that
records every call of torch.distributed instead of making it. Events: a Call where one is made, and its number where the
program waits for it; a blocking call is both, one after the other. What is gathered on the CPU is the rank's own, so
that megatron can read the objects which it gathers to build an optimizer.

traffic: calls, and bytes that a rank sends, by kind.

Replay: the recorded programs run against each other; faults, a line each; none where every call meets its counterparts
and every rank reaches its end. The order is NCCL's. A call does not block its program, the wait for it does. What a
rank posts on one communicator runs in that order; the sends and receives of one batch run together. Collectives and
batches use the communicator of their group, a lone send or receive one of its two ranks. A send ends when it is
received: nothing is buffered. Of a communicator only the first fault is reported; a call that nobody joins and a
circular wait only where no other fault explains them.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megadna.config import Config
from megadna.data.batch import Batch
from megadna.tokenizer.build import build_tokenizer
from megadna.train.describe import parse_rank

if TYPE_CHECKING:
    from megadna.engine.distributed import World

RECORDING = "recording"
"""Name of the backend."""
METHODS = {
    "all_reduce": ["allreduce", "allreduce_coalesced"],
    "all_gather": [
        *("all_gather_single", "all_gather_single_coalesced", "allgather"),
        *("_allgather_base", "allgather_into_tensor_coalesced"),
    ],
    "reduce_scatter": [
        *("reduce_scatter_single", "reduce_scatter_single_coalesced"),
        *("_reduce_scatter_base", "reduce_scatter_tensor_coalesced"),
    ],
    "broadcast": ["broadcast"],
    "barrier": ["barrier"],
}
"""Collectives, and the methods of a process group that torch 2.13 and, in the second rows, 2.11 call for them."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Call:
    """One communication of one rank."""

    number: int
    """Its position among the events of the rank, from 1."""
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
    """Tensors that the rank gives (recv: takes); several where calls are coalesced."""
    results: Shapes
    """all_gather, reduce_scatter: tensors that it takes."""
    dtype: str
    batch: int | None
    """The same number for sends and receives of one batch_isend_irecv, which run together."""


Event = Call | int
_open: list[list[Event]] = []
_batch: list[int] = []


@contextmanager
def recorded() -> Iterator[list[Event]]:
    """The events of the code inside, without waits for calls made before."""
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
    """A process group that notes what it is asked for."""

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
    """A method of (taken, given), (tensors) or nothing, and options; tensors, lists or lists of lists."""

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


def record_step(config: Config) -> list[Event]:
    """The communications of one optimizer step of the rank of engine.dry_run; data.sequence_length is a number.

    All micro-batches and the update; rows are full. Where gradients are summed during the backward pass it is the
    second step: in the first megatron learns in which order they come.
    """
    from megadna.engine.distributed import imagined_world
    from megadna.train.step import build_state, train_step

    rank, size = parse_rank(config.engine.dry_run)
    config.data_parallel_size(size)
    multiple = config.parallel.sequence_multiple
    length = -(-int(config.data.sequence_length) // multiple) * multiple
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    with imagined_world(config.parallel, rank=rank, size=size, backend=RECORDING) as world, _host_reads_zero():
        state, batches = build_state(config, vocab_size, world), _imagined_batches(config, world, length)
        for group in state.optimizer.param_groups:
            group["params"] = []  # Adam's arithmetic sends nothing, and torch's fused kernel refuses this device
        one_each = config.parallel.pipeline * config.train.micro_batch_size * world.data_size
        for batch_size in [one_each] * config.parallel.overlap_grad_reduce + [config.train.global_batch_size]:
            train = replace(config.train, global_batch_size=batch_size)
            with recorded() as events:
                train_step(state, batches, replace(config, train=train), world, sequence_length=length)
    return events


@contextmanager
def _host_reads_zero() -> Iterator[None]:
    """What the host reads from a tensor without data is 0: no loss, no overflow, no reason to stop."""
    library, original = torch.library.Library("aten", "IMPL", "Meta"), torch.Tensor.tolist
    library.impl("_local_scalar_dense", lambda tensor: 0, allow_override=True)
    torch.Tensor.tolist = lambda self: original(torch.zeros(self.shape) if self.is_meta else self)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.tolist = original  # type: ignore[method-assign]
        library._destroy()


def _imagined_batches(config: Config, world: "World", sequence_length: int) -> Iterator[Batch]:
    """Micro-batches with as many predicted tokens as masking gives, a different number in each, the same on ranks that
    share a sample."""
    shape = (config.train.micro_batch_size, sequence_length)
    generator = torch.Generator().manual_seed(world.data_rank)
    while True:
        chosen_BS = torch.rand(shape, generator=generator) < config.data.masking.fraction
        tokens_BS = torch.zeros(shape, dtype=torch.int64)
        yield Batch(
            tokens_BS=tokens_BS,
            labels_BS=tokens_BS,
            weights_BS=chosen_BS.float(),
            lengths_B=None,
            samples_B=torch.zeros(shape[0], dtype=torch.int64),
        )


KINDS = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tensor",
    "CONTEXT_PARALLEL_GROUP": "context",
    "DATA_PARALLEL_GROUP_WITH_CP": "data",
}
"""Kinds of StepTime.traffic by megatron's groups; sends and receives are `pipeline`, all else is `other`."""


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


Channel = tuple[str, frozenset[int]]
"""A communicator: name of a group, and the two ranks of lone sends and receives."""
FAULTS = {"kind": "another order", "shapes": "another shape", "dtype": "another type"}
SHOWN = 4
"""Ranks and shapes that a line names."""


class Replay:
    """Runs the programs of ranks 0, 1 ...; `faults` tells what keeps them from their ends."""

    def __init__(self, programs: Sequence[Sequence[Event]]) -> None:
        self.programs = programs
        self.calls = [{event.number: event for event in program if isinstance(event, Call)} for program in programs]
        self.faults: dict[object, str] = {}
        self._positions = [0] * len(programs)
        self._ended: list[set[int]] = [set() for _ in programs]
        self._queues: dict[tuple[int, Channel], deque[list[Call]]] = defaultdict(deque)
        self._ready = deque(range(len(programs)))
        while self._ready:
            self._advance(self._ready.popleft())
        self._find_unmatched()
        if not self.faults:
            self._find_circle()

    def _advance(self, rank: int) -> None:
        """Run one program up to a wait for a call that has not ended."""
        while not self._at_end(rank):
            event = self.programs[rank][self._positions[rank]]
            if isinstance(event, Call):
                queue = self._queues[rank, _channel(rank, event)]
                if queue and event.batch is not None and queue[-1][0].batch == event.batch:
                    queue[-1].append(event)
                else:
                    queue.append([event])
                self._settle(rank, _channel(rank, event))
            elif event not in self._ended[rank]:
                return
            self._positions[rank] += 1

    def _settle(self, rank: int, channel: Channel) -> None:
        """End the calls at the heads of a communicator whose counterparts are there, and then those after them."""
        pending = [rank]
        while pending:
            met = self._meeting(pending.pop(), channel)
            self._compare(channel, met)
            for other, call in met.items():
                queue = self._queues[other, channel]
                queue[0].remove(call)
                if not queue[0]:
                    queue.popleft()
                self._ended[other].add(call.number)
            pending += met
            self._ready += met

    def _head(self, rank: int, channel: Channel) -> list[Call]:
        """What may run now: a collective, a lone send or receive, or the open part of a batch."""
        queue = self._queues.get((rank, channel))
        return queue[0] if queue else []

    def _meeting(self, rank: int, channel: Channel) -> dict[int, Call]:
        """By rank, a call at the head of `rank` and its counterparts; empty where one is missing."""
        for call in self._head(rank, channel):
            if call.peer is None:
                heads = {other: self._head(other, channel) for other in call.ranks}
                if all(heads.values()):
                    return {other: head[0] for other, head in heads.items()}
            else:
                for other in self._head(call.peer, channel):
                    if other.peer == rank and other.kind != call.kind:
                        return {rank: call, call.peer: other}
        return {}

    def _compare(self, channel: Channel, met: dict[int, Call]) -> None:
        for rank, call in met.items():
            first_rank, first = next(iter(met.items()))
            names = [name for name in FAULTS if call.peer is None or name != "kind"]
            fault = next((FAULTS[name] for name in names if getattr(call, name) != getattr(first, name)), "")
            given, taken = (sum(map(prod, shapes)) for shapes in (call.shapes, call.results))
            if taken and max(given, taken) != len(call.ranks) * min(given, taken):
                fault = fault or f"a result of {taken} elements"
            if fault:
                other = f"; rank {rank}, {_words(call)}" if rank != first_rank else ""
                self.faults.setdefault(channel, f"{fault}: rank {first_rank}, {_words(first)}{other}")

    def _find_unmatched(self) -> None:
        sent: Counter[tuple[str, int, int]] = Counter()
        for rank, calls in enumerate(self.calls):
            for call in calls.values():
                if call.peer is not None:
                    ends = (rank, call.peer) if call.kind == "send" else (call.peer, rank)
                    sent[(call.purpose, *ends)] += 1 if call.kind == "send" else -1
        for (purpose, source, target), more in sent.items():
            if more:
                what = f"{abs(more)} {'send' if more > 0 else 'receive'}{'s' * (abs(more) > 1)}"
                line = f"unmatched: {what} from rank {source} to rank {target}, in {purpose}"
                self.faults.setdefault((purpose, source, target), line)
        if self.faults:
            return
        for (rank, channel), queue in self._queues.items():
            for call in queue[0][:1] if queue else []:
                gone = [other for other in self._missing(call, channel) if self._at_end(other)]
                if gone:
                    line = f"unmatched: rank {rank}, {_words(call)}: rank {gone[0]} has ended without it"
                    self.faults.setdefault(channel, line)

    def _find_circle(self) -> None:
        path = [rank for rank in range(len(self.programs)) if not self._at_end(rank)][:1]
        lines = []
        while path and path[-1] not in path[:-1]:
            rank = path[-1]
            waited = self.programs[rank][self._positions[rank]]
            assert isinstance(waited, int)
            channel = _channel(rank, self.calls[rank][waited])
            call = self._head(rank, channel)[0]
            path.append(self._missing(call, channel)[0])
            lines.append(f"rank {rank} waits for rank {path[-1]} in {_words(call)}")
        if path:
            self.faults["circle"] = f"circular wait: {'; '.join(lines[path.index(path[-1]) :])}"

    def _missing(self, call: Call, channel: Channel) -> list[int]:
        """Ranks whose counterpart of a call at the head of a communicator is not there."""
        if call.peer is not None:
            return [call.peer]
        return [other for other in call.ranks if not self._head(other, channel)]

    def _at_end(self, rank: int) -> bool:
        return self._positions[rank] == len(self.programs[rank])


def _channel(rank: int, call: Call) -> Channel:
    is_lone = call.peer is not None and call.batch is None
    return call.group, frozenset([rank, call.peer] if is_lone else [])  # type: ignore[list-item]


def _words(call: Call) -> str:
    """As: line 17: all_reduce [4000, 1, 4352] bfloat16 in TENSOR_MODEL_PARALLEL_GROUP of ranks 0, 1."""
    way = "" if call.peer is None else f" {'to' if call.kind == 'send' else 'from'} rank {call.peer}"
    shapes, ranks = (
        ", ".join([*map(str, parts[:SHOWN]), *["..."] * (len(parts) > SHOWN)])
        for parts in (list(map(list, call.shapes)), call.ranks)
    )
    return f"line {call.number}: {call.kind}{way} {shapes} {call.dtype} in {call.purpose} of ranks {ranks}"
