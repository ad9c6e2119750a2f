"""The commands and programs of docs/huggingface.md run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TRAIN = """
megadna train --config {config} --data.path {dataset} --output runs/first --data.sequence_length 128
  --data.num_workers 0 --model.num_layers 2 --model.hidden_size 64 --model.ffn_hidden_size 96 --train.steps 4
  --train.warmup_steps 1 --engine.num_processes 1 --checkpoint.interval 4 --validation.interval 0
  --validation.samples 16 --log.tensorboard false
"""


def test_every_block_of_the_document_runs(toy_dataset, tmp_path):
    text = (ROOT / "docs" / "huggingface.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "sh"]
    train = " ".join(TRAIN.format(config=ROOT / "configs" / "demo.yaml", dataset=toy_dataset).split())
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for kind, block in [("sh", train), *blocks]:
        command = (
            ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block + "\nassert embedding.ndim == 2"]
        )
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
    first, again = (tmp_path / name / "model.safetensors" for name in ("model", "model-again"))
    assert first.read_bytes() == again.read_bytes()
