"""Every option of `megadna preprocess`, checked at birth; the manifest records them all."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from megadna.errors import UserError, require, require_share

_NOT_RECORDED = ("input", "output", "workers", "resume", "overwrite")


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
    """Shorter last chunks of a contig are dropped; 1 keeps every tail."""
    soft_mask: Literal["keep", "fold"] = "keep"
    """Lower case: keep it on disk, or fold it to upper case."""
    contigs: str = "primary"
    """primary (no alternates, patches, decoys), all, a name, or a regular expression that whole names must fit."""
    include_bed: Path | None = None
    """Take only these regions."""
    exclude_bed: Path | None = None
    """Leave these regions out (blacklists, benchmark regions, pseudoautosomal copies)."""
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
    """Allow a region split although two sources are of one species."""
    block_chunks: int = 10
    """Consecutive chunks that stay in one split."""
    seed: int = 1234
    """Draws which blocks are held out."""
    column: str = ""
    """Column of a Parquet, CSV or TSV file that holds the sequences."""
    leakage: Literal["off", "report", "drop_from_train", "drop_from_heldout"] = "off"
    """Compare held-out chunks with train by sketches of 31-mers."""
    max_containment: float = 0.2
    """Share of a held-out chunk's sketch that train may contain."""
    no_source_hash: bool = False
    """Leave out the SHA-256 of the sequence files; whether one has changed is then told by its size and time."""
    workers: int = 1
    """Processes that read; the dataset does not depend on it."""
    resume: bool = False
    """Go on from the finished source files of an interrupted build."""
    overwrite: bool = False
    """Replace what the output folder holds."""

    def __post_init__(self) -> None:
        require(bool(self.input) != bool(self.sample_sheet), "give either --input or --sample_sheet")
        require(8 <= self.chunk_length < 2**31, f"--chunk_length must be at least 8, got {self.chunk_length}")
        for key in ("block_chunks", "workers", "min_tail"):
            require(getattr(self, key) >= 1, f"--{key} must be at least 1, got {getattr(self, key)}")
        self._check_splits()
        require(not (self.resume and self.overwrite), "--resume and --overwrite exclude each other")
        require_share("--max_containment", self.max_containment)

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


def recorded_options(options: PreprocessOptions) -> dict[str, Any]:
    """The options that decide what is in a dataset, as JSON values."""
    values = {key: value for key, value in asdict(options).items() if key not in _NOT_RECORDED}
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
