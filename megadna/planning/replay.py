"""Do the communications of all ranks fit together? Their recorded programs are run against each other.

In:  for each rank of a job its events in order (megadna/engine/recording.py).
Out: faults, a line each; none where every call meets its counterparts and every rank comes to its end.

The order is NCCL's. A call does not hold its program up, the wait for it does. What a rank posts on one communicator
runs in that order; the sends and receives of one batch run together. Collectives and batches use the communicator of
their group, a lone send or receive one of its two ranks. A send ends when it is received: nothing is buffered.
Of a communicator only the first fault is told; a call that nobody joins and a circular wait only where no other fault
explains them.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from math import prod

from megadna.engine.recording import Call, Event

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
        self._places = [0] * len(programs)
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
            event = self.programs[rank][self._places[rank]]
            if isinstance(event, Call):
                queue = self._queues[rank, _channel(rank, event)]
                if queue and event.batch is not None and queue[-1][0].batch == event.batch:
                    queue[-1].append(event)
                else:
                    queue.append([event])
                self._settle(rank, _channel(rank, event))
            elif event not in self._ended[rank]:
                return
            self._places[rank] += 1

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
            waited = self.programs[rank][self._places[rank]]
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
        return self._places[rank] == len(self.programs[rank])


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
