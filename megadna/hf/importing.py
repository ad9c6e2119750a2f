"""Hugging Face folder -> megadna checkpoint of weights only, whole and checked or absent.

In:  a folder of a format that formats.py knows, published or exported: config.json, weight files in any form, and
     tokenizer files or none.
Out: CHECKPOINT/ weights/, config.yaml, state.json, the marker `complete`: what `checkpoint.init_from`, `evaluate`,
     `inspect` and `export` take. Written under a temporary name, compared there (gate.py), and renamed last.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadna.errors import UserError, require
from megadna.files import atomic_folder
from megadna.hf.checkpoints import CheckpointTensors, seal_checkpoint, write_tensors
from megadna.hf.export import NOT_COMPARED, compared
from megadna.hf.formats import config_of, name_table, recognise
from megadna.hf.gate import verify
from megadna.hf.names import check_names
from megadna.hf.tokenizers import recognise_tokenizer
from megadna.hf.weights import FolderWeights
from megadna.log import get_logger
from megadna.ownership import Kind, refuse_replacing
from megadna.tokenizer.build import build_tokenizer
from megadna.train.integrity import MARKER

log = get_logger(__name__)

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "model.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}


def import_folder(
    folder: Path,
    checkpoint: Path,
    *,
    check: bool = True,
    overwrite: bool = False,
    double_bias: bool = False,
    pieces: str = "",
    license_name: str = "",
) -> str:
    """Write and check `checkpoint`; return what the comparison found, as one line.

    double_bias: the folder was trained by DNABERT's code, which adds the decoder's bias twice. pieces: folder of a
    sentencepiece model. license_name: of the weights; default: what the folder's README.md states.
    """
    content = _read_json(folder / "config.json")
    target = recognise(content)
    weights = FolderWeights(folder)
    _check_tied(weights)
    tokenizer_config = recognise_tokenizer(folder, target, int(content["vocab_size"]), pieces)
    config = config_of(target, content, tokenizer_config, token_types=False)
    table = name_table(target, config)
    if table.token_types in weights and weights.read(table.token_types).any():
        config = config_of(target, content, tokenizer_config, token_types=True)
        table = name_table(target, config)
    expected = {part for name in table.shapes for part in table.hf_names(name)}
    check_names(set(weights.names()) - ({table.token_types} - expected), expected, str(folder))

    dtype = _common_dtype(weights, expected)
    factor = 2.0 if double_bias else 1.0

    def read(name: str) -> Tensor:
        tensor = table.from_hf(name, lambda part: weights.read(part).to(dtype))
        return tensor * factor if name == "output_layer.bias" else tensor

    imported = {"name": folder.absolute().name, "format": target, "license": license_name or _license(folder)}
    if overwrite:
        refuse_replacing(checkpoint, [folder, pieces])
    with atomic_folder(checkpoint, CHECKPOINT if overwrite else None, ", or add --overwrite") as temporary:
        write_tensors(temporary, table.shapes, read, dtype=dtype)
        found = NOT_COMPARED
        if check:
            tensors, tokenizer = CheckpointTensors(temporary, master=False), build_tokenizer(config.tokenizer)
            with compared(target, folder, foreign=True, bias_factor=factor) as other:
                found = verify(lambda name: tensors.read(name).float(), config, tokenizer, table, other)
        facts = {"tokenizer": tokenizer_config.kind, "imported": imported | {"gate": found}}
        seal_checkpoint(temporary, config, facts)
    return found


def _checkpoint_files(folder: Path) -> str | None:
    """What a checkpoint folder may contain (Kind): what its commit marker names."""
    try:
        entries = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if not all(entry.keys() == {"bytes", "crc32"} for entry in entries.values()):
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return "|".join(map(re.escape, [MARKER, *entries])) if "state.json" in entries else None


CHECKPOINT = Kind(name="checkpoint", files=_checkpoint_files)


def _common_dtype(weights: FolderWeights, names: set[str]) -> torch.dtype:
    """bf16 where every tensor is, fp32 where any is not: nothing loses digits."""
    half = all(weights.dtype(name) == torch.bfloat16 for name in names if name in weights)
    return torch.bfloat16 if half else torch.float32


def _check_tied(weights: FolderWeights) -> None:
    """UserError where a decoder has weights of its own: megadna's is tied to the embeddings."""
    for alias, source in TIED.items():
        if alias in weights and source in weights and not torch.equal(weights.read(alias), weights.read(source)):
            raise UserError(f"{alias} is not {source}: untied decoders cannot be imported")


def _license(folder: Path) -> str:
    """What the model card's header says; `unknown` where it says nothing."""
    card = folder / "README.md"
    for line in card.read_text(encoding="utf-8").splitlines() if card.is_file() else []:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or "unknown"
    return "unknown"


def _read_json(path: Path) -> dict[str, Any]:
    require(path.is_file(), f"{path}: no such file; --model names a Hugging Face model folder")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
