"""`megadna generate`: a masked language model writes DNA -> a folder of sequences that say how they came about.

In:  GenerateOptions.
Out: sequences.fa (every header has the hash of the model's weights, seed, index and all options that are not defaults),
     scores.tsv (a row a sequence), generation.json (all options, hashes of all models, what was refused and why), and
     with --real report.html (megadna/downstream/generate_report.py).

A sequence that breaks a rule, or is nearer to an earlier one than --min_distance, is refused and another one written,
TRIES times as often as sequences are asked for; what is missing then is said.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch

from megadna import __version__
from megadna.alphabet import code_dna
from megadna.downstream.encoder import load_tokenizer
from megadna.downstream.generate_methods import Sampler, State
from megadna.downstream.generate_options import GenerateOptions, OutputOf
from megadna.downstream.generate_rules import IS_GC, Rules, codes_of, templates
from megadna.downstream.interpretation_options import MutateOptions
from megadna.downstream.masked_bases import MaskedBases, digest_of
from megadna.downstream.mutate import HeadEffects
from megadna.downstream.outputs import grouped
from megadna.downstream.stated import read_config
from megadna.errors import UserError, require
from megadna.files import atomic_folder, write_json
from megadna.log import get_logger
from megadna.progress import Progress

log = get_logger(__name__)

TRIES = 20
BATCH_BASES = 1 << 17
"""Bases of the sequences that are written at once."""
_NOT_IN_HEADERS = {
    "model", "output", "seed", "number", "batch_tokens", "trust_remote_code", "real", "training", "judge",
}  # fmt: skip


def generate(model: Path | str, **options: Any) -> pd.DataFrame:
    """The sequences, one row each; keyword arguments are the fields of GenerateOptions. Written too, if `output` is
    given. Columns: name, sequence, template, index, gc, edits (of --start and metropolis), and a column for each oracle
    and judge."""
    chosen = GenerateOptions(model=str(model), **options)
    generation = Generation(chosen)
    table = generation.table()
    if chosen.output is not None:
        with atomic_folder(chosen.output) as folder:
            generation.write(folder, table)
    return table


class Heads:
    """Outputs of fine-tuned models that score sequences: numbers as they are, classes as ln p/(1 - p)."""

    def __init__(self, outputs: list[OutputOf], kind: str, options: GenerateOptions, longest: int) -> None:
        """UserError, before weights are loaded, if a model does not know A, C, G, T or cannot read `longest` bases."""
        self.outputs = outputs
        self.names = [f"{kind}_{Path(one.folder).name}_{one.name}" for one in outputs]
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        require(not twice, f"--{kind}: two folders are called {', '.join(twice)}; rename one")
        self._heads = []
        shared: Any = {"trust_remote_code": options.trust_remote_code, "batch_tokens": options.batch_tokens}
        for one in outputs:
            _check_tokenizer(one.folder, kind, options.trust_remote_code, longest)
            shared["scale"] = "probability" if one.is_regression else "log_odds"
            own = MutateOptions(model=one.folder, input=Path(one.folder), **shared)
            self._heads.append(HeadEffects(own, read_config(one.folder), []))

    def load(self) -> None:
        """Load the weights."""
        for head in self._heads:
            head.load()

    def __call__(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Scores [N, outputs]."""
        texts = [code_dna(codes_L).tobytes().decode() for codes_L in codes]
        columns = [h.outputs(texts)[:, one.number] for h, one in zip(self._heads, self.outputs, strict=True)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(codes), 0))

    def weighted(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """What a search raises [N]: the sum of weight times score."""
        return self(codes).astype(np.float64) @ np.array([one.weight for one in self.outputs])

    def facts(self) -> list[dict[str, Any]]:
        """For generation.json."""
        digests = [digest_of(head.predictor.model) for head in self._heads]
        return [{**one._asdict(), "weights_xxh3_128": d} for one, d in zip(self.outputs, digests, strict=True)]


def _check_tokenizer(folder: str, kind: str, trust: bool, longest: int) -> None:
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    probe = "ACGTTGCA"
    known = tokenizer.tokenizer.unk_token_id not in tokenizer([probe])[0].ids
    require(known, f"{folder}: its tokenizer does not know all of A, C, G and T (--{kind}); give a model of DNA")
    most = tokenizer.max_bases(probe)
    require(longest <= most, f"{folder}: reads at most {most} bases (--{kind}), and {longest} are to be written")


class Generation:
    """The options and everything loaded for them."""

    def __init__(self, options: GenerateOptions) -> None:
        self.options, self.templates, self.rules = options, templates(options), Rules.of(options)
        lengths = [len(template.codes_L) for template in self.templates]
        self.real = None
        if options.real is not None:
            from megadna.downstream.generate_report import real_windows

            self.real = real_windows(options.real, lengths * options.number, options.seed)
        trust: Any = {"trust_remote_code": options.trust_remote_code}
        tokenizer = load_tokenizer(options.model, **trust)
        tokenizer.require_single_bases(options.model)
        condition, self.remark = options.condition()
        if self.remark:
            log.warning("%s", self.remark)
        self.oracles = Heads(options.outputs("oracle"), "oracle", options, max(lengths))
        self.judges = Heads(options.outputs("judge"), "judge", options, max(lengths))
        for heads in (self.oracles, self.judges):
            heads.load()
        trust["condition"] = None if condition is None else torch.tensor(condition)
        self.model = MaskedBases(options.model, batch_tokens=options.batch_tokens, **trust)
        score = self.oracles.weighted if options.oracle else None
        self.sampler = Sampler(self.model, options, self.rules, score)
        self.refused: Counter[str] = Counter()

    def table(self) -> pd.DataFrame:
        """Write the sequences; see `generate`. UserError if none keeps the rules."""
        accepted: dict[int, list[State]] = {record: [] for record in range(len(self.templates))}
        tried = dict.fromkeys(accepted, 0)
        number, size = self.options.number, sum(len(template.codes_L) for template in self.templates)
        with Progress("writing", number * size, "bases") as progress:
            while True:
                jobs = []
                for record, kept in accepted.items():
                    count = min(number - len(kept), TRIES * number - tried[record])
                    jobs += [(record, tried[record] + index) for index in range(count)]
                    tried[record] += count
                if not jobs:
                    break
                jobs.sort(key=lambda job: (len(self.templates[job[0]].codes_L), job))  # those of one length together
                states = (self._state(*job) for job in jobs)
                for batch in grouped(states, (lambda state: len(state.codes_L), BATCH_BASES)):
                    self.sampler.run(batch, progress)
                    for state in batch:
                        self._take(state, accepted[state.record])
        self._say(accepted)
        return self._frame([state for states in accepted.values() for state in states])

    def _state(self, record: int, index: int) -> State:
        """What sequence `index` of a record begins with."""
        rng = np.random.default_rng((self.options.seed, record, index))
        template = self.templates[record]
        return State(replace(template, units=self.rules.place(template, rng)), record, index, rng)

    def _take(self, state: State, states: list[State]) -> None:
        """Add a finished state to those of its record, or count why it is refused."""
        reasons = list(self.rules.broken(state.codes_L))
        if self.options.max_edits and state.edits() > self.options.max_edits:
            reasons.append("max_edits")
        near = (int((state.codes_L != other.codes_L).sum()) < self.options.min_distance for other in states)
        if any(near):
            reasons.append("min_distance")
        self.refused.update(reasons)
        if not reasons:
            states.append(state)

    def _say(self, accepted: dict[int, list[State]]) -> None:
        """Warn of what is missing; UserError if all is."""
        why = ", ".join(f"--{rule} {count}" for rule, count in self.refused.most_common())
        short = {r: len(states) for r, states in accepted.items() if len(states) < self.options.number}
        if short and not sum(map(len, accepted.values())):
            raise UserError(f"no sequence keeps the rules after {TRIES} tries each; refused for {why}: loosen one")
        for record, count in short.items():
            text = "%s: only %d of %d sequences after %d tries each; refused for %s"
            log.warning(text, self.templates[record].name, count, self.options.number, TRIES, why)
        if self.refused and not short:
            log.info("refused and written anew: %s", why)

    def _frame(self, states: list[State]) -> pd.DataFrame:
        codes, templates = [state.codes_L for state in states], [state.template.name for state in states]
        records = pd.Series([state.record for state in states])
        numbers = records.groupby(records).cumcount() + 1
        found: dict[str, Any] = {
            "name": [f"{name}_{number}" for name, number in zip(templates, numbers, strict=True)],
            "sequence": [code_dna(codes_L).tobytes().decode() for codes_L in codes],
            "template": templates,
            "index": [state.index for state in states],
            "gc": [float(IS_GC[codes_L].mean()) for codes_L in codes],
        }
        if self.options.start is not None or self.options.method == "metropolis":
            found["edits"] = [state.edits() for state in states]
        return pd.DataFrame(found | self._scores(codes))

    def _scores(self, codes: list[np.ndarray]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for heads in (self.oracles, self.judges):
            found |= dict(zip(heads.names, heads(codes).T, strict=True))
        return found

    def write(self, folder: Path, table: pd.DataFrame) -> None:
        """Write the files of the folder."""
        said = header_options(self.options)
        how = f"model={self.model.digest} seed={self.options.seed}"
        heads = table["name"] + f" {how} index=" + table["index"].astype(str) + f" {said}"
        lines = [f">{head.strip()}\n{bases}\n" for head, bases in zip(heads, table["sequence"], strict=True)]
        (folder / "sequences.fa").write_text("".join(lines), encoding="utf-8")
        table.to_csv(folder / "scores.tsv", sep="\t", index=False, float_format="%.7g")
        write_json(folder / "generation.json", self._facts(len(table)))
        if self.real is not None:
            from megadna.downstream.generate_report import compare, report_page

            options, written = self.options, [codes_of(text) for text in table["sequence"]]
            motifs = [*options.motif, *options.avoid]
            found = compare(written, self.real, options.training, self._scores, motifs, options.seed)
            facts = f"Model {options.model} (weights {self.model.digest}), seed {options.seed}, {said}"
            (folder / "report.html").write_text(report_page(found, facts, table), encoding="utf-8")

    def _facts(self, count: int) -> dict[str, Any]:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self.options).items()}
        facts: dict[str, Any] = {"program": "megadna generate", "version": __version__, "options": options}
        facts |= {"steps": self.options.num_steps, "weights_xxh3_128": self.model.digest, "remark": self.remark}
        facts |= {"oracles": self.oracles.facts(), "judges": self.judges.facts()}
        return {**facts, "sequences": count, "refused": dict(self.refused)}


def header_options(options: GenerateOptions) -> str:
    """The options that a header states, as key=value without blanks; those at their default are left out."""
    words = []
    for entry in fields(options):
        value, default = getattr(options, entry.name), entry.default
        values = value if isinstance(value, list) else [value]
        if entry.name not in _NOT_IN_HEADERS and value != default and value != []:
            words.append(f"{entry.name}={quote(','.join(map(str, values)), safe='/,.:+-_')}")
    return " ".join(words)
