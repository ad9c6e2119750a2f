"""The size of the vocabulary inside the model: fixed per tokenizer, the same under every layout.

The nucleotide vocabulary stays 16, so that its tensors are AIDO.DNA's; others are padded to the next multiple of 64,
which every tensor-parallel size that is a power of two up to 64 divides. Padding rows are never predicted: their logits
are minus infinity, and an export cuts them off.
"""

from megatron.core import parallel_state
from torch import Tensor

from megadna.config import TokenizerConfig

MULTIPLE = 64


def padded_vocab_size(tokenizer: TokenizerConfig, vocab_size: int) -> int:
    """Rows of the embedding for a vocabulary of `vocab_size` tokens."""
    if tokenizer.kind == "nucleotide":
        return vocab_size
    return (vocab_size + MULTIPLE - 1) // MULTIPLE * MULTIPLE


def hide_padding(logits_SBV: Tensor, vocab_size: int) -> Tensor:
    """The logits of this tensor-parallel rank's rows, those beyond `vocab_size` set to minus infinity in place."""
    rows = logits_SBV.shape[-1]
    real = vocab_size - rows * parallel_state.get_tensor_model_parallel_rank()
    if real < rows:
        logits_SBV[..., max(0, real) :] = float("-inf")
    return logits_SBV
