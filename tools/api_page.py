"""Writes docs/api.md from the docstrings of what `from megadna import ...` gives: python tools/api_page.py"""

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from docstring_parser import parse_from_object

import megadna
from megadna import api

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# Python API

Every verb that trains or uses a model is a function too, in scripts and notebooks:

    from megadna import preprocess, train, evaluate, export, embed, finetune, predict

A mistake raises `megadna.errors.UserError` with the line in which the command would end. Tables are pandas DataFrames (`pip
install 'megadna[downstream]'`); positions in them are 0-based, and `end` is not included. In a notebook, log and progress appear
under the cell; elsewhere `megadna.log.setup_logging()` shows the log. Two notebooks: [pretrain.ipynb](pretrain.ipynb) and
[use_a_model.ipynb](use_a_model.ipynb). The keys of a run are those of `megadna train --help`. `tools/api_page.py` makes this page
from the docstrings.
"""


def page() -> str:
    """The text of docs/api.md."""
    return HEAD + "".join(map(section, megadna.VERBS))


def section(name: str) -> str:
    """Signature, docstring, and the options that the function takes as keyword arguments."""
    function = getattr(api, name, None) or getattr(megadna, name)
    shown = re.sub(r"-> '([\w.]+)'$", r"-> \1", str(inspect.signature(function)))
    shown = re.sub(r"\b(pathlib|collections\.abc|typing|pd|pandas|megadna(\.[a-z_]+)+)\.", "", shown).replace("'", '"')
    lines = textwrap.wrap(f"{name}{shown}", 112, initial_indent="    ", subsequent_indent=" " * 8)
    text = "\n".join(["", f"## {name}", "", *lines, "", str(inspect.getdoc(function)), ""])
    found = re.search(r"(?:fields of|these)\s+(\w+Options)", str(function.__doc__))
    if found is None:
        return text
    options = sys.modules[function.__module__].__dict__[found[1]]
    table = rows(options, inspect.signature(function).parameters)
    return "\n".join([text, "| option | default | meaning |", "|---|---|---|", *table, ""])


def rows(options: Any, named: Mapping[str, Any]) -> list[str]:
    """A line of the table for each option that is not a parameter by name."""
    kinds = [kind for kind in options.__mro__ if "__dataclass_fields__" in kind.__dict__]
    about = {entry.arg_name: entry.description for kind in reversed(kinds) for entry in parse_from_object(kind).params}
    lines = []
    for entry in fields(options):
        if entry.name not in named:
            default = "" if entry.default_factory is not MISSING else entry.default
            text = "required" if default is MISSING else f"`{default!r}`" if default not in ("", None) else ""
            meaning = " ".join(str(about[entry.name]).split()).replace("|", "\\|").replace("--", "")
            lines.append(f"| {entry.name} | {text} | {meaning} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
