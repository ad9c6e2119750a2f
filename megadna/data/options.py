"""Every option of `megadna preprocess`, checked when built; the manifest records those that decide the content."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megadna.errors import UserError, require

_NOT_RECORDED = ("input", "output", "workers", "resume", "overwrite")
_REMOVED: dict[str, Any] = {
    "overlap": 0,
    "min_record": 1,
    "max_n_run": None,
    "ambiguous": "keep",
    "uracil": "t",
    "lines": False,
    "spaced_kmers": False,
    "max_containment": 0.2,
    "no_source_hash": False,
}
"""Options of earlier versions, which older manifests record, at the values that all builds have now."""


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """How FASTA files become a dataset."""

    input: list[Path] = field(default_factory=list)
    """FASTA files (plain, gzip, BGZF, zstd, 2bit), tables, folders, globs, or - for standard input."""
    sample_sheet: Path | None = None
    """TSV with columns path, and optionally genome, species, split, circular and taxa; instead of --input."""
    output: Path
    """Dataset folder to write."""
    chunk_length: int = 4000
    """Nucleotides per chunk."""
    min_tail: int = 1
    """Drop the last chunk of a contig where it is shorter, and so contigs shorter than that; 1 keeps all."""
    soft_mask: Literal["keep", "fold"] = "keep"
    """Lower case: keep it on disk, or fold it to upper case."""
    contigs: str = "primary"
    """primary (no alternates, patches, decoys), all, a name, or a regular expression that must match whole names."""
    include_bed: Path | None = None
    """BED file: take only these regions."""
    exclude_bed: Path | None = None
    """BED file: leave these regions out (blacklists, benchmark regions, pseudoautosomal copies)."""
    split: Literal["region", "contig", "genome", "column", "nucleotide_transformer"] = "region"
    """What stays together: blocks of a contig, contigs, genomes, a sample-sheet column, or the NT list's rule."""
    split_by: str = ""
    """Sample-sheet column for --split column; all rows with one value share a split."""
    valid: list[str] = field(default_factory=list)
    """Globs of genome names or file names for validation, with --split genome."""
    test: list[str] = field(default_factory=list)
    """Globs of genome names or file names for testing, with --split genome."""
    valid_contigs: str = ""
    """Name, or regular expression of contig names, for validation, with --split contig."""
    test_contigs: str = ""
    """Name, or regular expression of contig names, for testing, with --split contig."""
    valid_fraction: float = 0.01
    """Share held out for validation; 0 makes no such split."""
    test_fraction: float = 0.01
    """Share held out for testing; 0 makes no such split."""
    allow_related: bool = False
    """Allow a region split where two sources are of one species."""
    block_chunks: int = 10
    """Consecutive chunks that stay in one split."""
    seed: int = 1234
    """Seed of the draw of held-out blocks."""
    column: str = ""
    """Column of a Parquet, CSV or TSV file that holds the sequences."""
    leakage: Literal["off", "report", "drop_from_train", "drop_from_heldout"] = "off"
    """Compare held-out chunks with train by sketches of 31-mers; dropped is what shares more than 20 % of them."""
    workers: int = 1
    """Processes that read; the dataset does not depend on it."""
    resume: bool = False
    """Continue after the finished source files of an interrupted build."""
    overwrite: bool = False
    """Replace the dataset in the output folder."""

    def __post_init__(self) -> None:
        require(bool(self.input) != bool(self.sample_sheet), "give either --input or --sample_sheet")
        require(8 <= self.chunk_length < 2**31, f"--chunk_length must be at least 8, got {self.chunk_length}")
        for key in ("block_chunks", "workers", "min_tail"):
            require(getattr(self, key) >= 1, f"--{key} must be at least 1, got {getattr(self, key)}")
        self._check_splits()
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")

    def _check_splits(self) -> None:
        for key in ("valid_fraction", "test_fraction"):
            value = getattr(self, key)
            require(0.0 <= value < 1.0, f"--{key} must lie in [0, 1), got {value}")
        total = self.valid_fraction + self.test_fraction
        require(total < 1.0, f"--valid_fraction + --test_fraction must be below 1, got {total}")
        require(self.split == "genome" or not (self.valid or self.test), "--valid and --test need --split genome")
        require(
            self.split == "contig" or not (self.valid_contigs or self.test_contigs),
            "--valid_contigs and --test_contigs need --split contig",
        )
        require((self.split == "column") == bool(self.split_by), "--split column and --split_by go together")
        by_sheet = self.split in ("column", "nucleotide_transformer")
        require(not by_sheet or self.sample_sheet is not None, f"--split {self.split} needs --sample_sheet")
        for key in ("contigs", "valid_contigs", "test_contigs"):
            try:
                re.compile(getattr(self, key))
            except re.error as error:
                raise UserError(f"--{key} {getattr(self, key)}: not a regular expression ({error})") from error

    @property
    def named_contigs(self) -> bool:
        """Whether contigs are held out by name rather than by fraction."""
        return bool(self.valid_contigs or self.test_contigs)


def is_recorded(options: PreprocessOptions, recorded: Mapping[str, Any]) -> bool:
    """Whether a manifest, perhaps of an earlier version, records these options."""
    gone = object()
    return recorded_options(options) == {
        key: value for key, value in recorded.items() if _REMOVED.get(key, gone) != value
    }


def recorded_options(options: PreprocessOptions) -> dict[str, Any]:
    """The options that decide what is in a dataset, as JSON values."""
    values = {key: value for key, value in asdict(options).items() if key not in _NOT_RECORDED}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
