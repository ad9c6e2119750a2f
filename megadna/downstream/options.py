"""The options of the verbs that take a finished model: embed, predict, finetune, benchmark.

Nothing here is slow to import, so that `--help` and a mistaken option need neither torch nor pandas.
"""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin

from megadna.errors import UserError, require, require_share
from megadna.ownership import refuse_occupied

Task = Literal["classification", "multilabel", "regression", "base_classification", "base_regression", "contact"]

_LIBRARIES = {".h5": "h5py", ".h5ad": "anndata", ".bw": "pyBigWig"}


def check_model(folder: str) -> None:
    """UserError where this is neither a Hugging Face folder nor a name on the hub."""
    path = Path(folder)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{folder}: no config.json in it; give a Hugging Face folder (megadna export writes one)")
    if not path.is_dir() and (path.is_absolute() or folder.startswith(".") or folder.count("/") != 1):
        raise UserError(f"{folder}: no such folder; give a Hugging Face folder")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A caller from Python may give paths as text; a value that is none of the choices is an error there too."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if "Path" in str(entry.type) and isinstance(value, str):
                object.__setattr__(self, entry.name, Path(value))
            if get_origin(entry.type) is Literal:
                choices = get_args(entry.type)
                require(value in choices, f"--{entry.name} must be one of {', '.join(choices)}, got {value!r}")

    def must_exist(self, *names: str) -> None:
        """UserError for the first of these options that names a file or folder which is not there; before long work."""
        for name in names:
            path = getattr(self, name)
            require(path is None or str(path) == "-" or path.exists(), f"{path}: no such file or folder (--{name})")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """How a Hugging Face folder is loaded and run."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on a CPU."""
    max_tokens: int = 0
    """Context in tokens, special tokens included; 0: what the model states."""
    trust_remote_code: bool = False
    """Run Python files of the model's folder that megadna did not write."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_tokens >= 0, f"--max_tokens must not be negative, got {self.max_tokens}")


@dataclass(frozen=True, kw_only=True)
class InputOptions(ModelOptions):
    """What to read and how to run, the same for embeddings and predictions."""

    model: str
    """Hugging Face folder (or hub name)."""
    input: Path
    """FASTA (also gz), or CSV, TSV, Parquet with a sequence column."""
    output: Path | None = None
    """File to write; its ending says the format."""
    bed: Path | None = None
    """BED file of regions of --input; minus-strand regions are read reverse-complemented."""
    column: str = ""
    """Column of a table that holds the sequences (default: sequence)."""
    circular: list[str] = field(default_factory=list)
    """Records that are circular, beside those whose header says circular=true: windows then run across the ends."""
    batch_tokens: int = 16384
    """Tokens that run at once, padding included."""

    ENDINGS = tuple[str, ...]()  # not annotated: no field
    """Of --output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_tokens > 0, f"--batch_tokens must be positive, got {self.batch_tokens}")
        whole = self.bed is None or not self.circular
        require(whole, "--bed names regions, which end with their contig; leave out --circular")

    def check_files(self) -> None:
        """UserError where a file or folder is missing, or --output cannot be written; ModuleNotFoundError for a missing
        library: before anything slow begins."""
        check_model(self.model)
        self.must_exist("input", "bed")
        if self.output is None:
            raise UserError(f"say where to write with --output ({', '.join(self.ENDINGS)})")
        ending = self.output.suffix
        require(ending in self.ENDINGS, f"{self.output}: its ending must be one of {', '.join(self.ENDINGS)}")
        if not self.output.with_name(f"{self.output.name}.parts").exists():  # else a stopped command goes on
            refuse_occupied(self.output, " or remove it", is_file=True)
        if ending in _LIBRARIES and find_spec(_LIBRARIES[ending]) is None:
            raise ModuleNotFoundError(name=_LIBRARIES[ending])


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(InputOptions):
    """`megadna embed`."""

    pooling: Literal["mean", "cls", "max", "nucleotide"] = "mean"
    """One vector a sequence (mean or max over the tokens of its bases, or the first token), or one a nucleotide."""
    layers: list[int] = field(default_factory=list)
    """Hidden states to take: 0 is the embedding, -1 (default) the last layer; several give a column each."""
    strand: Literal["forward", "reverse", "both"] = "forward"
    """both: mean of the two strands; outputs per nucleotide of the reverse strand are turned round first."""

    ENDINGS = (".parquet", ".npy", ".h5", ".h5ad")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(set(self.layers)) == len(self.layers), f"--layers {self.layers}: each of them once")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(InputOptions):
    """`megadna predict`."""

    strand: Literal["forward", "reverse", "apart", "both"] = "forward"
    """apart: each strand by itself; both: the mean of their logits."""
    window: int = 0
    """Bases of a sliding window over the genome in --input (models of sequences); 0: whole records."""
    step: int = 0
    """Bases from window to window (default: --window)."""

    ENDINGS = (".parquet", ".bed", ".bw")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.window >= 0 and self.step >= 0, "--window and --step must not be negative")
        require(self.step <= self.window, f"--step {self.step} is longer than --window {self.window}")
        require(self.bed is None or not self.window, "--window slides over a whole genome; leave out --bed")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what, and which rows to take."""

    sequence: str = ""
    labels: tuple[str, ...] = ()
    subset: str = ""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(ModelOptions):
    """A fine-tuning experiment: data, head, and how to train."""

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
    pairs of nucleotides, as 3-17 9-40."""
    sequence_column: str = ""
    """Column of the sequences (default: sequence)."""
    label_columns: list[str] = field(default_factory=list)
    """Columns of the labels (default: label)."""
    label_names: list[str] = field(default_factory=list)
    """Names of the classes: of the labels 0, 1, ... or of the labels in natural order; or the labels, in your order."""
    subset: str = ""
    """Task of a table that holds several (column task)."""
    dev_fraction: float = 0.1
    """Share of train that becomes dev, by seed, where there is no dev table."""
    folds: int = 0
    """Cross-validation: this many runs, each with another part of train as dev; 0: none."""
    seeds: list[int] = field(default_factory=list)
    """A run for each (default: 1)."""
    adapt: Literal["full", "lora", "frozen"] = "full"
    """What is trained beside the head."""
    random_weights: bool = False
    """Start from random weights instead of the model's (to see what pretraining gives)."""
    lora_rank: int = 16
    """LoRA: rank."""
    lora_alpha: int = 32
    """LoRA: scale."""
    lora_targets: list[str] = field(default_factory=list)
    """LoRA: names of the linear layers (default: query and value projections)."""
    pooling: Literal["mean", "cls", "max", "centre"] = "mean"
    """What a sequence head reads: mean or max over the tokens of bases, the first token, or (centre) the middle one."""
    head_sizes: list[int] = field(default_factory=list)
    """Hidden layers of the head."""
    head_activation: Literal["tanh", "relu"] = "tanh"
    """Between layers of the head."""
    dropout: float = 0.1
    """Of the head and of LoRA."""
    epochs: int = 5
    """Passes over train."""
    max_steps: int = 0
    """Steps, instead of epochs."""
    batch_size: int = 32
    """Sequences a step and rank."""
    learning_rate: float = 3e-5
    """Peak."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After the warm-up."""
    warmup_fraction: float = 0.1
    """Share of the steps."""
    weight_decay: float = 0.01
    """AdamW's."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency."""
    patience: int = 0
    """Evaluations on dev without a better score before training stops; 0: no early stopping."""
    eval_steps: int = 0
    """Steps from evaluation to evaluation; 0: once an epoch."""
    best: str = ""
    """Score of dev by which the model is kept (default: mcc; pearson for numbers, auprc for contacts)."""
    stranded: bool = False
    """The label depends on the strand (also known from a column strand)."""
    augment: bool = False
    """Add the reverse complement of every train sequence; labels of nucleotides are reversed along."""
    force_augment: bool = False
    """--augment even where the task is stranded."""
    crop: bool = False
    """Cut sequences that are longer than the context to their middle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("dev_fraction", "warmup_fraction", "dropout"):
            require_share(f"--{key}", getattr(self, key))
        for key in ("epochs", "batch_size", "learning_rate", "lora_rank"):
            require(getattr(self, key) > 0, f"--{key} must be positive, got {getattr(self, key)}")
        require(self.folds == 0 or self.folds > 1, f"--folds must be 0 or at least 2, got {self.folds}")

    def check_files(self) -> None:
        """UserError where something is not named, or a file or folder is missing."""
        for key in ("model", "data", "output"):
            require(bool(getattr(self, key)) and getattr(self, key) != Path(), f"say --{key}")
        check_model(self.model)
        self.must_exist("data")
        for entry in self.test:
            name, _, path = entry.partition("=")
            require(bool(path), f"--test {entry}: must be name=path, each name once")
            require(Path(path).exists(), f"{path}: no such file or folder (--test {name})")

    @property
    def columns(self) -> Columns:
        """Of the tables."""
        return Columns(self.sequence_column, tuple(self.label_columns), self.subset)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(Options):
    """`megadna benchmark`."""

    suite: Literal["gue", "nt", "splice"]
    """Which recipe, scores and published figures."""
    model: str
    """Hugging Face folder of the encoder."""
    data: Path
    """Folder of the tasks' folders, or of one task."""
    output: Path
    """Folder to write; a stopped benchmark goes on in it."""
    recipe: Path | None = None
    """YAML of fine-tuning options (default: configs/finetune/ of the suite)."""
    tasks: list[str] = field(default_factory=list)
    """Patterns of the tasks to run (default: all)."""
    seeds: list[int] = field(default_factory=list)
    """Seeds (default: 1 2 3)."""
    baseline: list[str] = field(default_factory=list)
    """Words in the names of the baselines to run (default: all): two-letter, weight, logistic, CNN, random; or none."""
    max_steps: int = 0
    """Fine-tuning steps, instead of the recipe's epochs."""
    pretraining_data: Path | None = None
    """Dataset that the model was pretrained on: the share of test sequences in it is a column of the table."""
    trust_remote_code: bool = False
    """Run Python files of the model's folder that megadna did not write."""

    def check_files(self) -> None:
        """UserError where a file or folder is missing."""
        require(self.data.is_dir(), f"{self.data}: no such folder of tasks")
        require(self.recipe is None or self.recipe.is_file(), f"{self.recipe}: no such recipe; give one with --recipe")
        check_model(self.model)
        self.must_exist("pretraining_data")
