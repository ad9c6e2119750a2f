"""The options of `megadna mutate` and `megadna dependencies`, whose field docstrings are their --help.

Nothing here is slow to import: `--help` and a mistaken option need neither torch nor pandas.
"""

from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from megadna.downstream.options import InputOptions, ModelOptions, check_model, refuse_outputs
from megadna.errors import require
from megadna.ownership import resolved


@dataclass(frozen=True, kw_only=True)
class RegionOptions(ModelOptions):
    """What is read and written, the same for both verbs."""

    input: Path
    """FASTA (also gz), or CSV, TSV or Parquet with a column of sequences."""
    output: list[Path] = field(default_factory=list)
    """Files to write, all in one folder; the extension of each sets its format. Positions count from 0."""
    bed: Path | None = None
    """BED file of regions of --input; minus-strand regions are reverse-complemented."""
    column: str = ""
    """Column of a table that has the sequences (default: sequence)."""
    max_tokens: int = 0
    """Context in tokens, special tokens included; 0: what the model states."""
    batch_tokens: int = 16384
    """Tokens per batch, padding included."""

    ENDINGS = tuple[str, ...]()  # not annotated: no field
    """Allowed for --output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", [Path(path) for path in self.output])
        require(
            str(self.input) != "-", "--input - can be read only once, and the input is read several times; give a file"
        )
        require(self.max_tokens >= 0, f"--max_tokens must not be negative, got {self.max_tokens}")
        require(self.batch_tokens > 0, f"--batch_tokens must be positive, got {self.batch_tokens}")

    def written(self, *endings: str) -> Path | None:
        """The first output with one of these endings."""
        return next((path for path in self.output if path.suffix in endings), None)

    def check_files(self) -> None:
        """UserError where a file or folder is missing or an output cannot be written, ModuleNotFoundError for a missing
        library; before anything slow begins."""
        check_model(self.model)
        self.must_exist("input", "bed")
        endings = ", ".join(self.ENDINGS)
        require(len(self.output) > 0, f"say what to write with --output: one or more files ({endings})")
        for path in self.output:
            require(path.suffix in self.ENDINGS, f"{path}: its ending must be one of {endings}")
            require(
                resolved(path).parent == resolved(self.output[0]).parent,
                f"{path}: must be in the folder of {self.output[0]}, as all appear together when they are complete",
            )
        for ending, count in Counter(path.suffix for path in self.output).items():
            require(count == 1, f"--output names {count} files that end in {ending}; name one")
        refuse_outputs(self.output[0], self.output)
        if self.written(".bw") and find_spec("pyBigWig") is None:
            raise ModuleNotFoundError(name="pyBigWig")

    def as_input(self) -> InputOptions:
        """What `check_input` checks: the records and regions, and that they can be written to a bigWig."""
        return InputOptions(
            model=self.model, input=self.input, bed=self.bed, column=self.column, output=self.written(".bw")
        )


@dataclass(frozen=True, kw_only=True)
class MutateOptions(RegionOptions):
    """`megadna mutate`."""

    window: int = 0
    """Language models: bases that the model sees, the base in their middle (odd); 0: as many as its context holds."""
    strand: Literal["forward", "both"] = "forward"
    """both: the mean of ln p (of a fine-tuned model: of its logits) on the two strands."""
    scale: Literal["probability", "log_odds"] = "probability"
    """Fine-tuned classifiers: the change of p, or of ln p/(1-p), which does not flatten where p is near 0 or 1."""
    gff: Path | None = None
    """GFF3 or GTF to draw in the pictures (.png, .html)."""
    variants: Path | None = None
    """Variants to draw in the pictures: VCF (MEGADNA_LLR in INFO, if scored) or a table with contig, pos (1-based),
    ref, alt and llr."""
    map: Path | None = None
    """Dependency map (.npy of `megadna dependencies`) of the region to draw in its page (.html)."""

    ENDINGS = (".parquet", ".tsv", ".npy", ".bw", ".png", ".html")

    def __post_init__(self) -> None:
        super().__post_init__()
        is_odd = self.window == 0 or (self.window > 0 and self.window % 2 == 1)
        require(is_odd, f"--window must be odd, so that it has a middle, got {self.window}")

    def check_files(self) -> None:
        """As for both verbs; what is drawn exists, and a picture is asked for."""
        super().check_files()
        self.must_exist("gff", "variants", "map")
        for key, endings in (("gff", (".png", ".html")), ("variants", (".png", ".html")), ("map", (".html",))):
            drawn = getattr(self, key) is None or self.written(*endings) is not None
            require(drawn, f"--{key} is drawn in {' and '.join(endings)} only; name such a file with --output too")


@dataclass(frozen=True, kw_only=True)
class DependencyOptions(RegionOptions):
    """`megadna dependencies`."""

    flank: int = 0
    """Bases of the contig on either side of a region that the model sees too, though they are not part of the map."""
    epsilon: float = 1e-10
    """Added to each p before it is renormalised; maps of another epsilon have other maxima, so it is recorded."""
    min_distance: int = 4
    """Bases between i and j from which on the summary looks for stems and repeats."""
    shuffles: int = 99
    """Shuffled maps that tell which runs are longer and stronger than chance; 0: no summary."""
    seed: int = 1234
    """Of the shuffles."""

    ENDINGS = (".npy", ".parquet", ".tsv", ".png", ".html")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.flank >= 0, f"--flank must not be negative, got {self.flank}")
        require(0 < self.epsilon < 0.01, f"--epsilon must lie in (0, 0.01), got {self.epsilon}")
        require(self.min_distance > 0, f"--min_distance must be positive, got {self.min_distance}")
        require(self.shuffles >= 0, f"--shuffles must not be negative, got {self.shuffles}")
        summary = self.shuffles or self.written(".tsv") is None
        require(bool(summary), "--output .tsv is the summary, which needs --shuffles above 0")
