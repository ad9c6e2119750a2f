"""What the options of verbs have in common, and those of embed, predict, finetune and benchmark: one dataclass per
verb, whose field docstrings are its --help.

Nothing here is slow to import: `--help` and a mistaken option need neither torch nor pandas.
"""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, get_args, get_origin

from megadna.errors import UserError, require, require_share
from megadna.ownership import refuse_occupied

Labels = Literal["classification", "multilabel", "regression", "base_classification", "base_regression", "contact"]
Task = Literal[Labels, "generation"]
_LIBRARIES = {".h5ad": "anndata", ".bw": "pyBigWig", ".vcf.gz": "pysam"}


def require_library(module: str | None, name: str = "") -> None:
    """ModuleNotFoundError for a library that is not installed, before anything slow begins; name: pip's, if another."""
    if module is not None and find_spec(module) is None:
        raise ModuleNotFoundError(name=name or module)


def check_model(folder: str) -> None:
    """UserError unless this is a Hugging Face folder, or a name on the hub."""
    path = Path(folder)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in it; give a Hugging Face folder (megadna export writes one)")
    if not path.is_dir() and (path.is_absolute() or folder.startswith(".") or folder.count("/") != 1):
        raise UserError(f"{folder}: no such folder; give a Hugging Face folder")


def refuse_outputs(output: Path, files: list[Path]) -> None:
    """UserError if one of the files exists, unless OUTPUT.parts shows a stopped command, which is resumed."""
    if not output.with_name(f"{output.name}.parts").exists():
        for file in files:
            refuse_occupied(file, " or remove it", is_file=True)


def index_of(path: Path) -> Path:
    """The table that describes the rows of an array."""
    return path.with_name(path.name + ".index.tsv")


def wrote(path: Path, counted: str = "positions from 0, end not included") -> str:
    """The line that names a written file, and how the positions in a table count (those of BED and VCF are fixed)."""
    return f"wrote {path}{f' ({counted})' * (path.suffix in ('.parquet', '.tsv', '.csv', '.h5ad'))}\n"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Callers from Python may give paths as text; a value that is not one of the choices is an error there too."""

    POSITIVE: ClassVar[tuple[str, ...]] = ()
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ()
    """Numbers among a class's own fields that are checked."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if "Path" in str(entry.type) and isinstance(value, str):
                object.__setattr__(self, entry.name, Path(value))
            if get_origin(entry.type) is Literal:
                choices = get_args(entry.type)
                require(value in choices, f"--{entry.name} must be one of {', '.join(choices)}, got {value!r}")
        for kind in type(self).__mro__:
            for key in kind.__dict__.get("POSITIVE", ()):
                require(getattr(self, key) > 0, f"--{key} must be positive, got {getattr(self, key)}")
            for key in kind.__dict__.get("NOT_NEGATIVE", ()):
                require(getattr(self, key) >= 0, f"--{key} must not be negative, got {getattr(self, key)}")

    def must_exist(self) -> None:
        """UserError for the first option of a path to read whose file or folder is missing; before any long work."""
        for entry in fields(self):
            path = getattr(self, entry.name)
            if "Path" in str(entry.type) and entry.name not in ("output", "plot") and path is not None:
                exists = str(path) == "-" or path.exists()
                require(exists, f"{path}: no such file or folder (--{entry.name})")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model, and whether its own code may run."""

    model: str
    """Hugging Face folder (or hub name)."""
    trust_remote_code: bool = False
    """Run Python files in the model's folder that megadna did not write."""


@dataclass(frozen=True, kw_only=True)
class RunOptions(ModelOptions):
    """How the model runs."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """How much is computed at once."""

    batch_tokens: int = 16384
    """Tokens per batch at most, padding included; a CPU takes no more than 2,048, which fit its caches."""

    POSITIVE: ClassVar[tuple[str, ...]] = ("batch_tokens",)


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(Options):
    """Records of a file, or regions of them."""

    input: Path
    """FASTA (also gz), or CSV, TSV or Parquet with a column of sequences."""
    bed: Path | None = None
    """BED file of regions of --input; minus-strand regions are reverse-complemented."""
    column: str = ""
    """Column of a table that has the sequences (default: sequence)."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions(ModelOptions):
    """A file to write, perhaps with others beside it."""

    output: Path | None = None
    """File to write; its extension sets the format. Positions count from 0, end not included."""

    ENDINGS: ClassVar[tuple[str, ...]] = ()
    """Allowed for --output."""

    @property
    def ending(self) -> str:
        """Which of ENDINGS --output has; "" without one."""
        name = "" if self.output is None else self.output.name
        return next((ending for ending in self.ENDINGS if name.endswith(ending) and name != ending), "")

    def written(self, *endings: str) -> Path | None:
        """The output, if it has one of these endings."""
        return self.output if self.output is not None and self.output.suffix in endings else None

    def files(self) -> list[Path]:
        """All files that may be written."""
        assert self.output is not None
        return [self.output]

    def check_files(self) -> None:
        """UserError where a file or folder is missing or --output cannot be written, ModuleNotFoundError for a missing
        library; before anything slow begins."""
        check_model(self.model)
        self.must_exist()
        endings = ", ".join(self.ENDINGS)
        if self.output is None:
            raise UserError(f"say where to write with --output ({endings})")
        require(bool(self.ending), f"{self.output}: its ending must be one of {endings}")
        refuse_outputs(self.output, [self.output, *self.files()])
        require_library(_LIBRARIES.get(self.ending))


@dataclass(frozen=True, kw_only=True)
class InputOptions(RunOptions, BatchOptions, SequenceOptions, OutputOptions):
    """What to read and write, the same for embeddings and predictions."""

    circular: list[str] = field(default_factory=list)
    """Circular records, in addition to those whose header says circular=true: windows wrap around their ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.bed is None or not self.circular
        require(whole, "--bed names regions, which do not wrap around their contig's end; leave out --circular")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(InputOptions):
    """`megadna embed`."""

    pooling: Literal["mean", "cls", "max", "nucleotide"] = "mean"
    """One vector per sequence (mean or max over the tokens of its bases, or the first token), or per nucleotide."""
    layers: list[int] = field(default_factory=list)
    """Hidden states to take: 0 is the embedding, -1 (default) the last layer; several give one column each."""
    strand: Literal["forward", "reverse", "both"] = "forward"
    """both: mean of the two strands; per nucleotide, the reverse strand's outputs are reversed first."""
    plot: Path | None = None
    """Picture of the embeddings to write as well (.png, .svg), in the folder of --output."""
    projection: Literal["pca", "umap", "both"] = "pca"
    """What --plot shows: the first two principal components, UMAP, or both side by side."""
    colour: str = ""
    """What colours the points of --plot: a column of the table in --input, of classes or of numbers; or contig, name or
    strand of the output (default: with --bed, name)."""

    ENDINGS = (".parquet", ".npy", ".h5ad")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.layers)) == len(self.layers), f"--layers {self.layers}: name each layer once")
        of_plot = self.plot is not None or (self.projection, self.colour) == ("pca", "")
        require(of_plot, "--projection and --colour are for a picture; say where to write it with --plot")
        is_picture = self.plot is None or self.plot.suffix in (".png", ".svg")
        require(is_picture, f"{self.plot}: the ending of --plot must be .png or .svg")

    @property
    def reads_table(self) -> bool:
        """Whether --input is a table by its name."""
        return self.input.name.removesuffix(".gz").endswith((".csv", ".tsv", ".txt", ".parquet"))

    def files(self) -> list[Path]:
        """The output, the table that describes the rows of an array, the picture."""
        assert self.output is not None
        index = [index_of(self.output)] if self.output.suffix == ".npy" else []
        return [self.output, *index, *([self.plot] if self.plot is not None else [])]

    def check_files(self) -> None:
        """As for other verbs, and for --plot."""
        super().check_files()
        if self.plot is None or self.output is None:
            return
        beside = self.plot.parent.resolve() == self.output.parent.resolve()
        require(beside, f"--plot {self.plot}: must be in the folder of --output ({self.output.parent})")
        require_library("sklearn")
        require_library("umap" if self.projection != "pca" else None)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InputOptions):
    """`megadna predict`."""

    strand: Literal["forward", "reverse", "apart", "both"] = "forward"
    """apart: each strand separately; both: the mean of their logits."""
    window: int = 0
    """Bases of a window that slides over the genome in --input (models of sequences); 0: whole records."""
    step: int = 0
    """Bases from one window to the next (default: --window)."""

    ENDINGS = (".parquet", ".bed", ".bw")
    NOT_NEGATIVE = ("window", "step")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step <= self.window, f"--step {self.step} is longer than --window {self.window}")
        require(self.bed is None or not self.window, "--window slides over a whole genome; leave out --bed")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(RunOptions):
    """`megadna finetune`: data, head, and how to train."""

    model: str = ""
    """Hugging Face folder of the encoder."""
    data: Path = Path()
    """Folder of train, dev and test tables, or one table."""
    output: Path | None = None
    """Folder to write."""
    test: list[str] = field(default_factory=list)
    """Further test sets, as name=path."""
    task: Task = "classification"
    """What a label is: a class, 0/1 in several columns, a number, (base_...) one for every nucleotide, or (contact)
    pairs of nucleotides, counted from 0, as 3-17 9-40. generation: a masked language model learns to write
    sequences for it."""
    condition: Literal["label", "number"] = "label"
    """Generation (to which what is said of regression applies too): what a label is."""
    label_columns: list[str] = field(default_factory=list)
    """Columns of the labels (default: label)."""
    label_names: list[str] = field(default_factory=list)
    """Names of the classes: of the labels 0, 1, ... or of the labels in natural order; or the labels in your order."""
    subset: str = ""
    """Which task of a table with several (column task)."""
    dev_fraction: float = 0.1
    """Share of train to use as dev, drawn by the seed, if there is no dev table."""
    test_fraction: float = 0.0
    """Regression: share of train to use as test, the same for every seed, if there is no test table."""
    folds: int = 0
    """Cross-validation: this many runs, each with another part of train as dev; 0: none."""
    groups: str = ""
    """Regression: column of names (a locus, a family) whose rows stay together, as rows that share 31 bases do."""
    leakage: Literal["refuse", "drop_from_train", "report"] = "refuse"
    """Regression: what to do if train has rows of a group that dev or test has too."""
    seeds: list[int] = field(default_factory=list)
    """One run for each (default: 1)."""
    adapt: Literal["full", "lora", "frozen"] = "full"
    """What to train besides the head: all weights, LoRA adapters, or nothing."""
    random_weights: bool = False
    """Start from random weights instead of the model's, to measure what pretraining contributes."""
    lora_rank: int = 16
    """LoRA: rank."""
    lora_alpha: int = 32
    """LoRA: scale."""
    pooling: Literal["mean", "cls", "max", "centre"] = "mean"
    """What a sequence head reads: mean or max over the tokens of bases, the first token, or (centre) the middle one."""
    head_sizes: list[int] = field(default_factory=list)
    """Sizes of the head's hidden layers."""
    head_activation: Literal["tanh", "relu"] = "tanh"
    """Between layers of the head."""
    dropout: float = 0.1
    """Of the head and of LoRA; generation: share of the rows that are learnt without their label."""
    epochs: int = 5
    """Passes over train."""
    max_steps: int = 0
    """Steps, instead of epochs."""
    batch_size: int = 32
    """Sequences per step and rank."""
    learning_rate: float = 3e-5
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps."""
    weight_decay: float = 0.01
    """Of AdamW."""
    class_weights: bool = False
    """Weight classes by the inverse of their frequency."""
    patience: int = 0
    """Stop after this many evaluations on dev without a better score; 0: no early stopping."""
    eval_steps: int = 0
    """Steps between evaluations; 0: one per epoch."""
    stranded: bool = False
    """The label depends on the strand (also implied by a column strand)."""
    augment: bool = False
    """Add the reverse complement of every train sequence; labels of nucleotides are reversed too."""
    crop: bool = False
    """Cut sequences longer than the context to their middle."""

    POSITIVE = ("epochs", "batch_size", "learning_rate", "lora_rank", "lora_alpha")
    NOT_NEGATIVE = ("max_steps", "patience", "eval_steps", "weight_decay")

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("dev_fraction", "test_fraction", "warmup_fraction", "dropout"):
            require_share(f"--{key}", getattr(self, key))
        require(min(self.head_sizes, default=1) > 0, f"--head_sizes must be positive, got {self.head_sizes}")
        if len({seed for seed in self.seeds if 0 <= seed < 1 << 32}) < len(self.seeds):
            raise UserError(f"--seeds {self.seeds}: numbers from 0 to {(1 << 32) - 1}, each once")
        require(self.folds == 0 or self.folds > 1, f"--folds must be 0 or at least 2, got {self.folds}")
        writes, grouped = self.task == "generation", self.task in ("generation", "regression")
        applies = dict.fromkeys(("test_fraction", "groups", "leakage"), grouped) | {"condition": writes}
        applies |= dict.fromkeys(("pooling", "head_sizes", "head_activation", "class_weights"), not writes)
        for key, fits in applies.items():
            is_default = getattr(self, key) == getattr(FinetuneOptions, key, [])  # the class has no default of a list
            require(fits or is_default, f"--{key} does not apply to --task {self.task}; leave it out")

    def check_files(self) -> None:
        """UserError where an option is missing, or the file or folder it names."""
        for key in ("model", "data", "output"):
            require(bool(getattr(self, key)) and getattr(self, key) != Path(), f"--{key} is missing")
        check_model(self.model)
        self.must_exist()
        for entry in self.test:
            name, _, path = entry.partition("=")
            require(bool(path), f"--test {entry}: must be name=path, each name once")
            require(Path(path).exists(), f"{path}: no such file or folder (--test {name})")


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(ModelOptions):
    """`megadna benchmark`."""

    suite: Literal["gue", "nt", "splice", "expression"]
    """Which recipe, scores and published figures."""
    data: Path
    """Folder of the tasks' folders, or of one task."""
    output: Path
    """Folder to write; a stopped benchmark is resumed in it."""
    recipe: Path | None = None
    """YAML of fine-tuning options (default: configs/finetune/ of the suite)."""
    seeds: list[int] = field(default_factory=list)
    """Seeds (default: 1 2 3)."""
    baseline: list[str] = field(default_factory=list)
    """Words in names of baselines to run (default: all): two-letter, weight, logistic, ridge, CNN, random; or none."""
    max_steps: int = 0
    """Fine-tuning steps, instead of the recipe's epochs."""
    pretraining_data: Path | None = None
    """Dataset the model was pretrained on: the share of test sequences in it becomes a column of the table."""

    def check_files(self) -> None:
        """UserError where a file or folder is missing."""
        require(self.data.is_dir(), f"{self.data}: no such folder of tasks")
        require(self.recipe is None or self.recipe.is_file(), f"{self.recipe}: no such recipe; give one with --recipe")
        check_model(self.model)
        self.must_exist()
