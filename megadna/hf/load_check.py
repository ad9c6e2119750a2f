"""Loads a Hugging Face folder as a stranger would, with transformers only, and writes its logits.

    python - FOLDER TOKEN_IDS.npy LOGITS.npy < load_check.py

In:  token ids [B, S] (int64). A tokenizer must load too, with no more tokens than the model has rows.
Out: logits [B, S, V] in fp32. megadna and megatron cannot be imported here, so an export that needs them fails.
It is read from standard input because this folder holds a `tokenizers.py`, which would hide the package of that name.
"""

import sys

for absent in ("megadna", "megatron"):
    sys.modules[absent] = None  # type: ignore[assignment]  # the import system then refuses the name

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForMaskedLM, AutoTokenizer  # noqa: E402


def main(folder: str, ids_path: str, logits_path: str) -> None:
    """Load, check the tokenizer against the model, run, write."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {model.config.vocab_size}")
    with torch.no_grad():
        logits_BSV = model(torch.from_numpy(np.load(ids_path))).logits
    np.save(logits_path, logits_BSV.float().numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
