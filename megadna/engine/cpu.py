"""megatron-core on a CPU: its CUDA-only calls redirected, when and only when no GPU is used.

megatron-core 0.16 names CUDA literally (`device="cuda"`, `torch.cuda.current_device()`, `param.type() ==
"torch.cuda.FloatTensor"`) in its optimizer, gradient buffers, random states, schedules and checkpointing.
`redirect_cuda` replaces those calls by their equivalents on another device, so that the same engine runs on gloo;
nothing else in megadna depends on it.

Only the few functions that megatron calls this way are replaced: models compute with torch's own, at full speed.
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch

from megadna.processes import has_bf16_instructions

_FACTORIES = ("tensor", "zeros", "ones", "empty", "empty_like")
"""torch functions that megatron-core calls with device="cuda"."""
_installed: list[torch.device] = []


def redirect_cuda(target: torch.device) -> None:
    """Install the redirection to `target` for the rest of the process; the second call does nothing.

    target: the CPU, or `meta`, on which nothing is allocated and a tensor left on another device is an error. Call it
    before any megatron-core model is built. It cannot be undone: a process uses one device.
    """
    if _installed:
        assert _installed == [target], f"cuda already means {_installed[0]} in this process"
        return
    for package in ("transformer_engine", "apex"):
        # megatron uses their optimizer and norms if they can be imported, but these need a GPU
        sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    from megatron.core import jit
    from megatron.core.tensor_parallel import layers
    from megatron.core.tensor_parallel import random as megatron_random

    torch.cuda.current_device = lambda: target  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.get_rng_state = lambda device="cuda": torch.get_rng_state()
    torch.cuda.set_rng_state = lambda new_state, device="cuda": torch.set_rng_state(new_state)
    torch.cuda.manual_seed = torch.manual_seed  # type: ignore[assignment]
    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda new_state, *args, **kwargs: torch.set_rng_state(new_state)
    # It warns that the CPU random state changes, which is intended here.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
    jit.disable_jit_fuser()  # torch.compile would need a C++ compiler at run time
    if "torch._dynamo" in sys.modules:  # else nothing is decorated with torch.compile yet, and this import takes 1.4 s
        torch.compiler.set_stance("force_eager")
    name = "linear_with_grad_accumulation_and_async_allreduce"
    setattr(layers, name, _plain_where_local(getattr(layers, name)))
    settle_kernels()
    with target:  # `with device:` lists the functions that it acts on at its first use: those must be the originals
        torch.empty(0)
    for name in _FACTORIES:
        setattr(torch, name, _on(target, getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.Tensor.type = _type_as_on_cuda  # type: ignore[assignment, method-assign]
    _installed.append(target)


def settle_kernels() -> None:
    """Call MKL's vector functions once on this thread only.

    If the first call of one comes from several threads, a thread may get a kernel with errors of 1e-4 in that call
    (https://github.com/pytorch/pytorch/issues/188792); it happened to the rotary angles of half of the positions.
    """
    for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
        function(torch.ones(1, device="cpu"))


def _on(target: torch.device, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`function` with `target` instead of every CUDA device."""

    @functools.wraps(function)
    def redirected(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is not None and str(device).startswith("cuda"):
            device = target
        return function(*args, device=device, **kwargs)

    return redirected


def _plain_where_local(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`original`, but torch's own if nothing is communicated: it adds the bias in the same pass over memory."""

    @functools.wraps(original)
    def linear(
        input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if kwargs["allreduce_dgrad"] or kwargs["sequence_parallel"]:
            return original(input, weight, bias, *args, **kwargs)
        return torch.nn.functional.linear(*widened(input, weight, bias)).to(input.dtype)

    return linear


def widened(*tensors: torch.Tensor | None) -> list[Any]:
    """`tensors`, converted from bf16 to fp32 on a CPU without bf16 instructions.

    There torch's matrix products and attention take three to five times as long in bf16. They accumulate in fp32 either
    way, so results rounded to bf16 differ only by the order of sums.
    """
    wide = (x is not None and x.is_cpu and x.dtype == torch.bfloat16 and not has_bf16_instructions() for x in tensors)
    return [x.float() if is_wide and x is not None else x for x, is_wide in zip(tensors, wide, strict=True)]


_type = torch.Tensor.type


def _type_as_on_cuda(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """torch.Tensor.type; without arguments the name for a tensor on a GPU."""
    found = _type(tensor, *args, **kwargs)
    return found if args or kwargs else f"torch.cuda.{found.rpartition('.')[-1]}"
