"""The options of variants, annotate, search, mutate, dependencies, attribute and motifs; as options.py, quick to
import."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, get_args

from megadna.downstream.options import (
    BatchOptions,
    InputOptions,
    ModelOptions,
    Options,
    OutputOptions,
    RunOptions,
    SequenceOptions,
    check_model,
    refuse_outputs,
    require_library,
)
from megadna.errors import UserError, require, require_share
from megadna.ownership import check_folder, resolved

Score = Literal["llr", "pll", "influence", "distance"]
DEFAULT_WINDOW = 511
"""Bases at most, where --window does not say."""
MAX_CLUSTERS = 100
METHODS = ("attention", "gradient", "mutagenesis")
MAX_LOGO_BASES = 2000
HYPOTHETICAL = tuple(f"hypothetical_{base}" for base in "ACGT")
"""Columns of what the importance would be with another base."""


@dataclass(frozen=True, kw_only=True)
class VariantOptions(RunOptions, BatchOptions, OutputOptions):
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

    ENDINGS = (".vcf.gz", ".tsv", ".parquet")
    POSITIVE = ("neutral_sites",)
    NOT_NEGATIVE = ("window",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for score in self.scores:
            known = get_args(Score)
            require(score in known, f"--scores {score}: must be one of {', '.join(known)}")
        require(len(set(self.scores)) == len(self.scores), f"--scores {' '.join(self.scores)}: name each score once")
        odd = self.window % 2 == 1 or self.window == 0
        require(odd, f"--window {self.window}: must be odd, so that the variant is in its middle on both strands")
        calibrates = self.neutral is None or "llr" in self.chosen
        require(calibrates, "--neutral calibrates llr; add it to --scores")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The scores, in the order of their columns."""
        return tuple(score for score in get_args(Score) if score in (self.scores or ["llr"]))

    def files(self) -> list[Path]:
        """The output, and the index of a VCF."""
        assert self.output is not None
        index = [self.output.with_name(f"{self.output.name}.{kind}") for kind in ("tbi", "csi")]
        return [self.output, *index] if self.ending == ".vcf.gz" else [self.output]

    def check_files(self) -> None:
        """As all verbs; BCF is read, and .vcf.gz written, by pysam."""
        from megadna.genome.vcf import is_bcf  # which imports numpy and pyarrow

        super().check_files()
        require_library("pysam" if is_bcf(self.vcf) else None)


@dataclass(frozen=True, kw_only=True)
class GenomeWindowOptions(RunOptions, BatchOptions, OutputOptions):
    """Which windows of which genome, and where to write."""

    genome: Path
    """FASTA of the genome (also gz, 2bit)."""
    step: int = 0
    """Bases from one window to the next (default: annotate: --window, search: a quarter of it)."""
    layer: int = -1
    """Hidden state to take: 0 is the embedding, -1 the last layer."""
    circular: list[str] = field(default_factory=list)
    """Circular contigs, in addition to those whose header says circular=true: windows wrap around their ends."""

    NOT_NEGATIVE = ("step",)

    pooling: ClassVar[Literal["mean"]] = "mean"  # how the windows are embedded
    strand: ClassVar[Literal["both"]] = "both"

    @property
    def layers(self) -> list[int]:
        """As EmbedOptions."""
        return [self.layer]


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
    POSITIVE = ("window",)

    def __post_init__(self) -> None:
        super().__post_init__()
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
        super().check_files()
        self.check_libraries()

    def check_libraries(self) -> None:
        """ModuleNotFoundError if what draws the picture is missing."""
        require_library("umap" if self.projection == "umap" else None, "umap-learn")


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
    POSITIVE = ("top",)
    NOT_NEGATIVE = ("window",)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = not self.window or self.step <= self.window
        require(fits, f"--step {self.step} is longer than --window {self.window}")


@dataclass(frozen=True, kw_only=True)
class RegionOptions(ModelOptions, BatchOptions, SequenceOptions):
    """What is read and written, the same for mutate and dependencies."""

    output: list[Path] = field(default_factory=list)
    """Files to write, all in one folder; the extension of each sets its format. Positions count from 0."""

    ENDINGS: ClassVar[tuple[str, ...]] = ()
    """Allowed for --output."""
    circular = ()  # not annotated: no field. Regions and records do not wrap around the ends of contigs

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "output", [Path(path) for path in self.output])
        once = "--input - can be read only once, and the input is read several times; give a file"
        require(str(self.input) != "-", once)

    def written(self, *endings: str) -> Path | None:
        """The first output with one of these endings."""
        return next((path for path in self.output if path.suffix in endings), None)

    def check_files(self) -> None:
        """UserError where a file or folder is missing or an output cannot be written, ModuleNotFoundError for a missing
        library; before anything slow begins."""
        check_model(self.model)
        self.must_exist()
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
        require_library("pyBigWig" if self.written(".bw") else None)


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
    POSITIVE = ("min_distance",)
    NOT_NEGATIVE = ("flank", "shuffles")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.epsilon < 0.01, f"--epsilon must lie in (0, 0.01), got {self.epsilon}")
        summary = self.shuffles or self.written(".tsv") is None
        require(bool(summary), "--output .tsv is the summary, which needs --shuffles above 0")


@dataclass(frozen=True, kw_only=True)
class AttributeOptions(InputOptions):
    """`megadna attribute`."""

    methods: list[str] = field(default_factory=list)
    """attention, gradient (integrated gradients) and mutagenesis (the default, and the reference)."""
    label: str = ""
    """Class or number of a fine-tuned model to explain; needed if it has several."""
    target: list[int] = field(default_factory=list)
    """Bases of each sequence (0 is its first as it is read) whose prediction to explain, for masked language models,
    which see [MASK] there, and for models of nucleotides; default: all bases, shown."""
    steps: int = 50
    """Points of the integral of the gradients."""
    hypothetical: bool = False
    """Also what A, C, G and T would have by mutagenesis if they stood there, as TF-MoDISco takes it: four columns."""
    logo: bool = False
    """Also draw the sequences, letters as high as their importance: OUTPUT.png."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model; bf16 makes the gradients coarse."""

    ENDINGS = (".parquet", ".bw")
    POSITIVE = ("steps",)
    strand = "forward"  # not annotated: no field. A region is read on its own strand

    def __post_init__(self) -> None:
        super().__post_init__()
        require(str(self.input) != "-", "--input -: is read more than once; give a file")
        if not self.methods:
            object.__setattr__(self, "methods", ["mutagenesis"])
        for name in self.methods:
            require(name in METHODS, f"--methods: one or several of {', '.join(METHODS)}, got {name!r}")
        require(len(set(self.methods)) == len(self.methods), f"--methods {self.methods}: name each once")
        substitutes = "mutagenesis" in self.methods
        require(substitutes or not self.hypothetical, "--hypothetical comes of mutagenesis; add it to --methods")
        distinct = len(set(self.target)) == len(self.target) and min(self.target, default=0) >= 0
        require(distinct, f"--target {self.target}: numbers of bases from 0 on, each once")
        explains = set(self.methods) != {"attention"}
        require(explains or not self.target, "--target: attention does not depend on it; leave it out")
        require(explains or not self.label, "--label: attention does not depend on it; leave it out")

    @property
    def columns(self) -> list[str]:
        """Columns of importance: `importance`, or one named after each of several methods."""
        return ["importance"] if len(self.methods) == 1 else [f"importance_{name}" for name in self.methods]

    def files(self) -> list[Path]:
        """All that may be written."""
        from megadna.downstream.inputs import bigwig_files  # which imports numpy

        assert self.output is not None
        is_bigwig = self.output.suffix == ".bw"
        main = list(bigwig_files(self.methods, self.output).values()) if is_bigwig else [self.output]
        return [*main, *map(self.output.with_suffix, [".sequences.tsv", *([".png"] if self.logo else [])])]

    def check_files(self) -> None:
        """As the other verbs; captum is needed for gradients, scipy for several methods."""
        super().check_files()
        require_library("captum" if "gradient" in self.methods else None)
        require_library("scipy" if len(self.methods) > 1 else None)


@dataclass(frozen=True, kw_only=True)
class MotifOptions(Options):
    """`megadna motifs`."""

    input: Path
    """Parquet file of `megadna attribute` over the positive sequences."""
    negatives: Path
    """Negative sequences: FASTA (also gz), or CSV, TSV or Parquet."""
    output: Path | None = None
    """Folder to write; must not contain anything yet."""
    importance: str = "importance"
    """Column of --input, where several methods were asked for."""
    column: str = ""
    """Column of a table of --negatives that has the sequences (default: sequence)."""
    min_length: int = 5
    """Bases that a run of high importance has at least."""
    window: int = 24
    """Bases of a motif's logo, centred on the run."""
    cutoff: float = 0.005
    """Adjusted p of the enrichment in the positives, at most."""
    min_instances: int = 3
    """Instances that a motif has at least."""
    known: Path | None = None
    """MEME file of known motifs to compare with, such as JASPAR."""
    modisco: bool = False
    """Also write the arrays that TF-MoDISco reads (better with --hypothetical in `megadna attribute`)."""

    POSITIVE = ("min_length", "min_instances")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("--cutoff", self.cutoff)
        require(self.window >= self.min_length, f"--window {self.window} is shorter than --min_length")
        if self.output is not None:
            check_folder(self.output, None)

    def check_files(self) -> None:
        """UserError where a file is missing, ModuleNotFoundError for a missing library."""
        self.must_exist()
        if self.output is None:
            raise UserError("--output is missing: the folder to write")
        require_library("scipy")
        require_library(None if self.known is None else "memelite")
