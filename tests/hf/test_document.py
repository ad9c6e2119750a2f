"""The commands and programs of docs/huggingface.md run as they are written there."""

import pytest
from documented import ROOT, blocks_of, run_blocks

pytestmark = pytest.mark.slow
TRAIN = """
megadna train --config {config} --data.path {dataset} --output runs/first --data.sequence_length 128
  --data.num_workers 0 --model.num_layers 2 --model.hidden_size 64 --model.ffn_hidden_size 96 --train.steps 4
  --train.warmup_steps 1 --engine.num_processes 1 --checkpoint.interval 4 --validation.interval 0
  --validation.samples 16 --log.tensorboard false
"""


def test_every_block_of_the_document_runs(toy_dataset, tmp_path):
    blocks = blocks_of("huggingface.md")
    assert [language for language, _ in blocks] == ["sh", "python", "sh"]
    train = " ".join(TRAIN.format(config=ROOT / "configs" / "demo.yaml", dataset=toy_dataset).split())
    blocks[1] = ("python", blocks[1][1] + "assert embedding.ndim == 2")
    run_blocks([("sh", train), *blocks], tmp_path)
    first, again = (tmp_path / name / "model.safetensors" for name in ("model", "model-again"))
    assert first.read_bytes() == again.read_bytes()
