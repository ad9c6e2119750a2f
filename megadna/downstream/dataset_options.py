"""The options of the verbs that make labelled data (windows, splice-sites); as options.py, quick to import."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megadna.downstream.options import Options
from megadna.errors import require, require_share
from megadna.ownership import check_folder


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options):
    """What every dataset of windows needs."""

    genome: Path
    """FASTA file of the genome (gz, BGZF, zstd and 2bit too)."""
    output: Path | None = None
    """Folder to write; must not contain anything yet."""
    aliases: Path | None = None
    """NCBI's assembly_report.txt, if the files name the contigs differently."""
    length: int = 512
    """Bases per window; even."""
    dev_fraction: float = 0.1
    """Share of the windows for dev."""
    test_fraction: float = 0.1
    """Share of the windows for test."""
    dev_contigs: list[str] = field(default_factory=list)
    """Split chromosome: the contigs of dev, instead of a share."""
    test_contigs: list[str] = field(default_factory=list)
    """Split chromosome: the contigs of test, instead of a share."""
    seed: int = 1234
    """Of every random choice: the same seed gives the same dataset."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.length > 0 and self.length % 2 == 0, f"--length must be even and positive, got {self.length}")
        shares = (self.dev_fraction, self.test_fraction)
        fits = min(shares) >= 0 and sum(shares) < 1
        require(fits, f"--dev_fraction + --test_fraction must lie in [0, 1), got {shares}")
        if self.output is not None:
            check_folder(self.output, None)

    def check_files(self) -> None:
        """UserError where --output is not given or a file to read is missing."""
        require(self.output is not None, "--output is missing: the folder to write")
        self.must_exist()


@dataclass(frozen=True, kw_only=True)
class WindowOptions(DatasetOptions):
    """`megadna windows`."""

    positives: Path | None = None
    """Peaks: BED or narrowPeak (gz too)."""
    annotation: Path | None = None
    """GFF3 or GTF whose transcription start sites are the positives, instead of peaks."""
    bigwig: Path | None = None
    """bigWig whose mean over a window is its label; alone, or with peaks or start sites."""
    uncovered: Literal["auto", "zero", "missing"] = "auto"
    """Bases without a value in the bigWig: `zero` counts them as 0 (coverage), `missing` ignores them (methylation);
    `auto`: zero if it stores only values above 0, on less than half of the bases."""
    biotypes: str = "protein_coding"
    """Gene biotypes whose start sites to take, comma-separated, or `all`."""
    upstream: int | None = None
    """Bases of a window before the summit, middle or start site; half the length by default."""
    count: int = 0
    """Windows to draw at random from all peaks, start sites or tiles of the genome; 0 takes all."""
    negatives: Literal["matched", "shuffled", "none"] = "matched"
    """`matched`: elsewhere on the chromosome, nearest in GC and repeat share; `shuffled`: the positive with its
    dinucleotides shuffled."""
    split: Literal["chromosome", "region", "random"] = "chromosome"
    """`chromosome`, `region`: no window overlaps one of another split; `random`: each window independently."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = [self.positives, self.annotation]
        require(None in sources, "--positives and --annotation exclude each other; make two datasets")
        require(any([*sources, self.bigwig]), "give the windows' source: --positives, --annotation or --bigwig")
        applies = self.bigwig is not None or self.uncovered == "auto"
        require(applies, f"--uncovered {self.uncovered} applies to a --bigwig only")
        require(self.before < self.length, f"--upstream ({self.before}) must be less than --length ({self.length})")
        require(self.count >= 0 and self.before >= 0, "--count and --upstream must not be negative")

    @property
    def before(self) -> int:
        """Bases of a window before its anchor."""
        return self.length // 2 if self.upstream is None else self.upstream


@dataclass(frozen=True, kw_only=True)
class SpliceOptions(DatasetOptions):
    """`megadna splice-sites`."""

    annotation: Path
    """GFF3 or GTF of the genome (gz too)."""
    biotypes: str = "protein_coding"
    """Biotypes of genes to take, comma-separated, or `all`."""
    min_intron: int = 20
    """Shortest intron in bases; shorter gaps are frameshifts and artefacts."""
    min_gt_ag: float = 0.8
    """Error if 50 introns or more have a smaller share of GT-AG; 0 accepts any share."""
    negatives: Literal["hard", "random", "midpoint"] = "hard"
    """`hard`: GT and AG of the same genes that are a site of no isoform; `random`: anywhere in gene bodies; `midpoint`:
    middles of introns."""
    per_class: int = 10000
    """Windows per class; fewer if the smallest class has fewer."""
    split: Literal["gene", "chromosome", "random"] = "gene"
    """`gene`, `chromosome`: no window overlaps one of another split; `random`: as the DNABERT card, with leakage."""

    POSITIVE = ("per_class", "min_intron")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("--min_gt_ag", self.min_gt_ag)
