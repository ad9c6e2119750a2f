"""megadna pretrains DNA language models from FASTA files; megatron-core is the engine on CPU and GPU alike."""

__version__ = "0.1.0"
