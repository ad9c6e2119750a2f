"""`megadna inspect`: the contents of a dataset, checkpoint or run folder."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megadna.arguments import add_options, load_config, new_parser, options_from, parse
from megadna.commands.preprocess import sources_table
from megadna.config import Config
from megadna.data.dataset import ChunkDataset, check_rising
from megadna.data.inputs import SEQUENCE_FILE
from megadna.data.leakage import measure_leakage
from megadna.data.manifest import MANIFEST_NAME, SPLITS, Manifest, checksum, dump_manifest, leakage_line, load_manifest
from megadna.errors import UserError
from megadna.files import write_text
from megadna.progress import Progress, tracked


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to show."""

    tensors: bool = False
    """Checkpoint: list every tensor."""
    verify: bool = False
    """Read every file and compare checksums."""
    locate: str = ""
    """`split:i`: print the position of chunk i of a split as `contig:first-last`, counted from 1 (samtools faidx)."""
    leakage: bool = False
    """Compare held-out chunks with train and store the result in the dataset."""
    show_batch: bool = False
    """Print the first training batch as text, by --config."""
    config: str = ""
    """show_batch: YAML file of the run; default: the default settings."""


def main(arguments: list[str]) -> None:
    """Print a summary of a dataset, checkpoint or run folder."""
    parser = new_parser("inspect", "What a dataset, checkpoint or run folder contains.")
    parser.add_argument("path", type=Path, help="dataset, checkpoint or run folder")
    add_options(parser, InspectOptions)
    namespace = parse(parser, arguments)
    options = options_from(namespace, InspectOptions)
    path = namespace.path
    if any((path / name).exists() for name in ("weights", "complete", "state.json", "checkpoints")):
        inspect_training(path, options)
    elif (path / MANIFEST_NAME).is_file():
        inspect_dataset(path, options)
    else:
        raise UserError(
            f"{path}: no {MANIFEST_NAME} (a dataset), no weights/ (a checkpoint), no checkpoints/ (a run); "
            + _what_it_seems(path)
        )


def _what_it_seems(path: Path) -> str:
    """A hint about a path that megadna has not written."""
    if not path.is_dir():
        return "it is a file; name a folder" if path.exists() else "there is no such folder"
    names = sorted(entry.name for entry in path.iterdir())
    inside = [name for name in names if any((path / name / known).exists() for known in (MANIFEST_NAME, "checkpoints"))]
    sequences = [name for name in names if SEQUENCE_FILE.search(name)]
    if any((path / inner / "parts").is_dir() for inner in ("", "new")):
        return "an interrupted build: give megadna preprocess the same options and --resume"
    if inside:
        return f"did you mean {path / inside[0]}?"
    if sequences:
        return f"it holds sequences ({sequences[0]}): megadna preprocess --input {path} --output DATASET"
    if "config.json" in names:
        return f"it seems to be a Hugging Face model: megadna evaluate --model {path}"
    return f"it holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}" if names else "it is empty"


def inspect_training(path: Path, options: InspectOptions) -> None:
    """Print a summary of a checkpoint or a run."""
    with Progress("loading the engine"):
        from megadna.train.describe import describe_checkpoint, describe_run

    lines = (
        describe_run(path) if (path / "checkpoints").is_dir() else describe_checkpoint(path, tensors=options.tensors)
    )
    for line in lines:
        sys.stdout.write(line + "\n")


def inspect_dataset(path: Path, options: InspectOptions) -> None:
    """Print the tables of a dataset, or the one thing that an option asks for."""
    if options.locate:
        sys.stdout.write(_locate(path, options.locate) + "\n")
        return
    if options.show_batch:
        from megadna.data.loader import show_batch  # imports torch: seconds, and four times the memory of all else here

        config = load_config(Path(options.config)) if options.config else Config()
        sys.stdout.write(show_batch(replace(config, data=replace(config.data, path=str(path)))))
        return
    manifest = load_manifest(path)
    if options.leakage:
        manifest = replace(manifest, leakage=measure_leakage(path))
        write_text(path / MANIFEST_NAME, dump_manifest(manifest))
    check_files(path, manifest, checksums=options.verify)
    print_dataset(path, manifest)
    sys.stdout.write(
        "every checksum fits\n" if options.verify else "every file has the right size (--verify: checksums)\n"
    )


def _locate(path: Path, text: str) -> str:
    split, _, number = text.partition(":")
    if split not in SPLITS or not number.lstrip("-").isdigit():
        raise UserError(f"--locate {text}: give split and number, as valid:17")
    location = ChunkDataset(path, split).locate(int(number), keep_table=False)
    return f"{location.contig}:{location.start + 1}-{location.end}\t{location.source}"


def check_files(path: Path, manifest: Manifest, *, checksums: bool) -> None:
    """UserError at the first file that is missing or differs from the manifest in size or checksum."""
    for name, entry in tracked(manifest.files.items(), "checking files", len(manifest.files), "files"):
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing; run megadna preprocess again")
        if file.stat().st_size != entry.size:
            raise UserError(
                f"{file}: {file.stat().st_size} bytes instead of {entry.size}; run megadna preprocess again"
            )
        if checksums and checksum(file).xxh128 != entry.xxh128:
            raise UserError(f"{file}: checksum differs from the manifest's; run megadna preprocess again")
    for split in manifest.splits:
        ChunkDataset(path, split)  # UserError where its index does not fit the manifest
    check_rising(path / "contigs.tsv")


def print_dataset(path: Path, manifest: Manifest) -> None:
    """Totals, sources, notes and leakage on standard output."""
    console = Console(file=sys.stdout, highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
    console.print(f"dataset {manifest.dataset_id} at {path}, chunks of {manifest.chunk_length:,} nt, ", end="")
    console.print(f"by megadna {manifest.program_version}")
    splits = Table("split", "chunks", "bases", box=None)
    for split in SPLITS:
        splits.add_row(split, f"{manifest.chunks[split]:,}", f"{manifest.bases[split]:,}")
    console.print(splits)
    console.print(sources_table(manifest))
    for note in manifest.notes:
        console.print(f"note: {note}")
    for split in SPLITS:
        if line := leakage_line(manifest, split):
            console.print(line)
