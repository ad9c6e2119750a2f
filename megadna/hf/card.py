"""The model card (README.md) of an export: what the model is, how it was trained, how to use it.

It names no path, user or machine: of the configuration only numbers and kinds are quoted.
"""

from megadna import __version__
from megadna.config import Config

CARD = """\
---
library_name: transformers
pipeline_tag: fill-mask
tags:
- biology
- dna
- genomics
- masked-language-modeling
- megadna
---

# DNA encoder, {parameters} parameters

A masked language model of DNA, one token a nucleotide: pre-LN transformer encoder with rotary positions and SwiGLU,
trained with megadna {version} and exported in fp32.

| architecture | |
|---|---|
| layers | {model.num_layers} |
| hidden size | {model.hidden_size} |
| attention heads | {model.num_attention_heads} |
| feed-forward size (SwiGLU) | {model.ffn_hidden_size} |
| vocabulary | {vocab_size} |
| tokens a sequence in training, [CLS] and [SEP] included | {max_length} |

| training | |
|---|---|
| optimizer steps planned | {train.steps} |
| sequences a step | {train.global_batch_size} |
| peak learning rate, schedule | {train.lr:g}, {train.schedule} after {train.warmup_steps} steps of warm-up |
| weight decay | {train.weight_decay:g} |
| nucleotides chosen for prediction | {masking.fraction:g} |
| reverse-complement probability | {reverse_complement:g} |
| precision | {engine.precision} |
| seed | {seed} |

## Use

```python
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer("ACGT[MASK]GGCTA", return_tensors="pt")
with torch.no_grad():
    probabilities = model(**inputs).logits.softmax(-1)

encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)  # embeddings: .last_hidden_state
```

`trust_remote_code` runs the two Python files of this folder (Apache-2.0); they need torch and transformers >= 4.48.

## Limits

It has seen only the genomes it was trained on, and sequences of at most {max_length} tokens; longer input runs but is
outside what it was trained for. No licence is stated for the weights: whoever publishes them must name one.
"""


def model_card(config: Config, *, parameters: int, vocab_size: int, max_length: int) -> str:
    """README.md of an export."""
    return CARD.format(
        parameters=f"{parameters:,}",
        version=__version__,
        model=config.model,
        train=config.train,
        engine=config.engine,
        masking=config.data.masking,
        reverse_complement=config.data.reverse_complement,
        seed=config.seed,
        vocab_size=vocab_size,
        max_length=max_length,
    )
