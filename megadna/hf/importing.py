"""Hugging Face folder -> megadna checkpoint of weights only, whole and verified or absent.

In:  a folder of a format that formats.py knows, published or exported: config.json, weight files in any form, and
     tokenizer files or none.
Out: CHECKPOINT/ weights/, config.yaml, state.json, the marker `complete`: input of `checkpoint.init_from`,
     `evaluate`, `inspect` and `export`. Written under a temporary name, compared there (gate.py), and renamed last.
"""

import re
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadna.arguments import dump_config
from megadna.errors import UserError, require
from megadna.files import atomic_folder
from megadna.hf.checkpoints import CheckpointTensors, seal_checkpoint, write_tensors
from megadna.hf.formats import check_names, config_of, name_table, recognise
from megadna.hf.gate import NOT_COMPARED, compare
from megadna.hf.tokenizers import recognise_tokenizer
from megadna.hf.weights import FolderWeights
from megadna.log import get_logger
from megadna.ownership import Kind, refuse_replacing
from megadna.reading import first_line, read_json
from megadna.train.integrity import MARKER

log = get_logger(__name__)

_COUNTS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings", "type_vocab_size", "num_token_types"),
)
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
    """Write and verify `checkpoint`; return the result of the comparison as one line.

    double_bias: the folder was trained by DNABERT's code, which adds the decoder's bias twice. pieces: folder of a
    sentencepiece model. license_name: of the weights; default: what the folder's README.md states.
    """
    content = read_json(folder / "config.json", "--model names a Hugging Face model folder")
    second = content.get("configuration_files")
    require(
        not second, f"{folder / 'config.json'}: configuration_files names another config; import reads this one alone"
    )
    target = recognise(content)
    weights = FolderWeights(folder)
    _check_tied(weights)
    with _fitting(folder / "config.json"):
        _check_counts(content, len(weights.names()))
        tokenizer_config = recognise_tokenizer(folder, target, int(content["vocab_size"]), pieces)
        config = config_of(target, content, tokenizer_config, token_types=False)
        table = name_table(target, config)
        if table.token_types in weights and weights.read(table.token_types).any():
            config = config_of(target, content, tokenizer_config, token_types=True)
            table = name_table(target, config)
        dump_config(config)  # checks the types of all values
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
            tensors = CheckpointTensors(temporary, master=False)
            found = compare(
                lambda name: tensors.read(name).float(), config, table, folder, foreign=True, bias_factor=factor
            )
        facts = {"tokenizer": tokenizer_config.kind, "imported": imported | {"gate": found}}
        seal_checkpoint(temporary, config, facts)
    return found


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """UserError that names the file where a key is missing or its value is of a wrong type."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path}: lacks {error}; without it the architecture is unknown") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, ArgumentError) as error:
        if isinstance(error, UserError):
            named = str(path.parent) in str(error) or "config.json" in str(error)
            raise error if named else UserError(f"{path}: {error}") from error
        raise UserError(f"{path}: a value is of a wrong type ({first_line(error)})") from error


def _check_counts(content: dict[str, Any], tensors: int) -> None:
    """TypeError or ValueError where config.json's counts are none, or its layers more than the weights' tensors."""
    for key in _COUNTS:
        value = content.get(key)
        required = key in content and not key.startswith("num_key")  # grouped queries may be null
        if (required or value is not None) and not (type(value) is int and 0 <= value < 1 << 31):
            raise TypeError(f"{key}: {str(value)[:40]}")
    if content["num_hidden_layers"] > tensors:
        raise ValueError(f"num_hidden_layers: {content['num_hidden_layers']}, and the weights are {tensors} tensors")


def _checkpoint_files(folder: Path) -> str | None:
    """What a checkpoint folder may contain (Kind): what its commit marker names."""
    try:
        entries = read_json(folder / MARKER)
        if not all(entry.keys() == {"bytes", "crc32"} for entry in entries.values()):
            return None
    except (UserError, AttributeError):
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
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []:
        if line.startswith("license:"):
            return line.partition(":")[2].strip() or "unknown"
    return "unknown"
