"""The model card (README.md) of an export: architecture, training, data, validation, use and limits of the model.

In:  the checkpoint and, where they still exist, its run folder (validation), the dataset's manifest and contig table,
     and the checkpoint it started from.
Out: text without paths, users or machines: of a path the last part at most, of settings numbers and kinds only.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

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
library_name: {{ library }}
pipeline_tag: fill-mask
{% if license_name %}
license: {{ license_name }}
{% endif %}
tags:
- biology
- dna
- genomics
- masked-language-modeling
- megadna
---

# DNA encoder, {{ parameters | commas }} parameters

A masked language model of DNA: it predicts hidden bases, and its hidden states are embeddings. {{ summary }}

Inside: {{ tokens }}, {{ model.norm_placement }}-norm ({{ model.normalization }}), {{ model.positions }} positions, \
{{ {"swiglu": "SwiGLU", "gelu": "GELU"}[model.activation] }}. Trained with megadna {{ version }}, exported in \
{{ dtype }} in
the format `{{ target }}`.

## Architecture and training

| architecture | |
|---|---|
| layers | {{ model.num_layers }} |
| hidden size | {{ model.hidden_size }} |
| attention heads | {{ model.num_attention_heads }} |
| feed-forward size | {{ model.ffn_hidden_size }} |
| tokens a sequence in training, special tokens included | {{ length }} |

| training | |
|---|---|
{% if not numbers.consumed_samples %}
| by megadna | none: the weights are those of the model that it was imported from |
{% else %}
| optimizer steps | {{ numbers.step | commas }} of {{ train.steps | commas }} |
| tokens read, padding included | {{ (numbers.consumed_samples * length) | commas }} |
| sequences a step | {{ train.global_batch_size }} |
| peak learning rate | {{ "%g" | format(train.lr) }}, {{ train.schedule }} after \
{{ train.samples_of_warmup | commas }} sequences of warm-up |
{% if train.optimizer == "muon" %}
| optimizer of the layers' matrices | Muon, peak learning rate {{ "%g" | format(train.muon_lr) }} |
{% endif %}
| AdamW betas, epsilon, weight decay | {{ "%g, %g, %g, %g" | format(train.betas[0], train.betas[1], \
train.eps, train.weight_decay) }} |
| tokens chosen for prediction | {{ "%g" | format(masking.fraction) }}, mode {{ masking.mode }}, \
{{ "%g masked, %g replaced" | format(masking.mask_share, masking.random_share) }} |
| reverse-complement probability | {{ "%g" | format(config.data.reverse_complement) }} |
| precision, seed | {{ config.engine.precision }}, {{ config.seed }} |
{% endif %}

## Data

{% for data in datasets %}
| source | species | records | bases | {{ data.splits | join(" / ") }} chunks | contigs |
|---|---|---|---|---|---|
{% for one in data.sources %}
| {{ one.name | cell }} | {{ one.species | cell }} | {{ one.records | commas }} | {{ one.bases | commas }} | \
{% for split in data.splits %}{{ one.chunks[split] | commas }}{{ " / " if not loop.last }}{% endfor %} | \
{{ contigs.get(one.name, []) | join(", ") | cell }}\
{{ " and {:,} more".format(one.records - shown) if one.records > shown }} |
{% endfor %}

Dataset {{ data.dataset_id }}: chunks of {{ data.chunk_length | commas }} nucleotides (\
{% for split, count in data.chunks.items() %}{{ split }} {{ count | commas }}{{ ", " if not loop.last }}{% endfor %}\
); contig filter `{{ data.options.contigs | last_part }}`; held out by `{{ data.options.split }}` (asked for: valid \
{{ data.options.valid_fraction }}, test {{ data.options.test_fraction }}).

{% for split, row in data.leakage.get("splits", {}).items() %}
Leakage: {{ row.flagged | commas }} of {{ row.chunks | commas }} {{ split }} chunks share more than \
{{ "%g" | format(data.leakage.max_containment) }} of their sketch with train.

{% else %}
Leakage between the splits was not measured.

{% endfor %}
{% else %}
{{ "The dataset (id %s) was not at hand at the export." | format(numbers.dataset_id) if numbers.dataset_id
   else "No dataset of megadna." }}

{% endfor %}
## Validation

{% if scores %}
| split | | masked bits per base | standard error | accuracy |
|---|---|---|---|---|
{% for split, name, one in scores %}
| {{ split }} | {{ name }} | {{ "%.4f" | format(one.bits_per_base) }} | \
{{ "-" if one.standard_error is none else "%.4f" | format(one.standard_error) }} | {{ "%.4f" | format(one.accuracy) }} |
{% endfor %}

{% for text in remarks %}
{{ text }}

{% endfor %}
{% else %}
None by megadna.

{% endif %}
## Use

```python
{{ "import multimolecule\n" if library == "multimolecule" }}import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder{{ remote }})
model = AutoModelForMaskedLM.from_pretrained(folder{{ remote }})
inputs = tokenizer("{{ example }}", return_tensors="pt")
with torch.no_grad():
    probabilities = model(**inputs).logits.softmax(-1)

encoder = AutoModel.from_pretrained(folder{{ remote }})  # embeddings: .last_hidden_state
```

{% if remote %}
`trust_remote_code` runs the two Python files of this folder (Apache-2.0); they need torch and transformers >= 4.48.

{% endif %}
## Limits

It has seen only the genomes it was trained on, and sequences of at most {{ length }} tokens; what it says of others is
untested. A probability of a base is no statement about function, disease or a person. \
{% if license_name %}Licence of the weights: {{ license_name }}.{% else %}\
No licence is stated for the weights: whoever publishes them must name one.{% endif %}\
{{ " The model that training started from: licence %s." | format(started) if started }}
"""
"""Of jinja2."""

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
    numbers, k, stride = provenance.numbers, config.tokenizer.k, config.tokenizer.stride
    kinds = {"nucleotide": "one token a nucleotide", "sentencepiece": "byte-pair pieces"}
    scores, remarks = _scores(provenance), provenance.verdicts()
    if scores and not provenance.evaluations:
        remarks.append("It was not compared with baselines (`megadna evaluate`).")
    jinja = Environment(trim_blocks=True, keep_trailing_newline=True)
    jinja.filters |= {
        "commas": "{:,}".format,
        "cell": lambda text: text.replace("|", r"\|"),  # NCBI's gi|9626243|ref|
        "last_part": lambda path: Path(str(path)).name,
    }
    return jinja.from_string(CARD).render(
        config=config, model=config.model, train=config.train, masking=config.data.masking,
        length=config.data.sequence_length, numbers=numbers, datasets=provenance.datasets, contigs=provenance.contigs,
        started=provenance.source.get("license"), version=numbers.get("versions", {}).get("megadna", __version__),
        library="multimolecule" if target == "multimolecule" else "transformers", target=target, dtype=dtype,
        parameters=parameters, license_name=license_name, summary=_summary(provenance), scores=scores, remarks=remarks,
        tokens=kinds.get(config.tokenizer.kind, f"{k}-mers, stride {stride}"), example=_example(target, config),
        remote=", trust_remote_code=True" if target in REMOTE else "", shown=SHOWN,
    )  # fmt: skip


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


def _scores(provenance: Provenance) -> list[tuple[str, str, dict[str, Any]]]:
    """(split, what was measured, score) of every evaluation; without any, of the checkpoint's validation."""
    numbers = provenance.numbers
    if not provenance.evaluations and "valid_bits_per_base" in numbers:
        keys = {"bits_per_base": "bits_per_base", "standard_error": "bits_per_base_se", "accuracy": "accuracy"}
        return [("valid", f"step {numbers['step']}", {name: numbers[f"valid_{key}"] for name, key in keys.items()})]
    return [
        (result.get("split", "-"), f"step {result.get('step', '-')}" if name == "model" else name, score)
        for result in provenance.evaluations
        for name, score in {"model": result["model"], **result["baselines"]}.items()
    ]
