"""megadna pretrains DNA language models from FASTA files; megatron-core is the engine on CPU and GPU alike."""

from megadna import upstream

__version__ = "0.1.0"

_VERBS = ["embed", "predict", "finetune", "benchmark", "splice_sites", "windows"]
_VERBS += ["variants", "mutate", "dependencies", "attribute", "motifs", "annotate", "search", "generate"]


def __getattr__(name: str) -> object:
    """`from megadna import embed`: the functions behind the verbs, imported when first asked for."""
    if name not in _VERBS:
        raise AttributeError(f"module 'megadna' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"megadna.downstream.{name}"), name)


upstream.install()
