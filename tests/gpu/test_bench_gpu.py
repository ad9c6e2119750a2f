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
from dataclasses import replace
import bench_gpu
from megadna.config import EngineConfig, ModelConfig
for preset, (rows, layers) in bench_gpu.CASES.items():
    config = bench_gpu.case_config(preset, rows, layers, "sdpa")
    assert config.train.global_batch_size == rows and (layers is None or config.model.num_layers == layers)
config = bench_gpu.case_config("megadna-86m", 2, 2, "sdpa")
config = replace(
    config,
    data=replace(config.data, sequence_length=64),
    model=ModelConfig(num_layers=2, hidden_size=64, num_attention_heads=4, ffn_hidden_size=128),
    engine=EngineConfig(device="cpu"),
)
found = bench_gpu.measure(config, steps=2)
table = bench_gpu.markdown([{"preset": "toy", "attention": "sdpa", "mfu_percent": None, **found}], "a CPU")
print(json.dumps({"found": found, "table": table}))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the benchmark would run for minutes")
def test_without_a_gpu_it_says_so() -> None:
    result = subprocess.run([sys.executable, str(TOOLS / "bench_gpu.py")], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "no GPU here: nothing to measure\n")


def test_a_measurement_adds_up() -> None:
    result = subprocess.run([sys.executable, "-c", MEASURE, str(TOOLS)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout.splitlines()[-1])
    found = measured["found"]
    parts = found["forward_ms"] + found["backward_ms"] + found["optimizer_ms"]
    assert parts == pytest.approx(found["step_ms"])
    assert found["tokens_per_second"] == pytest.approx(2 * 64 / (found["step_ms"] / 1e3))
    assert 0 < found["tflops"] < 1
    assert "| toy | sdpa |" in measured["table"]
