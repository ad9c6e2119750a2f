"""The model card (README.md) of an export: architecture, training, data, validation, use and limits of the model.

In:  the checkpoint and, where they still exist, its run folder (validation), the dataset's manifest and contig table,
     and the checkpoint it started from.
Out: text without paths, users or machines: of a path the last part at most, of settings numbers and kinds only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadna import __version__
from megadna.config import Config
from megadna.data.dataset import contig_rows
from megadna.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from megadna.errors import UserError
from megadna.hf.formats import REMOTE
from megadna.log import get_logger
from megadna.train.checkpoint import read_config, read_numbers
from megadna.train.run_folder import beside_guessing, read_evaluation, verdict

log = get_logger(__name__)

SHOWN = 5
"""Contigs named of each source."""
CARD = """\
---
library_name: {library}
pipeline_tag: fill-mask
{license_line}tags:
- biology
- dna
- genomics
- masked-language-modeling
- megadna
---

# DNA encoder, {parameters} parameters

A masked language model of DNA: it predicts hidden bases, and its hidden states are embeddings. {summary}

Inside: {tokens}, {norm}, {positions}, {activation}. Trained with megadna {version}, exported in {dtype} in
the format `{target}`.

## Architecture and training

| architecture | |
|---|---|
{architecture}

| training | |
|---|---|
{training}

## Data

{data}

## Validation

{validation}

## Use

```python
{usage}
```

{remote}## Limits

It has seen only the genomes it was trained on, and sequences of at most {max_length} tokens; what it says of others is
untested. A probability of a base is no statement about function, disease or a person. {license_text}
"""
USAGE = """\
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder{remote})
model = AutoModelForMaskedLM.from_pretrained(folder{remote})
inputs = tokenizer("{example}", return_tensors="pt")
with torch.no_grad():
    probabilities = model(**inputs).logits.softmax(-1)

encoder = AutoModel.from_pretrained(folder{remote})  # embeddings: .last_hidden_state"""
REMOTE_NOTE = """\
`trust_remote_code` runs the two Python files of this folder (Apache-2.0); they need torch and transformers >= 4.48.

"""

_MOST_STARTS = 10
"""Most runs that are followed back through checkpoint.init_from."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a checkpoint comes from, as far as known."""

    numbers: dict[str, Any]
    """state.json."""
    datasets: list[Manifest]
    contigs: dict[str, list[str]]
    """Names of the first SHOWN contigs (accessions) by source."""
    evaluations: list[dict[str, Any]]
    """evaluation-SPLIT.json of the run."""
    source: dict[str, Any]
    """Of the model that training started from: format, licence; empty where it started from nothing."""

    @classmethod
    def of(cls, checkpoint: Path) -> "Provenance":
        """Read what still exists; a deleted dataset or run folder leaves its part empty."""
        config, numbers = read_config(checkpoint), read_numbers(checkpoint)
        paths = [config.data.path] if isinstance(config.data.path, str) else list(config.data.path)
        datasets: list[Manifest] = []
        contigs: dict[str, list[str]] = {}
        for path in map(Path, filter(None, paths)):
            if (path / MANIFEST_NAME).is_file():
                datasets.append(load_manifest(path))
                contigs |= _contigs(path / "contigs.tsv")
        run = checkpoint.absolute().parent.parent
        evaluations = []
        for path in sorted(run.glob("evaluation-*.json")):
            try:
                evaluations.append(read_evaluation(path))
            except UserError as error:
                log.warning("%s; left out of the model card", error)
        return cls(
            numbers=numbers,
            datasets=datasets,
            contigs=contigs,
            evaluations=evaluations,
            source=_source(config, numbers),
        )

    def verdicts(self) -> list[str]:
        """One sentence for each split on which the model is no better than a baseline, or than guessing."""
        found = {result.get("split", "-"): verdict(result["model"], result["baselines"]) for result in self.evaluations}
        bits = self.numbers.get("valid_bits_per_base")
        if not found and beside_guessing(bits):
            found = {"valid": verdict({"bits_per_base": bits}, {})}
        return [f"On {split}: {text}." for split, text in found.items() if text]

    def extract(self) -> dict[str, Any]:
        """Content of megadna.json: enough to find the data again, and nothing private."""
        sources = [
            {"name": source.name, "species": source.species, "sha256": source.sha256, "bases": source.bases}
            for dataset in self.datasets
            for source in dataset.sources
        ]
        kept = {key: self.numbers[key] for key in ("step", "consumed_samples", "dataset_id") if key in self.numbers}
        return kept | {"sources": sources, "started_from": self.source}


def _contigs(path: Path) -> dict[str, list[str]]:
    """The first SHOWN records of each source; the table may have millions."""
    found: dict[str, list[str]] = {}
    for source, record, *_ in contig_rows(path) if path.is_file() else ():
        names = found.setdefault(source, [])
        if len(names) < SHOWN:
            names.append(record)
    return found


def _source(config: Config, numbers: dict[str, Any]) -> dict[str, Any]:
    """Facts about the imported model: this checkpoint, or the one that its run started from."""
    found: dict[str, Any] = {}
    for _ in range(_MOST_STARTS):  # a run may name itself
        start = config.checkpoint.init_from
        if "imported" in numbers or not start:
            return found | dict(numbers.get("imported", {}))
        found |= {"name": Path(start).name, "license": "unknown"}
        try:
            config, numbers = read_config(Path(start)), read_numbers(Path(start))
        except (OSError, UserError):
            break
    return found


def model_card(
    target: str, config: Config, provenance: Provenance, *, parameters: int, dtype: str, license_name: str
) -> str:
    """README.md of an export."""
    model, numbers = config.model, provenance.numbers
    kind = config.tokenizer.kind
    tokens = {"nucleotide": "one token a nucleotide", "sentencepiece": "byte-pair pieces"}.get(
        kind, f"{config.tokenizer.k}-mers, stride {config.tokenizer.stride}"
    )
    remote = ", trust_remote_code=True" if target in REMOTE else ""
    library = "multimolecule" if target == "multimolecule" else "transformers"
    usage = USAGE.format(remote=remote, example=_example(target, config))
    started = provenance.source.get("license")
    return CARD.format(
        library=library,
        license_line=f"license: {license_name}\n" if license_name else "",
        license_text=(
            f"Licence of the weights: {license_name}."
            if license_name
            else "No licence is stated for the weights: whoever publishes them must name one."
        )
        + (f" The model that training started from: licence {started}." if started else ""),
        parameters=f"{parameters:,}",
        summary=_summary(provenance),
        tokens=tokens,
        norm={"pre": "pre-norm", "post": "post-norm"}[model.norm_placement] + f" ({model.normalization})",
        positions=f"{model.positions} positions",
        activation={"swiglu": "SwiGLU", "gelu": "GELU"}[model.activation],
        version=numbers.get("versions", {}).get("megadna", __version__),
        dtype=dtype,
        target=target,
        architecture=_table(_architecture(config)),
        training=_table(_training(config, numbers)),
        data=_data(provenance),
        validation=_validation(provenance),
        usage="import multimolecule\n" + usage if library == "multimolecule" else usage,
        remote=REMOTE_NOTE if remote else "",
        max_length=config.data.sequence_length,
    )


def _summary(provenance: Provenance) -> str:
    """What a reader needs first: the data, and the score beside the baselines; a sentence each, as far as known."""
    parts = []
    names = list(
        dict.fromkeys(source.species or source.name for data in provenance.datasets for source in data.sources)
    )
    if names:
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        bases = sum(data.bases["train"] for data in provenance.datasets)
        parts.append(f"Training data: {bases:,} bases of {', '.join(names[:SHOWN])}{more}.")
    for result in sorted(provenance.evaluations, key=lambda result: result["split"] != "test")[:1]:
        others = ", ".join(f"{name} {score['bits_per_base']:.3f}" for name, score in result["baselines"].items())
        bits = result["model"]["bits_per_base"]
        text = (
            f"On the split {result['split']}, which it was not trained on, it needs {bits:.3f} bits for a hidden base"
        )
        parts.append(f"{text} (baselines: {others}; less is better).")
    return " ".join(parts)


def _example(target: str, config: Config) -> str:
    k = config.tokenizer.k
    if config.tokenizer.kind != "kmer":
        return "ACGT[MASK]GGCTA"
    if target in ("bert", "megatron_bert"):  # words with spaces between them
        bases = "ACGTAGGCTAACGT"
        words = [bases[at : at + k] for at in range(len(bases) - k + 1)]
        return " ".join([*words[:2], "[MASK]", *words[3:]])
    return "ACGTAGGCTAACGT"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _architecture(config: Config) -> list[tuple[str, Any]]:
    model = config.model
    return [
        ("layers", model.num_layers),
        ("hidden size", model.hidden_size),
        ("attention heads", model.num_attention_heads),
        ("feed-forward size", model.ffn_hidden_size),
        ("tokens a sequence in training, special tokens included", config.data.sequence_length),
    ]


def _training(config: Config, numbers: dict[str, Any]) -> list[tuple[str, Any]]:
    train, masking = config.train, config.data.masking
    if not numbers.get("consumed_samples"):
        return [("by megadna", "none: the weights are those of the model that it was imported from")]
    positions = numbers["consumed_samples"] * int(config.data.sequence_length)
    return [
        ("optimizer steps", f"{numbers['step']:,} of {train.steps:,}"),
        ("tokens read, padding included", f"{positions:,}"),
        ("sequences a step", train.global_batch_size),
        ("peak learning rate", f"{train.lr:g}, {train.schedule} after {train.samples_of_warmup:,} sequences of "
         "warm-up"),
        *([("optimizer of the layers' matrices", f"Muon, peak learning rate {train.muon_lr:g}")]
          if train.optimizer == "muon" else []),
        ("AdamW betas, epsilon, weight decay", f"{train.betas[0]:g}, {train.betas[1]:g}, {train.eps:g}, "
         f"{train.weight_decay:g}"),
        ("tokens chosen for prediction", f"{masking.fraction:g}, mode {masking.mode}, {masking.mask_share:g} masked, "
         f"{masking.random_share:g} replaced"),
        ("reverse-complement probability", f"{config.data.reverse_complement:g}"),
        ("precision, seed", f"{config.engine.precision}, {config.seed}"),
    ]  # fmt: skip


def _data(provenance: Provenance) -> str:
    if not provenance.datasets:
        known = provenance.numbers.get("dataset_id")
        return f"The dataset (id {known}) was not at hand at the export." if known else "No dataset of megadna."
    parts: list[str] = []
    for dataset in provenance.datasets:
        options = dataset.options
        head = ("source", "species", "records", "bases", " / ".join(dataset.splits) + " chunks", "contigs")
        rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for source in dataset.sources:
            names = provenance.contigs.get(source.name, [])
            more = f" and {source.records - SHOWN:,} more" if source.records > SHOWN else ""
            split = " / ".join(f"{source.chunks[name]:,}" for name in dataset.splits)
            contigs = ", ".join(names) + more
            cells = (source.name, source.species, f"{source.records:,}", f"{source.bases:,}", split, contigs)
            rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")  # NCBI's gi|9626243|ref|
        parts.append("\n".join(rows))
        chosen = Path(str(options.get("contigs"))).name
        chunks = ", ".join(f"{split} {count:,}" for split, count in dataset.chunks.items())
        parts.append(
            f"Dataset {dataset.dataset_id}: chunks of {dataset.chunk_length:,} nucleotides ({chunks}); contig filter "
            f"`{chosen}`; held out by `{options.get('split')}` (asked for: valid "
            f"{options.get('valid_fraction')}, test {options.get('test_fraction')})."
        )
        splits = dict(dataset.leakage.get("splits", {}))
        parts += [
            f"Leakage: {row['flagged']:,} of {row['chunks']:,} {split} chunks share more than "
            f"{dataset.leakage['max_containment']:g} of their sketch with train."
            for split, row in splits.items()
        ] or ["Leakage between the splits was not measured."]
    return "\n\n".join(parts)


def _validation(provenance: Provenance) -> str:
    rows = [
        (result.get("split", "-"), f"step {result.get('step', '-')}" if name == "model" else name, score)
        for result in provenance.evaluations
        for name, score in {"model": result["model"], **result["baselines"]}.items()
    ]
    remarks = provenance.verdicts()
    numbers = provenance.numbers
    if not rows and "valid_bits_per_base" in numbers:
        score = {"bits_per_base": numbers["valid_bits_per_base"], "standard_error": numbers["valid_bits_per_base_se"]}
        rows = [("valid", f"step {numbers['step']}", score | {"accuracy": numbers["valid_accuracy"]})]
        remarks.append("It was not compared with baselines (`megadna evaluate`).")
    if not rows:
        return "None by megadna."
    lines = [
        f"| {split} | {name} | {score['bits_per_base']:.4f} | "
        f"{'-' if score['standard_error'] is None else format(score['standard_error'], '.4f')} | "
        f"{score['accuracy']:.4f} |"
        for split, name, score in rows
    ]
    head = "| split | | masked bits per base | standard error | accuracy |\n|---|---|---|---|---|"
    return "\n\n".join(["\n".join([head, *lines]), *remarks])
