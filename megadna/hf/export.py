"""Writes a trained encoder as a Hugging Face folder, and refuses to finish one that does not compute the same.

In:  full fp32 tensors by megatron-core name, the run's config and tokenizer, token ids of real sequence with the logits
     that the training model gives for them.
Out: FOLDER/ config.json, model.safetensors, tokenizer files, configuration_megadna.py, modeling_megadna.py, README.md.
The folder is written under a temporary name beside it, loaded there by transformers in a process of its own, compared,
and renamed last: under the asked name there is a whole, checked export or what was there before.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from megadna.config import Config
from megadna.errors import UserError
from megadna.hf.card import model_card
from megadna.hf.names import EncoderShape, check_names, mcore_names, to_hf
from megadna.hf.tokenizers import write_tokenizer
from megadna.tokenizer.base import Tokenizer

# Shapes: B batch, S sequence, V vocabulary.
TOLERANCE = 1e-4
"""Largest absolute difference between a logit of the export and of the training model, both in fp32."""

REMOTE_CODE = ("configuration_megadna.py", "modeling_megadna.py")
AUTO_MAP = {
    "AutoConfig": "configuration_megadna.MegaDnaConfig",
    "AutoModel": "modeling_megadna.MegaDnaModel",
    "AutoModelForMaskedLM": "modeling_megadna.MegaDnaForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_megadna.MegaDnaForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_megadna.MegaDnaForTokenClassification",
}


def export(
    tensors: Mapping[str, Tensor],
    reference_logits_BSV: Tensor,
    token_ids_BS: Tensor,
    config: Config,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    max_length: int,
    overwrite: bool = False,
) -> float:
    """Write and check `folder`; return the largest absolute difference of its logits from the reference.

    tensors: full fp32 tensors by megatron-core name (names.py). max_length: tokens a sequence in training.
    reference_logits_BSV may carry padding columns of the vocabulary at the end.
    """
    with replaced_folder(folder, overwrite=overwrite) as temporary:
        write_folder(tensors, config, tokenizer, temporary, max_length=max_length)
        return verify(temporary, token_ids_BS, reference_logits_BSV)


def check_exportable(config: Config) -> None:
    """UserError that names the first setting for which there is no Hugging Face layout yet."""
    model = config.model
    expected = {
        "norm_placement": "pre",
        "normalization": "layernorm",
        "activation": "swiglu",
        "positions": "rotary",
        "rotary_interpolation": 1.0,
        "linear_bias": True,
        "qk_norm": False,
        "token_types": 0,
        "query_groups": model.num_attention_heads,
    }
    for key, value in expected.items():
        if getattr(model, key) != value:
            raise UserError(
                f"a model with model.{key} {getattr(model, key)} cannot be exported yet: only pre-LN models with "
                f"RoPE, SwiGLU, LayerNorm and biases can (model.{key} {value})"
            )


def write_folder(
    tensors: Mapping[str, Tensor], config: Config, tokenizer: Tokenizer, folder: Path, *, max_length: int
) -> None:
    """Write every file of an export into the existing, empty `folder`."""
    check_names(tensors, mcore_names(config.model.num_layers), "the checkpoint")
    shape = EncoderShape(
        num_layers=config.model.num_layers,
        num_attention_heads=config.model.num_attention_heads,
        vocab_size=tokenizer.vocab_size,
        padded_vocab_size=tensors["embedding.word_embeddings.weight"].shape[0],
    )
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
        weights |= {key: part.contiguous() for key, part in to_hf(name, tensor, shape).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    hf_config = config_json(config, tokenizer, max_length=max_length)
    (folder / "config.json").write_text(json.dumps(hf_config, indent=2, sort_keys=True) + "\n")
    mode = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(mode)  # the library lets its owner alone read it
    write_tokenizer(tokenizer, folder, max_length)
    for name in REMOTE_CODE:
        shutil.copyfile(Path(__file__).with_name(name), folder / name)
    parameters = sum(weight.numel() for weight in weights.values())
    card = model_card(config, parameters=parameters, vocab_size=tokenizer.vocab_size, max_length=max_length)
    (folder / "README.md").write_text(card)


def config_json(config: Config, tokenizer: Tokenizer, *, max_length: int) -> dict[str, Any]:
    """The fields of config.json: megadna's configuration in transformers' words."""
    model = config.model
    return {
        "architectures": ["MegaDnaForMaskedLM"],
        "attention_probs_dropout_prob": model.dropout,
        "auto_map": AUTO_MAP,
        "hidden_dropout_prob": model.dropout,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "intermediate_size": model.ffn_hidden_size,
        "layer_norm_eps": model.layernorm_epsilon,
        "max_position_embeddings": max_length,
        "model_type": "megadna",
        "num_attention_heads": model.num_attention_heads,
        "num_hidden_layers": model.num_layers,
        "pad_token_id": tokenizer.pad_id,
        "rope_theta": float(model.rotary_base),
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": tokenizer.vocab_size,
    }


def verify(folder: Path, token_ids_BS: Tensor, reference_logits_BSV: Tensor) -> float:
    """Largest absolute difference of the folder's logits from the reference; UserError above `TOLERANCE`."""
    return compare(folder_logits(folder, token_ids_BS), reference_logits_BSV)


def compare(logits_BSV: Tensor, reference_BSV: Tensor) -> float:
    """Largest absolute difference, padding columns of the reference left out; UserError above `TOLERANCE`."""
    reference_BSV = reference_BSV.detach().float().cpu()[..., : logits_BSV.shape[-1]]
    assert logits_BSV.shape == reference_BSV.shape, (logits_BSV.shape, reference_BSV.shape)
    difference = (logits_BSV - reference_BSV).abs().max().item()
    if not difference <= TOLERANCE:  # also when it is NaN
        raise UserError(
            f"the exported model's logits differ from the training model's by {difference:.2g} (limit {TOLERANCE:g}); "
            "the export was not written: check that checkpoint and config belong together"
        )
    return difference


def folder_logits(folder: Path, token_ids_BS: Tensor) -> Tensor:
    """Logits [B, S, V] of `folder` by transformers, in a new process that can import neither megadna nor megatron.

    UserError where it does not load.
    """
    script = Path(__file__).with_name("load_check.py")
    with tempfile.TemporaryDirectory() as work:
        ids, logits = Path(work, "ids.npy"), Path(work, "logits.npy")
        np.save(ids, token_ids_BS.cpu().numpy())
        environment = os.environ | {"HF_MODULES_CACHE": f"{work}/modules", "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, "-", str(folder.absolute()), str(ids), str(logits)],
            input=script.read_text(),
            env=environment,
            cwd=work,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"transformers cannot load the export, which was not written: {reason}")
        return torch.from_numpy(np.load(logits))


@contextmanager
def replaced_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` when the block ends well, and vanishes otherwise.

    UserError where `folder` holds something, unless it is an export and `overwrite` is set.
    """
    folder = folder.absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder for the export")
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(f"{folder} is not empty; choose another folder or add --overwrite")
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{folder} holds something that is not an export, so it is not overwritten; remove it first"
            )
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
