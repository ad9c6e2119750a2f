"""One training step with CUDA meaning the `meta` device: a tensor that was left on the CPU is an error there."""

from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from toy import toy_config

from megadna.config import Config


def forward_and_backward(configs: dict[str, tuple[int, Config]]) -> dict[str, str]:
    """The device that each case's gradients are on, after the micro-batches of one step."""
    from dataclasses import replace
    from functools import partial

    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from megadna.data.loader import train_batches
    from megadna.engine.distributed import imagined_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import _training_step, build_state

    found = {}
    for name, (size, config) in configs.items():
        tokenizer = build_tokenizer(config.tokenizer)
        with imagined_world(config.parallel, rank=0, size=size) as world:
            batches = train_batches(config, tokenizer, sequence_length=128, rank=0, size=1, consumed_samples=0)
            state = build_state(config, tokenizer.vocab_size, world)
            parts = config.parallel.tensor if config.parallel.sequence else 1
            totals = torch.zeros(2, dtype=torch.float64, device=world.device)
            get_forward_backward_func()(
                forward_step_func=partial(_training_step, world=world, num_parts=parts, totals=totals),
                data_iterator=(replace(batch, lengths_B=None) for batch in batches),  # full rows: lengths are data
                model=state.model_parts,
                num_microbatches=2,
                seq_length=128,
                micro_batch_size=2,
                forward_only=False,
            )
            buffers = {buffer.grad_data.device.type for chunk in state.model_parts for buffer in chunk.buffers}
            found[name] = ", ".join(sorted(buffers))
    return found


CASES: dict[str, tuple[int, dict[str, Any], str]] = {
    "one rank, bf16": (1, {}, "bf16"),
    "tensor 2, sequence, fp32": (2, {"tensor": 2, "sequence": True}, "fp32"),
    "context 2, bf16": (2, {"context": 2}, "bf16"),
    "recompute full, fp16": (1, {"recompute": "full"}, "fp16"),
}


@pytest.fixture(scope="module")
def devices(toy_dataset: Path) -> dict[str, str]:
    configs = {
        name: (size, toy_config(toy_dataset, precision=precision, **parallel))
        for name, (size, parallel, precision) in CASES.items()
    }
    return run_ranks(forward_and_backward, 1, configs)[0]


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_a_step_lives_on_the_device(name: str, devices: dict[str, str]) -> None:
    assert devices[name] == "meta"
