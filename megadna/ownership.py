"""What a command may replace or delete: only what megadna wrote, as its content proves."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadna.errors import UserError, require

MARKER = ".megadna"
"""File in a folder that megadna fills gradually (a run, a benchmark): JSON that states what the folder is."""
_PARTIAL = r"(.*/)?\.[^/]+\.megadna-partial"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of folder that megadna writes."""

    name: str
    """Its name in messages."""
    files: Callable[[Path], str | None]
    """For a folder: a regular expression of the relative paths that it may contain; None where its content does not
    prove that megadna wrote it."""


def is_unused(folder: Path, *known: str) -> bool:
    """Whether `folder` is absent or contains only the entries `known` and what a kill left of a file."""
    leftover = re.compile(_PARTIAL)
    return not folder.exists() or (
        folder.is_dir() and all(entry.name in known or leftover.fullmatch(entry.name) for entry in folder.iterdir())
    )


def refuse_occupied(output: Path, remedy: str = "", *, is_file: bool = False) -> None:
    """UserError where `output` exists and is not an empty folder; with `is_file`, where it exists at all."""
    end = f"; choose another --output{remedy}"
    require(not output.exists() or output.is_dir(), f"{output}: is a file that exists{end}")
    require(not (is_file and output.is_dir()), f"{output}: is a folder; --output names a file")
    require(not (output.is_dir() and any(output.iterdir())), f"{output}: not empty{end}")


def refuse_foreign(file: Path, what: str, *keys: str) -> None:
    """UserError where `file` exists and is not a JSON object with `keys`: only a file of megadna is replaced."""
    if not file.exists():
        return
    content: Any = None
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads(file.read_text(encoding="utf-8"))
    is_ours = isinstance(content, dict) and content.keys() >= set(keys)
    require(is_ours, f"{file}: exists and is no {what} of megadna; choose another --output, or move it away")


def refuse_replacing(output: Path, inputs: Iterable[Path | str | None]) -> None:
    """UserError where replacing `output` would delete one of `inputs`: it is the output, or in it."""
    target = resolved(output)
    for path in (Path(given) for given in inputs if given):
        if target in (source := resolved(path), *source.parents):
            what = "is" if source == target else "lies in"
            raise UserError(f"{path}: {what} the output {output}, which would be replaced; choose another --output")


def check_replaceable(folder: Path, kind: Kind) -> None:
    """UserError where megadna did not write `folder`, or it contains files that megadna did not write."""
    pattern = kind.files(folder)
    if pattern is None:
        raise UserError(
            f"{folder}: is no {kind.name} that megadna wrote, so --overwrite does not delete it; choose another "
            "--output, or remove it yourself"
        )
    known = re.compile(f"{pattern}|{re.escape(MARKER)}|{_PARTIAL}")
    foreign = sorted(name for name in _entries(folder) if not known.fullmatch(name))
    if foreign:
        raise UserError(
            f"{folder}: contains {len(foreign)} {'file' if len(foreign) == 1 else 'files'} that megadna did not write "
            f"({foreign[0]}{', ...' * (len(foreign) > 1)}), which --overwrite would delete; move them away"
        )


def check_folder(output: Path, kind: Kind | None, remedy: str = "") -> None:
    """UserError where the folder `output` cannot be made, or exists and (with `kind`) may not be replaced."""
    if kind is None or not output.is_dir() or not any(output.iterdir()):
        refuse_occupied(output, remedy)
    else:
        check_replaceable(output, kind)
    target = resolved(output)
    require(not os.path.ismount(target), f"{output}: is a mount point; name a folder in it")
    parent = next(path for path in target.parents if path.exists())
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    require(writable, f"{output}: cannot be made, as {parent} is no folder to write in; choose another --output")
    require(
        target not in (here := Path.cwd(), *here.parents),
        f"{output}: is or contains the current folder, which would be replaced; name another --output",
    )


def _entries(folder: Path) -> Iterator[str]:
    """Relative paths of everything but folders; links are included."""

    def fail(error: OSError) -> None:  # a folder that cannot be read may contain anything
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        for name in [*files, *(name for name in folders if Path(parent, name).is_symlink())]:
            yield Path(parent, name).relative_to(folder).as_posix()


def clear_folder(folder: Path, keep: Iterable[str] = ()) -> None:
    """Delete what `folder` contains, except the entries named in `keep`."""
    for entry in [entry for entry in folder.iterdir() if entry.name not in set(keep)]:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def read_mark(folder: Path) -> dict[str, Any]:
    """The JSON written by `mark`; empty where there is none."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get("program") == "megadna":
            return content
    return {}


def resolved(path: Path) -> Path:
    """The absolute path without links: a writer replaces what a link points to, never the link."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: a link that leads nowhere ({error}); choose another path") from error
