"""What a checkpoint may be loaded into: weights alone by another run, never tensors that are missing or differ."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from toy import losses, master_weights, metrics, run_training, toy_config

from megadna.config import Config
from megadna.errors import UserError


def refusal(work: Callable[..., Any], *arguments: Any) -> str:
    """Text of the UserError that it ends with; empty where it does not."""
    try:
        work(*arguments)
    except UserError as error:
        return str(error)
    return ""


def with_model(config: Config, **model: Any) -> Config:
    return replace(config, model=replace(config.model, **model))


def copy_weights(config: Config, source: Path, run: Path) -> None:
    """Load the weights of `source` into a new state of this layout, and save that as a checkpoint of `run`."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.checkpoint import load_weights
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        load_weights(state, source)
        CheckpointWriter(run, config, world, {}).save(state, {}, wait=True)


def load_whole(config: Config, source: Path) -> None:
    """Load a checkpoint, optimizer included, as a resume does."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.checkpoint import load_checkpoint
    from megadna.train.step import build_state

    with parallel_world(config.engine, config.parallel) as world:
        load_checkpoint(build_state(config, 16, world), source)


@pytest.fixture(scope="module")
def folder(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bf16 runs: `source` on tensor 2; `started` from its weights; `copied` weights of it under pipeline 2."""
    folder = tmp_path_factory.mktemp("loading")
    config = toy_config(toy_dataset, precision="bf16", tensor=2)
    source = folder / "source"
    new = with_model(replace(toy_config(toy_dataset, precision="bf16"), seed=99), rotary_interpolation=2.0)
    new = replace(new, checkpoint=replace(new.checkpoint, init_from=str(source)))
    other = toy_config(toy_dataset, precision="bf16", pipeline=2)
    run_ranks(run_training, 2, config, source)
    run_ranks(run_training, 1, new, folder / "started")
    run_ranks(copy_weights, 2, other, source / "checkpoints" / "step-00000006", folder / "copied")
    return folder


@pytest.mark.slow
def test_weights_alone_are_the_same_numbers_under_another_layout(folder: Path) -> None:
    expected = master_weights(folder / "source" / "checkpoints" / "step-00000006")
    found = master_weights(folder / "copied" / "checkpoints" / "step-00000000")
    assert found.keys() == expected.keys() and len(found) == 4 * 12 + 8
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert any((weight != weight.bfloat16()).any() for weight in expected.values())  # fp32, not what bf16 left of it


def test_a_run_from_weights_starts_at_step_0_and_says_where_from(folder: Path, toy_dataset: Path) -> None:
    lines, before = metrics(folder / "started"), metrics(folder / "source")
    assert lines[0]["step"] == 0 and "valid_bits_per_base" in lines[0]
    assert [line["consumed_samples"] for line in lines if "loss" in line] == [8 * step for step in range(1, 7)]
    assert losses(folder / "started")[0] < before[0]["loss"] - 0.05  # it knows what the source learnt
    checkpoint = folder / "source" / "checkpoints" / "step-00000006"
    saved = json.loads((folder / "started" / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert saved["init_from"] == str(checkpoint)
    assert f"init_from: {folder / 'source'}" in (folder / "started" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"num_layers": 3}, ("model.num_layers 4", "3")),
        ({"norm_placement": "post"}, ("model.norm_placement pre", "post")),
        ({"rotary_base": 500}, ("model.rotary_base 10000", "500")),
    ],
)
def test_weights_of_another_architecture_are_refused(
    model: dict[str, Any], words: tuple[str, str], folder: Path, toy_dataset: Path
) -> None:
    from megadna.train.checkpoint import check_weights

    checkpoint = folder / "source" / "checkpoints" / "step-00000006"
    check_weights(checkpoint, with_model(toy_config(toy_dataset), rotary_interpolation=8.0, dropout=0.1))
    with pytest.raises(UserError) as error:
        check_weights(checkpoint, with_model(toy_config(toy_dataset), **model))
    assert all(word in str(error.value) for word in words)


def test_a_missing_or_foreign_tensor_is_named(folder: Path, toy_dataset: Path) -> None:
    checkpoint = folder / "source" / "checkpoints" / "step-00000006"
    config = toy_config(toy_dataset, precision="bf16", pipeline=2)
    cases = {
        r"tensor encoder.layers.4.\S+ it holds none, this model has of shape": (2, with_model(config, num_layers=6)),
        r"tensor encoder.layers.2.\S+ it holds of shape \[.*\], this model has none": (
            2,
            with_model(config, num_layers=2),
        ),
        r"linear_fc1.bias it holds of shape \[256\], this model has of shape \[192\]": (
            1,
            with_model(toy_config(toy_dataset), ffn_hidden_size=96),
        ),
    }
    for words, (ranks, case) in cases.items():
        for message in run_ranks(refusal, ranks, load_whole, case, checkpoint):  # a stage that has all it wants too
            assert re.search(words, message) and "\n" not in message, message
