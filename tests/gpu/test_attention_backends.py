"""Every attention backend that this GPU machine can run agrees with the formula written out, forward and backward."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megadna.errors import UserError
from megadna.model.attention import TransformerEngineAttention, choose_backend, eager, flash, sdpa
from megadna.train.step import packed_segments, padded_segments

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GPU = torch.device("cuda")
LENGTH = 200
ROWS = ("full", "padded", "packed")


def segments(rows: str):
    if rows == "padded":
        return padded_segments(torch.tensor([LENGTH, 131, 7]), LENGTH, GPU)
    if rows == "packed":
        return packed_segments(torch.tensor([0, 17, 18, 200, 350, 400, 600], dtype=torch.int32), GPU)
    return None


def attention(backend: str, head_size: int, groups: int):
    """The function of a backend, for 8 heads."""
    if backend != "transformer_engine":
        return {"eager": eager, "sdpa": sdpa, "flash_attn": flash}[backend]
    config = SimpleNamespace(
        attention_dropout=0.0,
        num_attention_heads=8,
        num_query_groups=groups,
        kv_channels=head_size,
        tensor_model_parallel_size=1,
    )
    return TransformerEngineAttention(config, 1)


def forward_and_backward(backend: str, dtype: torch.dtype, head_size: int, groups: int, rows: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(LENGTH, 3, heads, head_size, generator=generator).to(GPU, dtype).requires_grad_()
        for heads in (8, groups, groups)
    ]
    weight = torch.randn(LENGTH, 3, 8, head_size, generator=generator).to(GPU)
    output = attention(backend, head_size, groups)(*inputs, segments(rows), 0.0)
    return [output, *torch.autograd.grad((output.float() * weight).sum(), inputs)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("head_size", "groups"), [(64, 8), (128, 8), (136, 8), (64, 2)])
@pytest.mark.parametrize("backend", ["sdpa", "flash_attn", "transformer_engine"])
def test_backend_equals_eager_in_bf16(backend: str, head_size: int, groups: int, rows: str) -> None:
    try:
        choose_backend(backend, GPU, torch.bfloat16, head_size)
    except UserError as error:
        pytest.skip(str(error))
    expected = forward_and_backward("eager", torch.bfloat16, head_size, groups, rows)
    found = forward_and_backward(backend, torch.bfloat16, head_size, groups, rows)
    for result, reference in zip(found, expected, strict=True):
        assert (result - reference).float().norm() < 1e-2 * reference.float().norm()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("groups", [8, 2])
def test_sdpa_equals_eager_in_fp32(groups: int, rows: str) -> None:
    expected = forward_and_backward("eager", torch.float32, 64, groups, rows)
    found = forward_and_backward("sdpa", torch.float32, 64, groups, rows)
    for result, reference in zip(found, expected, strict=True):
        assert (result - reference).norm() < 1e-5 * reference.norm()


def test_auto_takes_what_is_installed() -> None:
    chosen = choose_backend("auto", GPU, torch.bfloat16, 64)
    try:
        import flash_attn  # noqa: F401

        assert chosen == "flash_attn"
    except ImportError:
        assert chosen == "sdpa"
    assert choose_backend("auto", GPU, torch.float32, 64) == "sdpa"


def test_rows_cost_linear_memory() -> None:
    """Peak memory of sdpa at four times the length is four times as much, not sixteen."""
    peaks = []
    for length in (4000, 16000):
        inputs = [torch.randn(length, 1, 8, 64, device=GPU, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        sdpa(*inputs, None, 0.0).sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 4.5 * peaks[0]
