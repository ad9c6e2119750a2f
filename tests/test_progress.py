"""What is told of long work: amounts by right values, lines where there is no terminal, bars where there is one."""

import io
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from megadna import progress as module
from megadna.progress import Progress, tracked

REPOSITORY = Path(__file__).parents[1]


class Lines(logging.Handler):
    """Keeps what is logged, and says when a line that contains `awaited` has come."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.awaited, self.came = awaited, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.awaited in self.lines[-1]:
            self.came.set()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(module, "console", Console(file=io.StringIO(), force_terminal=False))
    monkeypatch.setattr(module.log, "level", logging.DEBUG)


def hear(awaited: str, monkeypatch: pytest.MonkeyPatch) -> Lines:
    lines = Lines(awaited)
    monkeypatch.setattr(module.log, "handlers", [lines])
    return lines


def test_share_rate_and_time_left_are_those_of_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    work = Progress("embedding", 12_500_000, "bases")
    assert work.numbers() == "0 %, 0 of 12.5 M bases, 0 s so far"
    work.skip(2_500_000)  # of an earlier command: it counts for the share, not for the rate
    now[0] = 200.0
    work.advance(2_500_000)
    assert work.numbers() == "40 %, 5.0 M of 12.5 M bases, 25.0 k bases/s, 5 min left"
    work.note = "loss 1.3"
    now[0] = 300.0
    assert work.numbers() == "40 %, 5.0 M of 12.5 M bases, 12.5 k bases/s, 10 min left, loss 1.3"
    work.advance(8_000_000)  # the total was guessed too low
    assert work.share() is None and work.numbers() == "13.0 M bases, 52.5 k bases/s, loss 1.3"
    slow = Progress("runs", 3, "runs")
    now[0] += 7200
    slow.advance()
    assert slow.numbers() == "33 %, 1 of 3 runs, 7200 s each, 4.0 h left"


def test_a_line_comes_off_a_terminal_and_names_work_within_work(at_once, monkeypatch):
    lines = hear("inner: 50 %, 1 of 2 steps", monkeypatch)
    with Progress("outer", 4, "runs") as outer, Progress("inner", 2, "steps") as inner:
        outer.advance()
        inner.advance()
        assert lines.came.wait(60)
    line = next(line for line in lines.lines if lines.awaited in line)
    assert line.startswith("outer: 25 %, 1 of 4 runs, ") and "; inner: 50 %" in line
    told = len(lines.lines)
    assert list(tracked("abc", "letters", 3)) == ["a", "b", "c"] and not module._display._active
    assert len(lines.lines) - told <= 1


def test_work_that_logs_itself_and_other_ranks_add_no_line(at_once, monkeypatch):
    lines = hear("spoken", monkeypatch)
    with Progress("own", own_lines=True), Progress("spoken"):
        assert lines.came.wait(60)
    assert not any("own" in line for line in lines.lines)
    monkeypatch.setenv("RANK", "1")
    with Progress("silent"):
        assert not module._display._active


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_a_bar_in_its_own_width(width, monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(module, "console", Console(file=screen, width=width, force_terminal=True, color_system=None))
    with Progress("training", 400_000, "steps") as outer, Progress("embedding", 4, "bases") as work:
        outer.advance(123_456)
        outer.rate, outer.note = "123 k tokens/s", "loss 1.8460"
        work.advance(2)
        waiting = threading.Event()
        for _ in range(600):
            if "50 %, 2 of 4 bases" in screen.getvalue() and (width < 80 or "loss" in screen.getvalue()):
                break
            waiting.wait(0.1)
    shown = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    assert max(map(len, shown.split("\n"))) <= width
    assert "embedding 50 %, 2 of 4 bases" in shown and "training 30 %, 123 k of 400 k steps" in shown
    if width >= 80:
        assert re.search("123 k tokens/s, [0-9]+ s left, loss 1.8460 ", shown)
        assert "━" in shown
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_notebook_gets_one_line_that_changes(monkeypatch, capsys):
    monkeypatch.setattr(module, "console", Console(file=io.StringIO(), force_jupyter=True))
    with Progress("embedding", 4, "bases") as work:
        work.advance(2)
        threading.Event().wait(1.2)
    lines = capsys.readouterr().err.split("\r")
    assert lines[0] == lines[-1] == "" and not lines[-2].strip()  # the line is gone at the end
    assert lines[-3].startswith("embedding: 50 %, 2 of 4 bases, ") and "left" in lines[-3]
    assert {len(line) for line in lines[1:-1]} == {module.CELL_WIDTH}


FIRST_LINES = """
import logging, sys
from pathlib import Path
for name in ("torch", "transformers", "pandas", "megatron"):
    sys.modules[name] = None  # whoever imports it ends here
from megadna.cli import NEEDS, main
NEEDS.clear()  # it would name pandas before anything else
folder = sys.argv[1]
verbs = {
    "embed": "--model {0} --input {0}/a.fa --output {0}/x.npy",
    "predict": "--model {0} --input {0}/a.fa --output {0}/x.bed",
    "finetune": "--model {0} --data {0}/a.fa --output {0}/x",
    "benchmark": "--suite gue --model {0} --data {0} --output {0}/x",
    "evaluate": "--model {0}",
    "export": "--checkpoint {0} --output {0}/x",
    "import": "--model {0} --output {0}/x",
    "windows": "--genome {0}/a.fa --annotation {0}/a.gff --output {0}/x",
    "splice-sites": "--genome {0}/a.fa --annotation {0}/a.gff --output {0}/x",
    "train": "--data.path {0} --output {0}/x",
    "variants": "--model {0} --vcf {0}/a.vcf --genome {0}/a.fa --output {0}/x.tsv",
    "mutate": "--model {0} --input {0}/a.fa --output {0}/x.tsv",
    "dependencies": "--model {0} --input {0}/a.fa --output {0}/x.npy",
    "attribute": "--model {0} --input {0}/a.fa --output {0}/x.parquet",
    "motifs": "--input {0}/a.fa --negatives {0}/a.fa --output {0}/x",
    "annotate": "--model {0} --genome {0}/a.fa --output {0}/x.bed --projection none --window 1",
    "search": "--model {0} --genome {0}/a.fa --input {0}/a.fa --output {0}/x.tsv",
    "generate": "--model {0} --length 9 --output {0}/x",
    "doctor": "",
}
for verb, options in verbs.items():
    mistakes = [] if verb in ("doctor", "train") else [options.replace("a.fa", "b.fa").replace("{0}", "{0}/none", 1)]
    for given in [*mistakes, options]:
        sys.stderr.write(f"== {verb} {given in mistakes}\\n")
        try:
            main([verb, *given.format(folder).split()])
        except SystemExit:
            pass
"""


def test_the_first_line_and_a_missing_file_come_before_slow_imports(tmp_path):
    record = "a\t1\t.\tA\tC\n"
    for name, text in {"a.fa": ">a\nACGT\n", "a.gff": "", "a.vcf": record, "config.json": "{}"}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", FIRST_LINES, str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    parts = [part.splitlines() for part in result.stderr.split("== ")[1:]]
    assert len(parts) == 36
    for title, *lines in parts:
        if title.endswith("True"):  # the mistake: a file or folder that is not there, in one line and alone
            assert len(lines) == 1 and lines[0].startswith("megadna: error: ") and "no such" in lines[0], (title, lines)
        else:  # a line, and only then what is slow to import
            first, *_, last = lines
            assert "error" not in first and "is not installed" in last, (title, lines)
