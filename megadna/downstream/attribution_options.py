"""The options of `attribute` and `motifs`; as options.py, quick to import."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from megadna.downstream.options import InputOptions, Options, refuse_outputs
from megadna.errors import UserError, require, require_share
from megadna.ownership import check_folder

METHODS = ("attention", "gradient", "mutagenesis")
MAX_LOGO_BASES = 2000
HYPOTHETICAL = tuple(f"hypothetical_{base}" for base in "ACGT")
"""Columns of what the importance would be with another base."""


def require_library(name: str) -> None:
    """ModuleNotFoundError for a library that is not installed, before anything slow begins."""
    if find_spec(name) is None:
        raise ModuleNotFoundError(name=name)


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
    strand = "forward"  # not annotated: no field. A region is read on its own strand

    def __post_init__(self) -> None:
        super().__post_init__()
        require(str(self.input) != "-", "--input -: is read more than once; give a file")
        if not self.methods:
            object.__setattr__(self, "methods", ["mutagenesis"])
        for name in self.methods:
            require(name in METHODS, f"--methods: one or several of {', '.join(METHODS)}, got {name!r}")
        require(len(set(self.methods)) == len(self.methods), f"--methods {self.methods}: name each once")
        require(self.steps > 0, f"--steps must be positive, got {self.steps}")
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
        return [*main, self.table, *([self.picture] if self.logo else [])]

    @property
    def table(self) -> Path:
        """The table of sequences, next to the output."""
        assert self.output is not None
        return self.output.with_name(f"{self.output.stem}.sequences.tsv")

    @property
    def picture(self) -> Path:
        """The logos, next to the output."""
        assert self.output is not None
        return self.output.with_suffix(".png")

    def check_files(self) -> None:
        """As the other verbs; captum is needed for gradients, scipy for several methods."""
        super().check_files()
        if "gradient" in self.methods:
            require_library("captum")
        if len(self.methods) > 1:
            require_library("scipy")
        assert self.output is not None
        refuse_outputs(self.output, self.files())


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

    def __post_init__(self) -> None:
        super().__post_init__()
        require_share("--cutoff", self.cutoff)
        for key in ("min_length", "min_instances"):
            require(getattr(self, key) > 0, f"--{key} must be positive, got {getattr(self, key)}")
        require(self.window >= self.min_length, f"--window {self.window} is shorter than --min_length")
        if self.output is not None:
            check_folder(self.output, None)

    def check_files(self) -> None:
        """UserError where a file is missing, ModuleNotFoundError for a missing library."""
        self.must_exist("input", "negatives", "known")
        if self.output is None:
            raise UserError("--output is missing: the folder to write")
        require_library("scipy")
        if self.known is not None:
            require_library("memelite")
