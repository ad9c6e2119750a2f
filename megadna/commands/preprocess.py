"""`megadna preprocess`: FASTA files -> an indexed dataset of chunks."""

import sys

from rich.console import Console
from rich.table import Table

from megadna.arguments import parsed_options
from megadna.data.builder import build_dataset
from megadna.data.manifest import SPLITS, Manifest, leakage_line
from megadna.data.options import PreprocessOptions


def main(arguments: list[str]) -> None:
    """Build a dataset folder and print a summary."""
    description = "FASTA files -> an indexed dataset of non-overlapping chunks."
    options = parsed_options("preprocess", description, PreprocessOptions, arguments)
    manifest, built = build_dataset(options)
    if not built:
        sys.stdout.write(f"{options.output}: already holds this dataset ({manifest.dataset_id}); nothing to do\n")
        return
    Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else 160).print(
        sources_table(manifest)
    )
    for note in manifest.notes:
        sys.stdout.write(f"note: {note}\n")
    for split in SPLITS:
        if line := leakage_line(manifest, split):
            sys.stdout.write(line + "\n")
    sys.stdout.write(f"wrote {options.output} (dataset {manifest.dataset_id})\n")


def sources_table(manifest: Manifest) -> Table:
    """One row per source: counts, composition, chunks, what was dropped."""
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
