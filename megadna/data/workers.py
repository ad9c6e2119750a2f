"""Several processes build one dataset.

A plain or BGZF file is cut into ranges, any other file is one task. Workers take tasks in order. A range is scanned
at once; then, in the order of the text, each is given the state that the range before it left and its place in the
.bin files, answers with its plan and writes. A file that cannot be cut and whose turn has not come is written to a
.bin of its own and copied when it has. What is written does not depend on the number of workers or on timing.
"""

import multiprocessing
import os
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megadna.data.chunker import Chunker
from megadna.data.inputs import SourceFile
from megadna.data.manifest import SPLITS
from megadna.data.parts import Part
from megadna.data.pieces import Recipe, Sink, build_source, check_not_empty, range_piece, ranges_of
from megadna.data.plan import Policy, State
from megadna.data.progress import Progress
from megadna.errors import UserError
from megadna.genome.sources import TextRange

if TYPE_CHECKING:
    from megadna.data.builder import Build


@dataclass(frozen=True)
class Task:
    """A source, or one range of it."""

    source: int
    range: TextRange | None = None
    before: TextRange | None = None

    @property
    def first(self) -> bool:
        """Whether the source begins with it."""
        return self.before is None

    @property
    def last(self) -> bool:
        """Whether the source ends with it."""
        return self.range is None or self.range.last


@dataclass(frozen=True)
class Job:
    """What every worker knows."""

    work: Path
    sources: list[SourceFile]
    policies: list[Policy]
    recipe: Recipe


def _tasks(sources: list[SourceFile], finished: int) -> list[Task]:
    tasks: list[Task] = []
    for number in range(finished, len(sources)):
        if not sources[number].splittable:
            tasks.append(Task(number))
            continue
        ranges = ranges_of(sources[number])
        befores = [None, *ranges[:-1]]
        tasks += [Task(number, here, before) for here, before in zip(ranges, befores, strict=True)]
    return tasks


def build_parallel(
    build: "Build",
    policies: list[Policy],
    recipe: Recipe,
    parts: list[Part],
    finished: int,
    offsets: list[int],
    progress: Progress,
) -> None:
    """Build the sources from `finished` on into the .bin files from `offsets` on."""
    job = Job(build.work, build.sources, policies, recipe)
    tasks = _tasks(build.sources, finished)
    pool = [_Worker(job) for _ in range(min(build.options.workers, max(1, len(tasks))))]
    try:
        build.hash_sources()
        _Coordinator(build, parts, offsets, progress, tasks, pool).run()
        for worker in pool:
            worker.stop()
    finally:
        for worker in pool:
            worker.kill()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> tuple[str, Any]:
        """Next message; UserError passes through, a lost process is one."""
        try:
            kind, value = self.pipe.recv()
        except EOFError as error:
            raise UserError(
                "a worker process was killed (out of memory?); use fewer --workers, then --resume"
            ) from error
        if kind == "error":
            raise value
        return kind, value

    def stop(self) -> None:
        """Ask it to end and wait."""
        self.pipe.send(None)
        self._process.join()

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


class _Coordinator:
    """Hands out tasks, grants places in the .bin files in order, collects the index data."""

    def __init__(
        self,
        build: "Build",
        parts: list[Part],
        offsets: list[int],
        progress: Progress,
        tasks: list[Task],
        pool: list[_Worker],
    ) -> None:
        self._build, self._parts, self._offsets, self._progress = build, parts, list(offsets), progress
        self._tasks, self._pool = tasks, pool
        self._next = 0  # task to hand out
        self._turn = 0  # task whose place in the .bin files comes next
        self._state = State()
        self._scanned: dict[int, _Worker] = {}
        self._streamed: dict[int, tuple[Part, bool]] = {}
        self._writing: dict[int, list[int]] = {}  # granted and not yet written: offsets before it
        self._unconfirmed: deque[int] = deque()  # sources whose last bytes may still be on their way

    def run(self) -> None:
        """Until every task is done."""
        holds: dict[_Worker, int] = {}
        idle = deque(self._pool)
        while self._turn < len(self._tasks) or self._writing:
            while idle and self._next < len(self._tasks):
                worker = idle.popleft()
                holds[worker] = self._next
                direct = self._offsets if self._next == self._turn and not self._tasks[self._next].range else None
                worker.pipe.send((self._next, self._tasks[self._next], direct))
                self._next += 1
            by_pipe = {worker.pipe: worker for worker in holds}
            for pipe in wait(list(by_pipe)):
                worker = by_pipe[pipe]  # type: ignore[index]
                kind, value = worker.receive()
                if kind == "scanned":
                    self._scanned[holds[worker]] = worker
                elif kind == "bases":
                    self._progress.advance(value)
                else:
                    number = holds.pop(worker)
                    idle.append(worker)
                    self._writing.pop(number, None)
                    if kind == "streamed":
                        self._streamed[number] = value
            self._take_turns()
            self._confirm()

    def _take_turns(self) -> None:
        while self._turn in self._scanned or self._turn in self._streamed:
            task = self._tasks[self._turn]
            if self._turn in self._scanned:
                self._grant(task, self._scanned.pop(self._turn))
            else:
                self._commit(task, *self._streamed.pop(self._turn))
            if task.last:
                check_not_empty(self._build.sources[task.source], self._parts[task.source])
                self._unconfirmed.append(task.source)
            self._turn += 1

    def _grant(self, task: Task, worker: _Worker) -> None:
        """Give a scanned range its place; its plan becomes part of the source."""
        part = self._parts[task.source]
        if task.first:
            self._state = State()
            part.open()
            self._progress.begin(task.source)
        self._writing[self._turn] = list(self._offsets)
        worker.pipe.send((self._state, self._offsets))
        kind, (self._state, plan) = worker.receive()
        assert kind == "planned"
        part.add(plan)
        self._offsets = [a + b for a, b in zip(self._offsets, plan.sizes, strict=True)]
        self._progress.advance(plan.counts.bases)
        if task.last:
            part.close()

    def _commit(self, task: Task, part: Part, direct: bool) -> None:
        """Take over a source that one worker read from end to end."""
        self._parts[task.source] = part
        if not direct:
            for split, name in enumerate(SPLITS):
                spilled = self._build.work / "parts" / f"{task.source:06d}.{name}.bin"
                if spilled.exists():
                    _copy_behind(spilled, self._build.work / f"{name}.bin", self._offsets[split])
        self._offsets = [a + b for a, b in zip(self._offsets, part.totals.sizes, strict=True)]

    def _confirm(self) -> None:
        """Checksums and --resume marks up to the first byte that may not be written yet."""
        oldest = min(self._writing, default=None)
        written = self._offsets if oldest is None else self._writing[oldest]
        self._build.advance_checksums(written)
        first_open = self._tasks[oldest].source if oldest is not None else len(self._parts)
        while self._unconfirmed and self._unconfirmed[0] < first_open:
            number = self._unconfirmed.popleft()
            self._build.finish_source(number, self._parts[number])


def _copy_behind(source: Path, target: Path, offset: int) -> None:
    """Move a file's bytes into another at an offset, inside the kernel."""
    with source.open("rb") as read, target.open("r+b") as write:
        left = os.fstat(read.fileno()).st_size
        os.lseek(write.fileno(), offset, os.SEEK_SET)
        while left:
            left -= os.sendfile(write.fileno(), read.fileno(), None, left)
    source.unlink()


def _work(pipe: Connection, job: Job) -> None:
    """Main loop of a worker process."""
    scanner = job.recipe.scanner()
    main_sink = Sink(job.work, "", [0, 0, 0])
    try:
        while (message := pipe.recv()) is not None:
            _, task, direct = message
            source, policy = job.sources[task.source], job.policies[task.source]
            if task.range is None:
                stem = "" if direct is not None else f"parts/{task.source:06d}."
                sink = Sink(job.work, stem, direct or [0, 0, 0])
                part = Part(job.work, task.source)
                for bases in build_source(source, policy, job.recipe, scanner, sink, part):
                    pipe.send(("bases", bases))
                sink.close()
                pipe.send(("streamed", (part.closed(), direct is not None)))
                continue
            piece = range_piece(source, job.recipe, scanner, task.range, task.before)
            pipe.send(("scanned", None))
            state, main_sink.offsets = pipe.recv()
            chunker = Chunker(policy, state)
            plan = chunker.plan(piece, scanner.buffer, scanner.headroom, final=task.last)
            pipe.send(("planned", (chunker.state, plan)))
            main_sink.write(plan, scanner.buffer)
            pipe.send(("written", None))
    except KeyboardInterrupt:
        return
    except Exception as error:  # every failure must reach the coordinator, or it would wait for ever
        pipe.send(("error", error))
