"""The options of `megadna variants`; nothing here is slow to import."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from megadna.downstream.options import RunOptions, check_model, refuse_outputs
from megadna.errors import require

Score = Literal["llr", "pll", "influence", "distance"]
DEFAULT_WINDOW = 511
"""Bases at most, where --window does not say."""


@dataclass(frozen=True, kw_only=True)
class VariantOptions(RunOptions):
    """`megadna variants`."""

    vcf: Path
    """VCF (plain, gzip, BGZF, zstd) or BCF."""
    genome: Path
    """FASTA of the assembly that the VCF was called on (gz, BGZF, zstd and 2bit too)."""
    output: Path | None = None
    """File to write: .vcf.gz (the input with INFO tags, indexed), .tsv or .parquet (one row per ALT;
    pos counts from 1, as in the VCF)."""
    scores: list[Score] = field(default_factory=list)
    """llr (default): log-odds of ALT against REF at the hidden bases, of substitutions; pll: difference of
    pseudo-log-likelihoods, of insertions and deletions (a pass per base of the window); influence: change of the
    predictions around a substitution; distance: between mean last hidden states."""
    window: int = 0
    """Bases of a window, an odd number; 0: as many as the context holds, but at most 511."""
    neutral: Path | None = None
    """BED file of neutral regions: adds llr_calibrated, llr less its mean there for the same pentanucleotide and ALT
    base."""
    neutral_sites: int = 20000
    """Bases of --neutral to score, evenly spread."""
    batch_tokens: int = 16384
    """Tokens per batch, padding included."""

    ENDINGS = (".vcf.gz", ".tsv", ".parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        for score in self.scores:
            known = get_args(Score)
            require(score in known, f"--scores {score}: must be one of {', '.join(known)}")
        require(len(set(self.scores)) == len(self.scores), f"--scores {' '.join(self.scores)}: name each score once")
        require(self.window >= 0, f"--window must not be negative, got {self.window}")
        odd = self.window % 2 == 1 or self.window == 0
        require(odd, f"--window {self.window}: must be odd, so that the variant is in its middle on both strands")
        require(self.batch_tokens > 0, f"--batch_tokens must be positive, got {self.batch_tokens}")
        require(self.neutral_sites > 0, f"--neutral_sites must be positive, got {self.neutral_sites}")
        calibrates = self.neutral is None or "llr" in self.chosen
        require(calibrates, "--neutral calibrates llr; add it to --scores")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The scores, in the order of their columns."""
        return tuple(score for score in get_args(Score) if score in (self.scores or ["llr"]))

    @property
    def ending(self) -> str:
        """Which of ENDINGS --output has; "" without one."""
        name = "" if self.output is None else self.output.name
        return next((ending for ending in self.ENDINGS if name.endswith(ending) and name != ending), "")

    def check_files(self) -> None:
        """UserError where a file is missing or --output cannot be written, ModuleNotFoundError for a missing library;
        before anything slow begins."""
        from megadna.genome.vcf import is_bcf  # which imports numpy and pyarrow

        check_model(self.model)
        self.must_exist("vcf", "genome", "neutral")
        require(self.output is not None, f"say where to write with --output ({', '.join(self.ENDINGS)})")
        assert self.output is not None
        require(bool(self.ending), f"{self.output}: its ending must be one of {', '.join(self.ENDINGS)}")
        refuse_outputs(self.output, [self.output])
        if (self.ending == ".vcf.gz" or is_bcf(self.vcf)) and find_spec("pysam") is None:
            raise ModuleNotFoundError(name="pysam")
