"""Runs the marked blocks (```bash, ```sh, ```python) of a document as they stand there, in order, in one folder."""

import os
import re
import subprocess
from pathlib import Path

import preloaded

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|sh|python)\n(.*?)^```", re.M | re.S)


def blocks_of(name: str) -> list[tuple[str, str]]:
    """(language, text) of each block of docs/NAME."""
    return BLOCK.findall((ROOT / "docs" / name).read_text(encoding="utf-8"))


def run_blocks(blocks: list[tuple[str, str]], folder: Path, **variables: str) -> str:
    """What they print, with the commands of tests/preloaded.py on the path (after those of `PATH` in variables)."""
    python = preloaded.python()
    here = str(Path(python).parent)
    path = [*filter(None, [variables.pop("PATH", "")]), here, os.environ["PATH"]]
    own = {"PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    printed = ""
    for language, text in blocks:
        command = [python, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
        result = subprocess.run(
            command, cwd=folder, env={**os.environ, **own, **variables}, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        printed += result.stdout
    return printed
