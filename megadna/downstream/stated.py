"""What the JSON files of a Hugging Face folder state of a model: what it predicts, and how much it reads at once.

In:  config.json and tokenizer_config.json, read in a moment: neither torch nor transformers is imported.
Out: whether it is a masked language model, the names that a fine-tuned model predicts, bases that fit the context. So
     that a mistaken option is refused before any library or weight is loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadna.data.manifest import checksum
from megadna.downstream.inputs import check_input, count_unknown, read_input, require_names
from megadna.downstream.interpretation_options import MAX_LOGO_BASES, AttributeOptions
from megadna.downstream.options import check_model
from megadna.errors import UserError, require
from megadna.genome.records import Stretch
from megadna.reading import first_line, read_json

PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")
_FEWEST_WORDS = 4**2 + 5
"""Tokens of the smallest vocabulary of k-mers: all of two bases, and [PAD], [UNK], [CLS], [SEP], [MASK]."""


def read_config(folder: str) -> dict[str, Any]:
    """config.json; of a name on the hub it is fetched. UserError if there is none, or it is no JSON."""
    check_model(folder)
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        from huggingface_hub import hf_hub_download

        with one_line(f"{folder}: no such folder, and not available from the Hugging Face Hub"):
            path = Path(hf_hub_download(folder, "config.json"))
    return read_json(path)


def content_of(folder: str) -> str:
    """What tells a model's folder from one of other content: checksums of the files in it; "" for a name on the hub.

    Folders in it are left out: outputs that are being written may be there."""
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    return "".join(f"{path.name} {checksum(path)}\n" for path in files)


def is_language_model(config: dict[str, Any]) -> bool:
    """Whether it is a masked language model and not a fine-tuned one: by the class that saved it; if that is neither
    (or not stated), by those that its own code offers, among which a masked language model comes first."""
    for classes in (" ".join(_texts(config.get(key))) for key in ("architectures", "auto_map")):
        if "MaskedLM" in classes or "Classification" in classes:
            return "MaskedLM" in classes
    return True


def most_bases(config: dict[str, Any], folder: str) -> int | None:
    """Bases that fit the context, at most, if tokens are single bases; None where the vocabulary has room for k-mers,
    or nothing states the context: then only the tokenizer tells."""
    with one_line(f"{folder}: its config.json"):
        encoder = {**config, **(config.get("encoder") or {})}  # a fine-tuned model states its encoder's config
        note = Path(folder) / "tokenizer_config.json"
        stated = read_json(note).get("model_max_length") if note.is_file() else None
        known = [int(size) for size in (encoder.get("max_position_embeddings"), stated) if size]
        specials = 2 if is_language_model(config) else 0  # [CLS] and [SEP], which other tokenizers may lack
        if not known or not 0 < int(encoder.get("vocab_size") or 0) < _FEWEST_WORDS:
            return None
        return max(1, min(known) - specials)


def require_window(window: int, most: int | None, folder: str) -> None:
    """UserError if a window does not fit the context of `most` bases (None: not known yet)."""
    fits = most is None or window <= most
    require(fits, f"--window {window}: the context of {folder} holds {most} bases; lower it")


def require_context(where: str, size: int, most: int | None, folder: str) -> None:
    """UserError if a region of `size` bases, with what is read around it, does not fit the context of `most` bases
    (None: not known yet)."""
    if most is not None and size > most:
        raise UserError(
            f"{where}: {size:,} bases, and the context of {folder} holds {most:,}; give shorter regions with --bed"
        )


def _texts(value: Any) -> list[str]:
    """The words of a list, or the keys of an object; [] of anything else, as strangers write these files."""
    return list(map(str, value)) if isinstance(value, list | dict) else []


@dataclass(frozen=True)
class Head:
    """What a fine-tuned model predicts."""

    names: list[str]
    """Of its classes or numbers."""
    problem: str
    """One of PROBLEMS."""
    per_base: bool
    """For every nucleotide; else for a sequence."""

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads it."""
        return f"AutoModelFor{'Token' if self.per_base else 'Sequence'}Classification"


def head_of(config: dict[str, Any], folder: str) -> Head:
    """From the folder's configuration; UserError if it is no fine-tuned model of sequences or nucleotides."""
    architecture = " ".join([*_texts(config.get("architectures")), *_texts(config.get("auto_map"))])
    per_base = "TokenClassification" in architecture
    if not per_base and "SequenceClassification" not in architecture:
        raise UserError(
            f"{folder}: not a fine-tuned model of sequences or nucleotides (megadna finetune makes one), "
            f"but {architecture}"
        )
    with one_line(f"{folder}: id2label of its config.json"):
        labels = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # two, as transformers takes it
        names = [str(name) for _, name in sorted((int(number), name) for number, name in labels.items())]
    require_names(names, f"{folder}: id2label of its config.json")
    problem = config.get("problem_type") or ("regression" if len(names) == 1 else PROBLEMS[0])
    require(problem in PROBLEMS, f"{folder}: problem_type of its config.json is none of {', '.join(PROBLEMS)}")
    return Head(names, problem, per_base)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turns any error inside, with files that others wrote, into a UserError of one line that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of transformers, torch, safetensors, tokenizers, pickle, or code that was trusted
        unsafe = "trust_remote_code" in str(error)
        hint = "; read its Python files, then say --trust_remote_code" if unsafe else ""
        plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
        kind = "" if plain else f"{type(error).__name__}: "
        raise UserError(f"{what} ({kind}{first_line(error)}){hint}") from error


def check_attribution(options: AttributeOptions) -> int | None:
    """As `check_input`; UserError too unless label and target fit the model, and every sequence fits its context. The
    log counts the N, which have no importance."""
    config = read_config(options.model)
    _check_label(options, config)
    bases, total = check_input(options), 0
    most = most_bases(config, options.model)
    for stretch in read_input(options):
        size, last = stretch.end - stretch.start, max(options.target, default=0)
        total += size
        require_context(where_of(stretch), len(stretch.bases), most, options.model)
        require(last < size, f"--target {last}: {where_of(stretch)} has {size} bases")
    require(
        total <= MAX_LOGO_BASES or not options.logo,
        f"--logo draws up to {MAX_LOGO_BASES:,} bases, and these are {total:,}; choose regions with --bed, or leave "
        "out --logo",
    )
    count_unknown(((where_of(stretch), stretch.bases) for stretch in read_input(options)), "importance")
    return bases


def _check_label(options: AttributeOptions, config: dict[str, Any]) -> None:
    """UserError unless --label and --target are for a model of this kind."""
    folder, label = options.model, options.label
    if is_language_model(config):
        require(not label, f"--label: {folder} is a masked language model; leave it out")
        return
    head = head_of(config, folder)
    known = ", ".join(head.names)
    if not label and len(head.names) > 1 and options.methods != ["attention"]:  # attention is of no output
        raise UserError(f"{folder}: predicts {known}; say which to explain with --label")
    require(not label or label in head.names, f"--label {label}: {folder} predicts {known}")
    require(head.per_base or not options.target, "--target: this model predicts whole sequences; leave it out")


def where_of(stretch: Stretch) -> str:
    """Record, start and end, for messages."""
    return f"{stretch.name}:{stretch.start}-{stretch.end}"
