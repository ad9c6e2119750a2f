"""The options of `megadna generate`, whose field docstrings are its --help.

Nothing here is slow to import: `--help` and a mistaken option need neither torch nor pandas.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megadna.downstream.options import BatchOptions, ModelOptions, check_model, require_library
from megadna.errors import UserError, require
from megadna.ownership import check_folder

ENZYMES = {
    "AscI": "GGCGCGCC", "BamHI": "GGATCC", "BbsI": "GAAGAC", "BglII": "AGATCT", "BsaI": "GGTCTC", "BsmBI": "CGTCTC",
    "ClaI": "ATCGAT", "EcoRI": "GAATTC", "EcoRV": "GATATC", "HindIII": "AAGCTT", "KpnI": "GGTACC", "NcoI": "CCATGG",
    "NdeI": "CATATG", "NheI": "GCTAGC", "NotI": "GCGGCCGC", "PacI": "TTAATTAA", "PstI": "CTGCAG", "SacI": "GAGCTC",
    "SalI": "GTCGAC", "SapI": "GCTCTTC", "SmaI": "CCCGGG", "SpeI": "ACTAGT", "XbaI": "TCTAGA", "XhoI": "CTCGAG",
}  # fmt: skip
"""What the enzyme recognises, 5' to 3'."""
IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""The bases that each code stands for."""
GENETIC_CODES = (1, 4, 11)
_DEFAULT_STEPS = {"unmask": 32, "gibbs": 5, "metropolis": 300}


class OutputOf(NamedTuple):
    """One output of a fine-tuned model."""

    folder: str
    name: str
    """Of the class or number."""
    weight: float
    number: int
    """Column of the output."""
    is_regression: bool


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(ModelOptions, BatchOptions):
    """`megadna generate`: what to write, how, towards what, and what to compare it with."""

    output: Path | None = None
    """Folder to write: sequences.fa, generation.json, scores.tsv and, with --real, report.html."""
    length: int = 0
    """Bases of each sequence, all written by the model."""
    template: Path | None = None
    """FASTA to complete: N is written, another IUPAC code is written as one of its bases, A, C, G and T stay."""
    start: Path | None = None
    """FASTA to change: all of its bases, or those in --bed."""
    bed: Path | None = None
    """Regions of --start whose bases are written anew; all others stay."""
    label: str = ""
    """Class for which to write, by a model of finetune --task generation; without it such a model writes for none."""
    value: float | None = None
    """Number for which to write, if the model learnt numbers."""
    number: int = 1
    """Sequences to write; of a FASTA: for each record."""
    seed: int = 1234
    """Sequence i of a record is a function of the seed, the record's number and i, whatever the batch."""
    method: Literal["unmask", "gibbs", "metropolis"] = "unmask"
    """unmask: all hidden, shown in --steps rounds; gibbs: each base drawn anew given the others, in --steps sweeps;
    metropolis: --steps changes proposed by the model, kept or not by their score."""
    steps: int = 0
    """0: 32 rounds, 5 sweeps, or 300 changes proposed for each sequence."""
    order: Literal["spread", "confidence"] = "spread"
    """unmask: which bases a round shows: bases far from each other, or those whose drawn base has the highest p."""
    block: int = 1
    """gibbs: neighbouring bases (codons with --protein) that are hidden and drawn together."""
    temperature: float = 1.0
    """Divides ln p before a base is drawn; below 1: more often the likeliest."""
    top_p: float = 1.0
    """Draw from the likeliest bases that together have this probability."""
    oracle: list[str] = field(default_factory=list)
    """Fine-tuned models whose outputs are to rise: FOLDER, FOLDER,OUTPUT or FOLDER,OUTPUT,WEIGHT (a negative weight: to
    fall). Numbers count as they are, classes as ln p/(1 - p)."""
    judge: list[str] = field(default_factory=list)
    """Fine-tuned models that score the result and take no part in the search: FOLDER or FOLDER,OUTPUT."""
    candidates: int = 8
    """unmask with --oracle: completions of a sequence among which the oracles choose in each round."""
    max_edits: int = 0
    """metropolis: bases that may differ from the sequence it began with; 0: any number."""
    motif: list[str] = field(default_factory=list)
    """Motifs (IUPAC codes) that must be there, on either strand."""
    avoid: list[str] = field(default_factory=list)
    """Motifs (IUPAC codes) or enzymes (EcoRI, BsaI ...) whose sites must not be there, on either strand."""
    gc: list[float] = field(default_factory=list)
    """Lowest and highest share of G and C, as 0.4 0.6."""
    protein: int = 0
    """Read each record of --start as a coding sequence by this genetic code (NCBI's number: 1, 4 or 11) and keep its
    protein: codons are replaced by synonymous ones. 0: not coding."""
    min_distance: int = 0
    """Bases in which any two sequences of a record must differ."""
    real: Path | None = None
    """Held-out real sequences (FASTA) with which the report compares what was written."""
    training: Path | None = None
    """What the model was trained on (FASTA): the report looks for copies of it on both strands."""

    POSITIVE = ("number", "candidates", "block", "temperature")
    NOT_NEGATIVE = ("length", "steps", "max_edits", "min_distance", "seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = [f"--{key}" for key in ("length", "template", "start") if getattr(self, key)]
        require(len(sources) == 1, f"give one of --length, --template and --start; got {', '.join(sources) or 'none'}")
        require(not self.label or self.value is None, "--label and --value exclude each other; a model takes one")
        require(0 < self.top_p <= 1, f"--top_p must lie in (0, 1], got {self.top_p}")
        ranged = not self.gc or (len(self.gc) == 2 and 0 <= self.gc[0] <= self.gc[1] <= 1)
        require(ranged, f"--gc needs two shares, the lower first, as 0.4 0.6; got {' '.join(map(str, self.gc))}")
        for key in ("bed", "protein"):
            applies = not getattr(self, key) or self.start is not None
            require(applies, f"--{key} is about the bases of --start; name that file with --start")
        codes = ", ".join(map(str, GENETIC_CODES))
        require(self.protein in (0, *GENETIC_CODES), f"--protein {self.protein}: the genetic codes are {codes}")
        self._check_method()
        for text in [*self.motif, *self.avoid]:
            pattern_of(text)
        if self.output is not None:
            check_folder(self.output, None)

    def _check_method(self) -> None:
        """UserError for an option that the method does not read."""
        directed = bool(self.oracle or self.motif or self.avoid or self.gc)
        require(
            directed or self.method != "metropolis",
            "--method metropolis needs something to search for: --oracle, --motif, --avoid or --gc",
        )
        require(
            not self.oracle or self.method != "gibbs",
            "--method gibbs follows the model alone; with --oracle say --method unmask or metropolis",
        )
        only = {"order": "unmask", "block": "gibbs", "max_edits": "metropolis", "candidates": "unmask"}
        for key, method in only.items():
            is_default = getattr(self, key) == type(self).__dataclass_fields__[key].default
            require(is_default or self.method == method, f"--{key} is for --method {method}, not {self.method}")
        guided = self.oracle or self.candidates == type(self).__dataclass_fields__["candidates"].default
        require(bool(guided), "--candidates are chosen from by an --oracle; name one")
        require(self.training is None or self.real is not None, "--training is for the report, which needs --real")

    @property
    def num_steps(self) -> int:
        """Rounds, sweeps or proposals."""
        return self.steps or _DEFAULT_STEPS[self.method]

    def outputs(self, key: Literal["oracle", "judge"]) -> list[OutputOf]:
        """The outputs that --oracle or --judge names; UserError where a folder has no such output."""
        found = [output_of(text, f"--{key}") for text in getattr(self, key)]
        if key == "judge":
            require(all(one.weight == 1 for one in found), "--judge takes no weight: it has no part in the search")
            used = {Path(one.folder).resolve() for one in self.outputs("oracle")}
            same = [one.folder for one in found if Path(one.folder).resolve() in used]
            require(
                not same, f"--judge {''.join(same[:1])} is an --oracle too; a judge must not take part in the search"
            )
        return found

    def check_files(self) -> None:
        """UserError where a file or folder is missing, or an oracle has no such output."""
        check_model(self.model)
        require(self.output is not None, "--output is missing: the folder to write")
        self.must_exist()
        require_library(None if self.real is None else "scipy")
        self.condition()
        self.outputs("oracle")
        self.outputs("judge")

    def condition(self) -> tuple[Any, str]:
        """([number of the class of --label], [[--value]] or None; a remark on a value that no training row was near);
        UserError if the model, by its config.json, does not take it."""
        if not self.label and self.value is None:
            return None, ""
        from megadna.downstream.stated import read_config  # which imports numpy

        config = read_config(self.model)
        learnt = "DnaForGenerationTask" in str(config.get("architectures"))
        require(learnt, f"{self.model}: learnt no --label or --value; finetune --task generation teaches them")
        classes, numbers = config.get("label2id") or {}, config.get("label_range")
        if not numbers:
            given = f"--label {self.label}" if self.label else f"--value {self.value:g}"
            known = self.label in classes
            require(known, f"{self.model}: does not take {given}; it learnt --label: {', '.join(classes)}")
            return [int(classes[self.label])], ""
        span = f"{numbers[0]:g} to {numbers[1]:g}"
        require(not self.label, f"{self.model}: does not take --label {self.label}; it learnt --value, from {span}")
        value = float(str(self.value))
        require(math.isfinite(value), f"--value must be a number, got {value}")
        far = not numbers[0] <= value <= numbers[1]
        return [[value]], f"--value {value:g}: the sequences it learnt from have {span}" if far else ""


def pattern_of(text: str) -> str:
    """The IUPAC codes of a motif or of an enzyme's site; UserError for anything else."""
    if text in ENZYMES:
        return ENZYMES[text]
    found = text.upper()
    if not found or not set(found) <= set(IUPAC):
        raise UserError(f"{text}: neither IUPAC codes of bases nor one of the enzymes {', '.join(ENZYMES)}")
    require(bool(found.strip("N")), f"{text}: every sequence has this motif; give one with other codes than N")
    return found


def output_of(text: str, option: str) -> OutputOf:
    """From FOLDER, FOLDER,OUTPUT or FOLDER,OUTPUT,WEIGHT and the folder's config.json; UserError if it is no fine-tuned
    model of sequences or has no such output."""
    from megadna.downstream.stated import head_of, read_config  # which import numpy

    folder, _, rest = text.partition(",")
    name, _, weight_text = rest.rpartition(",") if "," in rest else (rest, "", "")
    require(Path(folder).is_dir(), f"{folder}: no such folder ({option}); give a folder that megadna finetune wrote")
    check_model(folder)
    head = head_of(read_config(folder), folder)
    require(not head.per_base, f"{folder}: not a fine-tuned model of sequences but of nucleotides ({option})")
    names = head.names
    listed = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    require(bool(name) or len(names) == 1, f"{folder}: say which of its outputs: {option} {folder},NAME ({listed})")
    name = name or names[0]
    require(name in names, f"{folder}: no output {name!r} ({option}); it has {listed}")
    try:
        weight = float(weight_text or 1)
    except ValueError as error:
        raise UserError(f"{text}: {weight_text!r} is no weight ({option}); give FOLDER,OUTPUT,WEIGHT") from error
    require(0 < abs(weight) < float("inf"), f"{text}: the weight must be a number other than 0 ({option})")
    return OutputOf(folder, name, weight, names.index(name), head.problem == "regression")
