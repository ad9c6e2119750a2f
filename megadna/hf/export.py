"""Checkpoint -> Hugging Face folder, whole and verified or absent; and its upload to the Hub.

In:  a sealed checkpoint of any layout, read tensor by tensor.
Out: FOLDER/ config.json, model.safetensors (shards of 5 GB with an index), tokenizer files, README.md, for our own
     formats configuration_megadna.py and modeling_megadna.py, and megadna.json: how and from what it was made.
The folder is written under a temporary name (megadna/files.py), compared there with megatron's model (gate.py), and
renamed last. An upload is private unless asked otherwise, and needs a licence.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor

from megadna import __version__
from megadna.errors import UserError, require
from megadna.files import atomic_folder
from megadna.hf.card import Provenance, model_card
from megadna.hf.checkpoints import CheckpointTensors
from megadna.hf.formats import (
    MODEL_TYPES,
    REMOTE,
    NameTable,
    check_names,
    choose_format,
    config_json,
    name_table,
    target_tokenizer,
    write_code,
)
from megadna.hf.gate import NOT_COMPARED, compare
from megadna.hf.tokenizers import write_tokenizer
from megadna.hf.weights import write_weights
from megadna.log import get_logger
from megadna.ownership import Kind, refuse_replacing
from megadna.reading import first_line
from megadna.train.checkpoint import read_config

log = get_logger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RECORD = "megadna.json"


def export(
    checkpoint: Path,
    folder: Path,
    *,
    wanted: str = "auto",
    dtype: str = "fp32",
    check: bool = True,
    overwrite: bool = False,
    license_name: str = "",
) -> str:
    """Write and verify `folder`; return the result of the comparison as one line.

    wanted: a format or `auto`. dtype: `fp32` (master weights) or `bf16` (the model's own, bit for bit where they are).
    """
    config = read_config(checkpoint)
    target = choose_format(config, wanted)
    table = name_table(target, config)
    tensors = CheckpointTensors(checkpoint, master=dtype == "fp32" or config.engine.precision != "bf16")
    check_names(tensors.names(), table.shapes, str(checkpoint))
    if dtype == "fp32" and tensors.dtype != torch.float32:
        log.warning("%s has no master weights by name: exporting its %s weights as fp32", checkpoint, tensors.dtype)
    if dtype == "bf16" and tensors.dtype != torch.bfloat16:
        log.warning("%s has no bf16 weights: rounding its %s weights to bf16", checkpoint, tensors.dtype)
    if overwrite:
        refuse_replacing(folder, [checkpoint])
    with atomic_folder(folder, EXPORT if overwrite else None, ", or add --overwrite") as temporary:
        parameters = _write_tensors(temporary, table, tensors, DTYPES[dtype])
        provenance = Provenance.of(checkpoint)
        for text in provenance.verdicts():
            log.warning("%s: %s", checkpoint, text)
        max_length, torch_dtype = int(config.data.sequence_length), str(DTYPES[dtype]).removeprefix("torch.")
        _write_json(temporary / "config.json", config_json(target, config, max_length=max_length, dtype=torch_dtype))
        write_tokenizer(target_tokenizer(target, config.tokenizer), temporary, max_length, target=target)
        if target in REMOTE:
            write_code(temporary, target)
        card = model_card(target, config, provenance, parameters=parameters, dtype=dtype, license_name=license_name)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        found = NOT_COMPARED
        if check:
            found = compare(lambda name: tensors.read(name).to(DTYPES[dtype]).float(), config, table, temporary)
        record = {"program": f"megadna {__version__}", "format": target, "dtype": dtype, "gate": found}
        _write_json(temporary / RECORD, record | provenance.extract())
        return found


def _write_tensors(folder: Path, table: NameTable, tensors: CheckpointTensors, dtype: torch.dtype) -> int:
    """The weight files; the number of parameters in them."""
    hollow = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in table.shapes.items()}
    groups = {name: table.to_hf(name, tensor) for name, tensor in hollow.items()}
    zeros: dict[str, Tensor] = {}
    if table.format not in REMOTE and not table.model.token_types:  # the classes of others always have the table
        zeros = {table.token_types: torch.zeros(2, table.model.hidden_size, dtype=dtype)}
        groups["zeros"] = {name: tensor.to("meta") for name, tensor in zeros.items()}
    return write_weights(
        folder,
        groups,
        lambda name: zeros if name == "zeros" else table.to_hf(name, tensors.read(name).to(dtype)),
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _export_files(folder: Path) -> str | None:
    """What an export may contain (Kind): its files, and what `megadna evaluate` puts there."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if not record["program"].startswith("megadna ") or record["format"] not in MODEL_TYPES:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (
        rf"README\.md|{re.escape(RECORD)}|(config|tokenizer|tokenizer_config|baselines|evaluation-[^/]+)\.json|vocab\.txt|"
        r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|"
        r"(configuration|modeling|tokenization)_megadna\.py"
    )


EXPORT = Kind(name="export", files=_export_files)


def check_upload(repository: str, license_name: str, *, public: bool) -> None:
    """UserError, before any work, where the options of an upload do not fit together."""
    require(
        not repository or bool(license_name), "--push_to_hub needs --license: say under which licence others may use it"
    )
    require(not public or bool(repository), "--public belongs to --push_to_hub OWNER/NAME")


def upload(folder: Path, repository: str, *, public: bool) -> str:
    """Create the repository where it is missing and upload every file; return its address.

    The hub's address and the token come from where huggingface_hub looks for them (HF_ENDPOINT, HF_TOKEN).
    """
    hub = HfApi(library_name="megadna")
    try:
        url = hub.create_repo(repository, private=not public, exist_ok=True)
        visible = not hub.repo_info(repository).private
        if visible and not public:
            raise UserError(f"{repository} exists and is public; add --public, or name another repository")
        hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="Export by megadna")
    except UserError:
        raise
    except Exception as error:  # of the hub, or of whichever HTTP library it uses
        reason = first_line(error)
        raise UserError(f"{folder} is written, but was not uploaded to {repository}: {reason}") from error
    return str(url)
