"""Which attention backend runs here: what is installed, what the device and the precision allow.

flash-attn and Transformer Engine are used where installed and never required.
"""

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from megadna.errors import UserError

HALF = (torch.bfloat16, torch.float16)
MODULES = {"flash_attn": "flash_attn", "transformer_engine": "transformer_engine.pytorch"}
LARGEST_HEAD = 256
"""Head dimension beyond which the packages' kernels do not go."""


def choose_backend(wanted: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str:
    """`wanted`, or what `auto` picks: flash_attn where it runs, else sdpa. UserError that says why it cannot run."""
    if wanted == "auto":
        return "sdpa" if _obstacle("flash_attn", device, dtype, head_size) else "flash_attn"
    if obstacle := _obstacle(wanted, device, dtype, head_size):
        raise UserError(f"model.attention {wanted} cannot run: {obstacle}; use --model.attention auto")
    return wanted


def load_backend(module: str) -> ModuleType:
    """The package of a backend; ImportError where it is not installed."""
    return importlib.import_module(module)


@functools.cache
def load_varlen_attn() -> Callable[..., Any] | None:
    """torch's variable-length kernel; None before torch 2.10. Imported on a GPU alone: it loads torch's compiler."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _obstacle(backend: str, device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    if backend not in MODULES:
        return None
    if device.type != "cuda":
        return f"it needs a GPU, and this run is on {device.type}"
    if dtype not in HALF:
        return f"its kernels take bf16, and engine.precision makes it {str(dtype).removeprefix('torch.')}"
    if head_size > LARGEST_HEAD or head_size % 8:
        return f"its kernels take head dimensions up to {LARGEST_HEAD} that 8 divides, not {head_size}"
    try:
        load_backend(MODULES[backend])
    except ImportError as error:
        return f"{MODULES[backend]} cannot be imported ({error})"
    return None
