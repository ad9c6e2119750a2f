"""apex's norms are taken where NVIDIA's apex runs, and nothing else of that name is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megadna.model.layers import apex_kernel

NVIDIA = """
from torch.nn.functional import layer_norm, rms_norm

def fused_layer_norm_affine(input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False):
    return layer_norm(input, normalized_shape, weight, bias, eps)

def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    return rms_norm(input, normalized_shape, weight, eps)
"""
NAMES = ("fused_layer_norm_affine", "fused_rms_norm_affine")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that are found first; nothing of them is left behind."""
    monkeypatch.syspath_prepend(tmp_path)
    loaded = {name for name in sys.modules if name.partition(".")[0] == "apex"}
    kept = {name: sys.modules.pop(name) for name in loaded}
    apex_kernel.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        del sys.modules[name]
    sys.modules.update(kept)
    apex_kernel.cache_clear()


def write_apex(folder: Path, text: str) -> None:
    package = folder / "apex" / "normalization"
    package.mkdir(parents=True)
    (folder / "apex" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "fused_layer_norm.py").write_text(text)


def test_without_apex_torch_is_taken(packages: Path) -> None:
    assert [apex_kernel(name, "cpu") for name in NAMES] == [None, None]


def test_the_unrelated_apex_of_pypi_is_not_taken(packages: Path) -> None:
    (packages / "apex").mkdir()
    (packages / "apex" / "__init__.py").write_text("def main(global_config, **settings): ...\n")
    assert [apex_kernel(name, "cpu") for name in NAMES] == [None, None]


def test_an_apex_without_its_kernels_is_not_taken(packages: Path) -> None:
    """Built without its CUDA part it can be imported, and fails at the first call."""
    write_apex(packages, NVIDIA.replace("    return", "    import fused_layer_norm_cuda\n    return"))
    assert [apex_kernel(name, "cpu") for name in NAMES] == [None, None]


def test_apex_is_taken_where_it_runs(packages: Path) -> None:
    write_apex(packages, NVIDIA)
    x, weight, bias = torch.randn(3, 16), torch.randn(16), torch.randn(16)
    layer_norm, rms_norm = (apex_kernel(name, "cpu") for name in NAMES)
    assert layer_norm is not None and rms_norm is not None
    expected = torch.nn.functional.layer_norm(x, (16,), weight, bias, 1e-5)
    assert torch.equal(layer_norm(x, weight, bias, (16,), 1e-5), expected)
    assert torch.equal(rms_norm(x, weight, (16,), 1e-5), torch.nn.functional.rms_norm(x, (16,), weight, 1e-5))
