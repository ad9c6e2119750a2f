"""The GPU benchmark: silent without a GPU, its cases can be built, and its arithmetic holds where it can run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"

MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import bench_gpu
for preset, (rows, layers) in bench_gpu.CASES.items():
    config = bench_gpu.case_config(preset, rows, layers)
    assert config.train.global_batch_size == rows and (layers is None or config.model.num_layers == layers)
config = bench_gpu.case_config("megadna-86m", 16, None, dry_run=True)
rows = []
for kernel, found in bench_gpu.measure(config, bench_gpu.KERNELS, steps=2):
    found |= bench_gpu.predicted(config, "NVIDIA H100 80GB HBM3")
    rows.append({"preset": "toy", "kernel": kernel, "mfu_percent": None, **found})
print(json.dumps({"rows": rows, "lines": [bench_gpu.line_of(row) for row in rows]}))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the benchmark would run for minutes")
def test_without_a_gpu_it_says_so() -> None:
    result = subprocess.run([sys.executable, str(TOOLS / "bench_gpu.py")], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "no GPU here: nothing to measure\n")


def test_a_measurement_adds_up() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE, str(TOOLS)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    found = {row["kernel"]: row for row in measured["rows"]}
    row = found["sdpa"]
    assert row["forward_ms"] + row["backward_ms"] + row["optimizer_ms"] == pytest.approx(row["step_ms"])
    assert row["tokens_per_second"] == pytest.approx(2 * 64 / (row["step_ms"] / 1e3))
    assert 0 < row["tflops"] < 1 and row["planned_step_ms"] > 0
    assert sum(row["shares"].values()) == pytest.approx(1, abs=0.05)
    assert measured["lines"][0].startswith("toy, sdpa: ")
    assert "it needs a GPU" in found["flash_attn"]["left_out"]


NAMES = {
    "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7": "attention",
    "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN": "matrices",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "matrices",
    "void at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>": "optimizer",
    "void at::native::(anonymous namespace)::GammaBetaBackwardCUDAKernelTemplate<c10::BFloat16, float>": "other",
    "triton_poi_fused_add_mul_silu_0": "other",
    "Memcpy HtoD (Pinned -> Device)": "other",
}


def test_kernels_are_told_apart_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_gpu

    assert {name: bench_gpu.kind_of(name) for name in NAMES} == NAMES
