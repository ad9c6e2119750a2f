"""The options of `megadna annotate` and `megadna search`, which embed the windows of a genome. Quick to import."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from megadna.downstream.options import EmbedOptions, RunOptions, check_model, refuse_outputs
from megadna.errors import UserError, require

MAX_CLUSTERS = 100


@dataclass(frozen=True, kw_only=True)
class GenomeWindowOptions(RunOptions):
    """Which windows of which genome, and where to write."""

    genome: Path
    """FASTA of the genome (also gz, 2bit)."""
    output: Path | None = None
    """File to write. Positions count from 0, end not included."""
    step: int = 0
    """Bases from one window to the next (default: annotate: --window, search: a quarter of it)."""
    layer: int = -1
    """Hidden state to take: 0 is the embedding, -1 the last layer."""
    circular: list[str] = field(default_factory=list)
    """Circular contigs, in addition to those whose header says circular=true: windows wrap around their ends."""
    batch_tokens: int = 16384
    """Tokens per batch at most, padding included; a CPU takes no more than 2,048, which fit its caches."""

    ENDINGS = tuple[str, ...]()  # not annotated: no field
    """Allowed for --output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_tokens > 0, f"--batch_tokens must be positive, got {self.batch_tokens}")
        require(self.step >= 0, f"--step must not be negative, got {self.step}")

    def files(self) -> list[Path]:
        """All files that are written."""
        assert self.output is not None
        return [self.output]

    def check_files(self) -> None:
        """UserError where a file or folder is missing or an output cannot be written, ModuleNotFoundError for a missing
        library; before anything slow begins."""
        check_model(self.model)
        self.must_exist("genome")
        if self.output is None:
            raise UserError(f"say where to write with --output ({', '.join(self.ENDINGS)})")
        ending = self.output.suffix
        require(ending in self.ENDINGS, f"{self.output}: its ending must be one of {', '.join(self.ENDINGS)}")
        refuse_outputs(self.output, self.files())

    def embedding(self) -> EmbedOptions:
        """How the windows are embedded: the mean over the tokens of their bases."""
        return EmbedOptions(
            model=self.model,
            trust_remote_code=self.trust_remote_code,
            precision=self.precision,
            max_tokens=self.max_tokens,
            input=self.genome,
            output=self.output,
            circular=self.circular,
            batch_tokens=self.batch_tokens,
            layers=[self.layer],
            strand="both",
        )


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions(GenomeWindowOptions):
    """`megadna annotate`."""

    window: int = 200
    """Bases of a window."""
    clusters: int = 0
    """Number of clusters; 0: that of 2 to 10 with the highest silhouette."""
    annotation: Path | None = None
    """GFF3, GTF or BED in which each cluster's enrichment is tested."""
    projection: Literal["umap", "pca", "none"] = "umap"
    """Picture of the windows (OUTPUT.png): UMAP, the first two principal components, or none."""
    seed: int = 1
    """Draws the windows that are fitted and drawn, and starts k-means and UMAP."""

    ENDINGS = (".bed",)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window > 0, f"--window must be positive, got {self.window}")
        require(self.step <= self.window, f"--step {self.step} is longer than --window {self.window}")
        known = self.clusters == 0 or 2 <= self.clusters <= MAX_CLUSTERS
        require(known, f"--clusters must be 0 or 2 to {MAX_CLUSTERS}, got {self.clusters}")
        require(0 <= self.seed < 1 << 32, f"--seed must be 0 to {(1 << 32) - 1}, got {self.seed}")

    def files(self) -> list[Path]:
        """BED, table of windows; table of enrichment and picture where they are wanted."""
        assert self.output is not None
        endings = [".bed", ".windows.parquet"]
        endings += [".enrichment.tsv"] if self.annotation is not None else []
        endings += [".png"] if self.projection != "none" else []
        return [self.output.with_suffix(ending) for ending in endings]

    def check_files(self) -> None:
        """As above, and the annotation and the libraries."""
        self.must_exist("annotation")
        super().check_files()
        self.check_libraries()

    def check_libraries(self) -> None:
        """ModuleNotFoundError if what draws the picture is missing."""
        if self.projection == "umap" and find_spec("umap") is None:
            raise ModuleNotFoundError(name="umap-learn")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(GenomeWindowOptions):
    """`megadna search`."""

    input: Path
    """Query sequences: FASTA (also gz), or CSV, TSV or Parquet with a column of sequences."""
    column: str = ""
    """Column of a table that has the sequences (default: sequence)."""
    window: int = 0
    """Bases of a window of the genome; 0: as many as the longest query has."""
    top: int = 10
    """Windows to report for each query."""

    ENDINGS = (".bed", ".tsv", ".parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 0, f"--window must not be negative, got {self.window}")
        fits = not self.window or self.step <= self.window
        require(fits, f"--step {self.step} is longer than --window {self.window}")
        require(self.top > 0, f"--top must be positive, got {self.top}")

    def check_files(self) -> None:
        """As above, and the queries."""
        self.must_exist("input")
        super().check_files()
