"""Runs a Hugging Face folder layer by layer, as a user without megadna would, and compares it with gate.py's results.

    python -m megadna.hf.load_check TASK.json

In:  TASK.json: `weights` (folder), `config` (folder with config.json and tokenizer), `runs_code` (whether transformers
     may run our modeling files in it), `tokenizer` (whether transformers must load one from there), `renamed` (parts of
     tensor names, old and new), `rows` (megadna's row for every row of this vocabulary, -1: none), `bias_factor`; next
     to it ids.npy [B, S] in this vocabulary, mask.npy [B, S] and labels.npy [B, S] of the masked tokens in megadna's,
     fp32-N.npy (state N: the embeddings, each layer, the last norm), fp32-logits.npy and bf16-logits.npy.
Out: one JSON line of differences. From its own imports on, megadna and megatron cannot be imported, so an export that
     needs them fails. One layer is in memory at a time.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from megadna.engine.cpu import widened
from megadna.hf.weights import FolderWeights
from megadna.processes import end_with_launcher

for absent in ("megadna", "megatron"):
    sys.modules[absent] = None  # type: ignore[assignment]  # makes any later import of the name fail

from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer  # noqa: E402

TIE = 0.1
"""Positions whose best two logits differ by less than this share of the logits' standard deviation: a near tie, where
bf16 may pick either."""


class Widened(TorchFunctionMode):
    """bf16 products and attention as the engine computes them where a CPU has no instructions for them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.linear or func is F.scaled_dot_product_attention:
            wide = widened(*args)
            if wide[0] is not args[0]:
                return func(*wide, **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


class Streamed:
    """A masked language model on the meta device that gets the weights of one part at a time."""

    def __init__(self, config: Any, weights: FolderWeights, runs_code: bool) -> None:
        with torch.device("meta"):
            self.model = AutoModelForMaskedLM.from_config(config, trust_remote_code=runs_code).eval()
        self.weights = weights
        expected = {name for name, _ in self.model.named_parameters() if "decoder" not in name}
        if wrong := expected ^ set(weights.names()):
            raise ValueError(f"the folder's tensors are not those of its class: {', '.join(sorted(wrong)[:5])}")

    def _call(self, prefix: str, dtype: torch.dtype, *arguments: Any, **more: Any) -> Tensor:
        module: Any = self.model.get_submodule(prefix)
        names = [name for name, _ in module.named_parameters()]
        held = {name: self.weights.read(f"{prefix}.{name}").to(dtype) for name in names if "decoder" not in name}
        if prefix == "cls":
            held["predictions.decoder.weight"] = self.weights.read("bert.embeddings.word_embeddings.weight").to(dtype)
            if module.predictions.decoder.bias is not None:
                held["predictions.decoder.bias"] = held["predictions.bias"]
        for name, parameter in module.named_parameters():
            if name in held and held[name].shape != parameter.shape:
                raise ValueError(f"{prefix}.{name} is {list(held[name].shape)}, its class has {list(parameter.shape)}")
        output = functional_call(module, held, arguments, more)
        return output[0] if isinstance(output, tuple) else output

    def states(self, ids_BS: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        """The embeddings, the output of each layer (of the last: after the last norm), the logits; in fp32."""
        base = self.model.bert
        length = ids_BS.shape[1]
        ours: tuple[Any, ...] = ()
        if hasattr(base, "rotary"):
            rotary = type(base.rotary)(self.model.config)(length) if base.rotary is not None else None
            hidden = self._call("bert.embeddings", dtype, ids_BS)
            ours = (rotary, None, None, False)
        else:
            positions = torch.arange(length)[None]
            hidden = self._call(
                "bert.embeddings", dtype, input_ids=ids_BS, position_ids=positions, token_type_ids=ids_BS * 0
            )
        yield hidden.float()
        for layer in range(len(base.encoder.layer)):
            hidden = self._call(f"bert.encoder.layer.{layer}", dtype, hidden, *ours)
            if layer == len(base.encoder.layer) - 1 and hasattr(base.encoder, "ln"):
                hidden = self._call("bert.encoder.ln", dtype, hidden)
            yield hidden.float()
        yield self._call("cls", dtype, hidden).float()


def compare(task: dict[str, Any], folder: Path) -> dict[str, float]:
    """Largest differences in fp32, agreement in bf16."""
    config = AutoConfig.from_pretrained(task["config"], trust_remote_code=task["runs_code"])
    if task["tokenizer"]:
        tokenizer = AutoTokenizer.from_pretrained(task["config"], trust_remote_code=task["runs_code"])
        if len(tokenizer) > config.vocab_size:
            raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}")
    weights = FolderWeights(Path(task["weights"]), task["renamed"])
    streamed = Streamed(config, weights, task["runs_code"])
    ids_BS = torch.from_numpy(np.load(folder / "ids.npy"))
    rows = torch.tensor(task["rows"])
    bias = (task["bias_factor"] - 1) * weights.read("cls.predictions.bias").float()
    result = {"hidden": 0.0, "hidden_scale": 0.0}
    for number, state in enumerate(streamed.states(ids_BS, torch.float32)):
        if number <= config.num_hidden_layers:
            reference = torch.from_numpy(np.load(folder / f"fp32-{number}.npy"))
            result["hidden"] = max(result["hidden"], _difference(state, reference))
            result["hidden_scale"] = max(result["hidden_scale"], reference.abs().max().item())
    with Widened():
        *_, rough = streamed.states(ids_BS, torch.bfloat16)
    exact, rough = ((x + bias)[..., rows >= 0] for x in (state, rough))
    fp32, bf16 = (
        torch.from_numpy(np.load(folder / f"{kind}-logits.npy"))[..., rows[rows >= 0]] for kind in ("fp32", "bf16")
    )
    result["logits"] = _difference(exact, fp32)
    best = fp32.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > TIE * fp32.std()
    agree = rough.argmax(-1) == bf16.argmax(-1)
    result["agreement"] = agree[clear].float().mean().item() if clear.any() else 1.0
    column = {row: at for at, row in enumerate(rows[rows >= 0].tolist())}
    mask = torch.from_numpy(np.load(folder / "mask.npy"))
    labels = torch.tensor([column[row] for row in np.load(folder / "labels.npy")[mask.numpy()].tolist()])
    ours, theirs = (F.cross_entropy(x[mask], labels).item() for x in (rough, bf16))
    return result | {"nll": ours, "nll_reference": theirs}


def _difference(ours: Tensor, reference: Tensor) -> float:
    if ours.shape != reference.shape:
        raise ValueError(f"shapes {tuple(ours.shape)} and {tuple(reference.shape)} differ")
    worst = (ours - reference).abs().max().item()
    return worst if worst == worst else float("inf")  # NaN


if __name__ == "__main__":
    end_with_launcher()
    with torch.no_grad():
        path = Path(sys.argv[1])
        sys.stdout.write(json.dumps(compare(json.loads(path.read_text()), path.parent)) + "\n")
