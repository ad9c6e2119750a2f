"""megadna pretrains DNA language models from FASTA files; megatron-core is the engine on CPU and GPU alike."""

import sys
from importlib import import_module

from megadna import upstream

__version__ = "0.1.0"

_TRAINING = ["preprocess", "train", "evaluate", "export", "report"]
VERBS = [*_TRAINING, "embed", "predict", "finetune", "benchmark", "splice_sites", "windows"]
VERBS += ["variants", "mutate", "dependencies", "attribute", "motifs", "annotate", "search", "generate"]
"""The functions behind the verbs: docs/api.md."""


def __getattr__(name: str) -> object:
    """`from megadna import embed`: the functions behind the verbs, imported when first asked for."""
    if name not in VERBS:
        raise AttributeError(f"module 'megadna' has no attribute {name!r}")
    if "ipykernel" in sys.modules:  # in a notebook, log and progress belong under the cell
        import_module("megadna.log").setup_logging()
    module = import_module("megadna.api" if name in _TRAINING else f"megadna.downstream.{name}")
    return import_module("megadna.train") if name == "train" else getattr(module, name)


def __dir__() -> list[str]:
    """What a notebook completes."""
    return [*globals(), *VERBS]


upstream.install()
