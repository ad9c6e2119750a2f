"""Checkpoints of random weights, without a run."""

import torch

from megadna.config import Config
from megadna.hf.checkpoints import seal_checkpoint, write_tensors
from megadna.model.shapes import padded_vocab_size, tensor_shapes
from megadna.tokenizer.build import build_tokenizer


def random_weights(config, seed=3):
    """Weights by megatron-core name, far enough from their initial values that no bias is 0 and no norm is 1."""
    vocab_size = build_tokenizer(config.tokenizer).vocab_size
    rows = padded_vocab_size(config.tokenizer, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(config.model, rows).items():
        scale = 0.1 if len(shape) == 1 else 1 / shape[-1] ** 0.5
        weights[name] = scale * torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
        if shape[0] == rows and name in ("embedding.word_embeddings.weight", "output_layer.bias"):
            weights[name][vocab_size:] = 0
    return weights


def random_checkpoint(folder, config: Config, seed=3, dtype=torch.float32):
    """A sealed checkpoint of `config` in the new folder `folder`; its path and its weights."""
    weights = {name: weight.to(dtype) for name, weight in random_weights(config, seed).items()}
    folder.mkdir(parents=True)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    write_tensors(folder, shapes, weights.__getitem__, dtype=dtype)
    seal_checkpoint(folder, config, {"tokenizer": config.tokenizer.kind})
    return folder, weights
