"""`megadna preprocess`: FASTA files -> an indexed dataset of chunks."""

import sys
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from megadna.arguments import new_parser, parse
from megadna.data.builder import build_dataset
from megadna.data.manifest import SPLITS, Manifest, leakage_line
from megadna.data.options import PreprocessOptions

Options = TypeVar("Options")


def main(arguments: list[str]) -> None:
    """Build a dataset folder and print what it holds."""
    parser = new_parser("preprocess", "FASTA files -> an indexed dataset of non-overlapping chunks.")
    add_options(parser, PreprocessOptions)
    options = options_from(parse(parser, arguments), PreprocessOptions)
    manifest, built = build_dataset(options)
    if not built:
        sys.stdout.write(f"{options.output}: already holds this dataset ({manifest.dataset_id}); nothing to do\n")
        return
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160).print(sources_table(manifest))
    for note in manifest.notes:
        sys.stdout.write(f"note: {note}\n")
    for split in SPLITS:
        if line := leakage_line(manifest, split):
            sys.stdout.write(line + "\n")
    sys.stdout.write(f"wrote {options.output} (dataset {manifest.dataset_id})\n")


def add_options(parser: ArgumentParser, options: Any) -> None:
    """The dataclass' fields as options; lists take several words (`--input a b`), booleans none (`--overwrite`)."""
    types = get_type_hints(options)
    documented = [entry for kind in options.__mro__[:-1] for entry in parse_from_object(kind).params]
    help_texts = {entry.arg_name: entry.description for entry in documented}
    special = {name for name, kind in types.items() if get_origin(kind) is list or kind is bool}
    parser.add_class_arguments(options, skip=special)
    for entry in fields(options):
        flag, text = f"--{entry.name}", help_texts.get(entry.name)
        if types[entry.name] is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif entry.name in special:
            parser.add_argument(flag, type=get_args(types[entry.name])[0], nargs="+", default=[], help=text)


def options_from(namespace: Namespace, options: type[Options]) -> Options:
    """The dataclass among the parsed arguments."""
    return options(**{name: namespace[name] for name in options.__dataclass_fields__})  # type: ignore[attr-defined]


def sources_table(manifest: Manifest) -> Table:
    """One row a source: counts, composition, chunks, what was dropped."""
    columns = ("source", "records", "bases", "GC %", "N %", "soft %", *SPLITS, "dropped")
    table = Table(*columns, box=None, pad_edge=False)
    for source in manifest.sources:
        dropped = ", ".join(f"{reason} {bases:,}" for reason, bases in source.dropped.items())
        table.add_row(
            source.name,
            f"{source.records:,}",
            f"{source.bases:,}",
            f"{100 * source.gc_fraction:.2f}",
            f"{100 * source.n_fraction:.2f}",
            f"{100 * source.soft_masked_fraction:.2f}",
            *(f"{source.chunks[split]:,}" for split in SPLITS),
            dropped,
        )
    return table
