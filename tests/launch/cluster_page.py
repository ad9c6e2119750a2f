"""The commands of docs/cluster.md: tests take them from there, so that a changed page changes what they run."""

import re
import sys
from pathlib import Path

from documented import ROOT


def commands() -> list[str]:
    """Lines of its indented blocks (continued ones joined, comments left out), then what its text says inline."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"))
    return re.findall(r"(?m)^ {4}(\S.*?)(?:\s+#.*)?$", text) + re.findall(r"`((?:kubectl|sysctl) [^`]+)`", text)


def command(pattern: str) -> str:
    """The one command that `pattern` is found in."""
    found = [line for line in commands() if re.search(pattern, line)]
    assert len(found) == 1, f"docs/cluster.md has {len(found)} commands like {pattern!r}"
    return found[0]


def changed(line: str, changes: dict[str, str]) -> str:
    """`line` with old words replaced by new ones, each of which must be there."""
    for old, new in changes.items():
        assert old in line, f"{old!r} is not in {line!r}"
        line = line.replace(old, new)
    return line


def prepare(folder: Path, dataset: Path) -> Path:
    """Make `folder` one in which the commands run: with configs, launch, .venv, and the data as DATASET."""
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "DATASET").symlink_to(dataset)
    return folder
