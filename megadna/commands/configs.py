"""`megadna configs`: the experiments and launch scripts that come with megadna, listed or printed."""

import sys
from pathlib import Path

from megadna.arguments import new_parser, parse
from megadna.packaged import configs, find_any, scripts


def main(arguments: list[str]) -> None:
    """List the names with what each file says of itself, or print one file."""
    parser = new_parser("configs", "The experiments (YAML) and launch scripts that come with megadna.")
    parser.add_argument("name", type=str, nargs="?", default="", help="print this file; without it, list all")
    name = parse(parser, arguments).name
    if name:
        sys.stdout.write(find_any(name).read_text(encoding="utf-8"))
        return
    for title, files in (("for --config", configs()), ("to print and edit", scripts())):
        sys.stdout.write(f"{title}:\n")
        for known, path in files.items():
            sys.stdout.write(f"  {known:<28} {_about(path)}\n")
    sys.stdout.write("megadna configs NAME prints a file; --config NAME takes it where no file has that path\n")


def _about(path: Path) -> str:
    """The first sentence of a file's first comment."""
    comments = (line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines())
    return next(text for text in comments if not text.startswith("!")).partition(". ")[0]
