"""Text and JSON files that a user or a stranger wrote -> their content in bounded time and memory, or one UserError."""

import json
import math
from pathlib import Path
from typing import Any

from megadna.errors import UserError

MAX_BYTES = 1 << 28
"""Largest JSON file that is read; a manifest of 100,000 genomes takes a quarter of it."""


def read_text(path: Path, remedy: str = "", *, limit: int = MAX_BYTES) -> str:
    """The UTF-8 text of a regular file (a byte order mark is dropped); UserError, `remedy` at its end, for anything
    else and for more than `limit` bytes."""
    end = f"; {remedy}" if remedy else ""
    if not path.is_file():  # a folder, a pipe, a device; or nothing
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}{end}")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}){end}") from error
    if len(data) > limit:
        raise UserError(f"{path}: larger than the {limit:,} bytes that are read{end}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: not UTF-8 (byte 0x{data[error.start]:02x}){end}") from error


def parse_json(text: str | bytes, where: str, remedy: str = "", *, what: str = "JSON") -> dict[str, Any]:
    """A JSON object; UserError, `where: not what (reason); remedy`, for anything else, numbers beyond a float's range
    included."""
    end = f"; {remedy}" if remedy else ""
    try:
        content = json.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise UserError(f"{where}: not {what} (nested too deeply){end}") from error
    except ValueError as error:  # also a number of thousands of digits, and bytes that are not UTF-8
        raise UserError(f"{where}: not {what} ({first_line(error)}){end}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: not {what} (not an object but {type(content).__name__}){end}")
    return content


def read_json(path: Path, remedy: str = "", *, what: str = "JSON", limit: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object that a file contains; UserError, as from `parse_json`, where it is missing, something else, or
    larger than `limit` bytes."""
    return parse_json(read_text(path, remedy, limit=limit), str(path), remedy, what=what)


def first_line(error: BaseException) -> str:
    """The first line of an error of another library; its type where it has no message."""
    lines = str(error).strip().splitlines()
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the range of a number")
    return value
