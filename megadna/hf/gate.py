"""The gate of every conversion: megatron's model and the Hugging Face folder must compute the same on real sequence.

Both models run layer by layer, one layer in memory at a time, on two sequences of phage lambda of at most 512 tokens,
every seventh masked: megatron's model here from a checkpoint's tensors, the folder in a process of its own with
transformers alone (load_check.py). Limits:

    fp32   hidden states and logits within 1e-4; of states larger than 1 within 1e-4 of the largest
    bf16   the same most probable token at 99 % of the positions without a near tie; mean negative log-likelihood of
           the masked tokens within 0.5 %

Shapes: B batch, S sequence, H hidden, V vocabulary.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from megadna.config import Config
from megadna.engine.distributed import parallel_world
from megadna.errors import UserError
from megadna.files import write_json
from megadna.hf.formats import AUTO_MAP, REMOTE, NameTable, write_code
from megadna.model.encoder import build_encoder, hide_padding
from megadna.processes import LAUNCHER
from megadna.progress import Progress, tracked
from megadna.reading import read_json
from megadna.tokenizer.base import Tokenizer
from megadna.tokenizer.build import build_tokenizer
from megadna.train.checkpoint import single_rank

TOLERANCE = 1e-4
AGREEMENT = 0.99
NLL_SHARE = 0.005
ROWS = 2
LENGTH = 512
EVERY = 7
NOT_COMPARED = "not compared (--no_verify)"
_LEADS_ELSEWHERE = (
    *("auto_map", "configuration_files", "transformers_weights", "quantization_config"),
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "id2label", "num_labels"),
)
"""Keys of config.json that name code or files, or do not describe the model: not copied for the comparison."""
AS_BERT = [("model.", "bert."), ("lm_head.", "cls.predictions."), ("layer_norm", "LayerNorm")]
"""multimolecule's names -> those of transformers' BertForMaskedLM, which computes the same."""


def compare(
    read: Callable[[str], Tensor],
    config: Config,
    table: NameTable,
    folder: Path,
    *,
    foreign: bool = False,
    bias_factor: float = 1.0,
) -> str:
    """The differences between megatron's model and the one in `folder` as one line; UserError beyond the limits.

    read: megatron-core's tensors. foreign: somebody else made the folder, so its code is never run. bias_factor: how
    often the decoder's bias counts in megadna's model.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _write_reference(work, read, config, table)
        own = not foreign and table.format != "multimolecule"
        view = folder if own else _view(table.format, read_json(folder / "config.json"), work / "view")
        task = {
            "weights": str(folder.absolute()),
            "config": str(view.absolute()),
            "runs_code": own or table.format in REMOTE,
            "tokenizer": own,
            "renamed": AS_BERT if table.format == "multimolecule" else [],
            "rows": table.vocab_rows,
            "bias_factor": bias_factor,
        }
        write_json(work / "task.json", task)
        return _judge(_run(work))


def _write_reference(work: Path, read: Callable[[str], Tensor], config: Config, table: NameTable) -> None:
    """The input in the folder's vocabulary, and what megatron's model computes from it."""
    tokenizer = build_tokenizer(config.tokenizer)
    ids_BS, mask_BS, labels_BS = real_sequence(tokenizer, int(config.data.sequence_length))
    last = config.model.num_layers + 1
    for precision in ("fp32", "bf16"):
        states = reference_states(read, config, tokenizer, ids_BS, precision)
        what = f"running megatron's model in {precision}"
        for number, state in enumerate(tracked(states, what, last + 1, "layers")):
            if precision == "fp32" or number == last:
                np.save(work / f"{precision}-{'logits' if number == last else number}.npy", state.numpy())
    column = {row: at for at, row in enumerate(table.vocab_rows) if row >= 0}
    np.save(work / "ids.npy", np.vectorize(column.__getitem__)(ids_BS.numpy()))
    np.save(work / "mask.npy", mask_BS.numpy())
    np.save(work / "labels.npy", labels_BS.numpy())


def _view(target: str, content: dict[str, Any], view: Path) -> Path:
    """A folder of config.json, and our code, under which transformers itself computes what the model's class does."""
    content = {key: value for key, value in content.items() if key not in _LEADS_ELSEWHERE}
    view.mkdir()
    if target == "multimolecule":
        content |= {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
        content |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    elif target in REMOTE:
        content |= {"auto_map": AUTO_MAP}
        write_code(view, target)
    write_json(view / "config.json", content)
    return view


def _run(work: Path) -> dict[str, float]:
    """Run load_check.py; UserError where the folder does not load."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "HF_MODULES_CACHE": f"{work}/modules",
        "HF_HUB_OFFLINE": "1",
        LAUNCHER: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, "-m", "megadna.hf.load_check", str(work / "task.json")]
    with Progress("running the Hugging Face model"):
        result = subprocess.run(command, env=environment, cwd=work, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"it ended with status {result.returncode}"])[-1]
        raise UserError(f"transformers cannot load the Hugging Face model, so nothing was written: {reason}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def _judge(found: dict[str, float]) -> str:
    """The differences as text; UserError that names the one beyond its limit."""
    nll = abs(found["nll"] - found["nll_reference"]) / found["nll_reference"]
    limits = {
        "logits (fp32)": (found["logits"], TOLERANCE),
        "hidden states (fp32)": (found["hidden"], TOLERANCE * max(1.0, found["hidden_scale"])),
        "most probable tokens (bf16, share)": (1 - found["agreement"], 1 - AGREEMENT),
        "negative log-likelihood (bf16, relative)": (nll, NLL_SHARE),
    }
    for what, (value, limit) in limits.items():
        if not value <= limit:  # also when it is NaN
            raise UserError(
                f"the Hugging Face model's {what} differ from megatron's by {value:.2g} (limit {limit:.2g}); "
                "nothing was written: check that weights and configuration belong together"
            )
    return ", ".join(f"{what} differ by {value:.2g}" for what, (value, _) in limits.items())


def reference_states(
    read: Callable[[str], Tensor], config: Config, tokenizer: Tokenizer, ids_BS: Tensor, precision: str
) -> Iterator[Tensor]:
    """The embeddings, the output of each layer (of the last: after the last norm), the logits [B, S, V]; as fp32."""
    alone = single_rank(config)
    engine = replace(alone.engine, device="cpu", precision=precision)  # type: ignore[arg-type]
    alone = replace(alone, engine=engine, model=replace(alone.model, attention="sdpa"))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16

    with parallel_world(alone.engine, alone.parallel), torch.no_grad():
        model = build_encoder(alone, tokenizer.vocab_size, torch.device("meta")).eval()

        def call(module: str, *arguments: Any, **more: Any) -> Any:
            part = model.get_submodule(module)
            held = {name: read(f"{module}.{name}").to(dtype) for name, _ in part.named_parameters()}
            return functional_call(part, held, arguments, more)

        angles = model._angles(ids_BS.shape[1], None)
        hidden_SBH = call("embedding", ids_BS, None)
        yield _rows(hidden_SBH)
        for layer in range(config.model.num_layers):
            hidden_SBH, _ = call(
                f"encoder.layers.{layer}", hidden_states=hidden_SBH, attention_mask=None, rotary_pos_emb=angles
            )
            if layer == config.model.num_layers - 1 and model.encoder.final_layernorm is not None:
                hidden_SBH = call("encoder.final_layernorm", hidden_SBH)
            yield _rows(hidden_SBH)
        weight_VH = read("embedding.word_embeddings.weight").to(dtype)
        logits_SBV, _ = call("output_layer", call("lm_head", hidden_SBH), weight=weight_VH)
        yield _rows(hide_padding(logits_SBV.float(), tokenizer.vocab_size))


def _rows(state_SBX: Tensor) -> Tensor:
    return state_SBX.transpose(0, 1).float().contiguous()


def real_sequence(tokenizer: Tokenizer, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [2, S] of phage lambda (NC_001416.1, its first 1,020 bases), S at most 512, every seventh masked.

    Also which are masked (bool), and the ids without masks.
    """
    bases = np.frombuffer(files("megadna.hf").joinpath("phage_lambda.txt").read_bytes().strip(), np.uint8)
    ids = tokenizer.encode(bases).astype(np.int64)
    num_tokens = min(max_length - 2, LENGTH - 2, len(ids) // ROWS)
    inner = ids[: ROWS * num_tokens].reshape(ROWS, num_tokens)
    column = np.ones((ROWS, 1), np.int64)
    labels = np.concatenate([column * tokenizer.cls_id, inner, column * tokenizer.sep_id], axis=1)
    mask = np.zeros(labels.shape, bool)
    mask[:, 1:-1:EVERY] = True
    hidden = np.where(mask, tokenizer.mask_id, labels)
    return torch.from_numpy(hidden), torch.from_numpy(mask), torch.from_numpy(labels)
