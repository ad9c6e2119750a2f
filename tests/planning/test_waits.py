"""How often the host waits for the device in a training step: once, whatever the layout.

The steps run on torch's `meta` device, so what is on the device and what on the host can be told apart without a GPU.
Counted are the operations that make CUDA's host wait: a scalar or a tensor read, a copy to the device that may not run
by itself, and what has a size that only the device knows.
"""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from communications import RECORDING
from ranks import run_ranks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import toy_config

from megadna.config import Config

SIZED_BY_DATA = ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")


class Literals(TorchFunctionMode):
    """Counts torch.tensor(numbers, device=...): made on the host and copied, which torch dispatches nowhere."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found["copy to the device"] += func is _tensor and result.is_meta
        return result


_tensor = torch.tensor  # the engine replaces it by one that redirects to another device


class Waits(TorchDispatchMode):
    """Counts by name the operations for which the host waits.

    Read from the device, a scalar is 0 (gradients did not overflow), a tensor ones (their norm is clipped).
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.literals = Literals(self.found)

    def __enter__(self) -> "Waits":
        self.literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.literals.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        on_device = any(tensor.is_meta for tensor in tensors)
        if name == "_local_scalar_dense" and on_device:
            self.found["read of a scalar"] += 1
            return 0.0
        if name in ("_to_copy", "copy_"):
            device = torch.device(kwargs.get("device") or tensors[0].device)
            if on_device and device.type == "cpu":
                self.found["copy to the host"] += 1
                return torch.ones(tensors[-1].shape, dtype=kwargs.get("dtype") or tensors[-1].dtype)
            to_device = device.type == "meta" and not tensors[-1].is_meta
            if to_device and not (kwargs.get("non_blocking") or args[2:3] == (True,)):
                self.found["copy to the device"] += 1
        if on_device and (name in SIZED_BY_DATA or (name.startswith(("index", "_index_put")) and by_mask(args))):
            self.found[name] += 1
        return func(*args, **kwargs)


def by_mask(arguments: tuple) -> bool:
    """Whether an index is a mask; not a single number written through one, which CUDA fills in without waiting."""
    indices = arguments[1] if isinstance(arguments[1], list) else []
    fills = len(arguments) > 2 and arguments[2].numel() == 1
    return not fills and any(index is not None and index.dtype == torch.bool for index in indices)


def count(configs: dict[str, tuple[int, Config]]) -> dict[str, dict[str, int]]:
    """Waits of the second step of each case."""
    from dataclasses import replace
    from itertools import cycle

    from megadna.data.loader import train_batches
    from megadna.engine.distributed import imagined_world
    from megadna.engine.optimizer import _parts
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    found = {}
    for name, (size, config) in configs.items():
        tokenizer = build_tokenizer(config.tokenizer)
        with imagined_world(config.parallel, rank=0, size=size, backend=RECORDING) as world:
            batches = train_batches(config, tokenizer, sequence_length=128, rank=0, size=1, consumed_samples=0)
            rows = cycle([replace(next(batches), lengths_B=None) for _ in range(4)])  # full rows: lengths are data
            state = build_state(config, tokenizer.vocab_size, world)
            for part in _parts(state.optimizer):
                part.optimizer.step = lambda: None  # fused AdamW runs on CUDA and the CPU; it reads nothing
            for _ in range(2):
                with Waits() as waits:
                    train_step(state, rows, config, world, sequence_length=128, stop=lambda: True)
            found[name] = dict(+waits.found)
    return found


CASES: dict[str, tuple[int, dict[str, Any], str]] = {
    "one rank, bf16": (1, {}, "bf16"),
    "one rank, fp32": (1, {}, "fp32"),
    "one rank, fp16": (1, {}, "fp16"),
    "data 2, bf16, overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}, "bf16"),
    "tensor 2, sequence, bf16": (2, {"tensor": 2, "sequence": True}, "bf16"),
    "pipeline 2, bf16": (2, {"pipeline": 2}, "bf16"),
    "context 2, recompute, bf16": (2, {"context": 2, "recompute": "full"}, "bf16"),
}


@pytest.fixture(scope="module")
def waits(toy_dataset: Path) -> dict[str, dict[str, int]]:
    configs = {
        name: (size, toy_config(toy_dataset, precision=precision, **parallel))
        for name, (size, parallel, precision) in CASES.items()
    }
    return run_ranks(count, 1, configs)[0]


@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_once_a_step(name: str, waits: dict[str, dict[str, int]]) -> None:
    overflow = {"read of a scalar": 1} if "fp16" in name else {}  # megatron's flag for the loss scale
    assert waits[name] == {"copy to the host": 1, **overflow}


@pytest.mark.parametrize(
    ("wait", "operation"),
    [
        ("read of a scalar", lambda x: x.sum().item()),
        ("read of a scalar", lambda x: bool(x.isnan().any())),
        ("copy to the host", lambda x: x.tolist()),
        ("copy to the host", lambda x: x.cpu()),
        ("copy to the device", lambda x: torch.ones(3).to(x.device)),
        ("copy to the device", lambda x: x.copy_(torch.ones(3))),
        ("copy to the device", lambda x: torch.tensor([1.0], device=x.device)),
        ("nonzero", lambda x: x.nonzero()),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("index", lambda x: x[x > 0]),
        ("index_put_", lambda x: x.__setitem__(x > 0, x[:2])),
    ],
)
def test_each_kind_of_wait_is_counted(wait: str, operation: Any) -> None:
    sizes_unknown = contextlib.suppress(RuntimeError, NotImplementedError)  # where they depend on data: there is none
    with Waits() as waits, sizes_unknown:
        operation(torch.ones(3, device="meta"))
    assert +waits.found == {wait: 1}


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: x.masked_fill_(x > 0, 2.0),
        lambda x: x.__setitem__(x > 0, 2.0),
        lambda x: x[x.long()],
        lambda x: torch.ones(3).nonzero(),  # on the host
        lambda x: torch.ones(3).sum().item(),
    ],
)
def test_what_the_device_does_by_itself_is_not(operation: Any) -> None:
    with Waits() as waits:
        operation(torch.ones(3, device="meta"))
    assert +waits.found == {}
