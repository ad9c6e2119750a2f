"""Checkpoints under every kind of layout: saved by one, resumed by another, the same run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from toy import master_weights, metrics, run_training, toy_config

RESUMED: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "context 2, recompute full": (2, {"context": 2, "recompute": "full"}),
    "pipeline 3, uneven": (3, {"pipeline": 3, "pipeline_layers": [1, 1, 2]}),
    "tensor 2, data 2, overlap": (4, {"tensor": 2, "overlap_grad_reduce": True, "overlap_param_gather": True}),
}


@pytest.fixture(scope="module")
def interleaved(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on an interleaved pipeline, checkpoints at 3 and 6."""
    run = tmp_path_factory.mktemp("layouts") / "interleaved"
    run_ranks(run_training, 2, toy_config(toy_dataset, pipeline=2, virtual_pipeline=2), run)
    return run


@pytest.fixture(scope="module")
def runs(interleaved: Path, toy_dataset: Path) -> dict[str, Path]:
    """Its checkpoint of step 3 resumed on the other layouts."""
    found = {"interleaved": interleaved}
    for name, (num_ranks, parallel) in RESUMED.items():
        found[name] = interleaved.with_name(name)
        shutil.copytree(interleaved, found[name])
        shutil.rmtree(found[name] / "checkpoints" / "step-00000006")
        run_ranks(run_training, num_ranks, toy_config(toy_dataset, **parallel), found[name], True)
    return found


def tensors(weights: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name."""
    reader = FileSystemReader(weights)
    found = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load_shards(found, storage_reader=reader, no_dist=True)
    return found


def test_each_saved_master_weight_is_the_weight(interleaved: Path) -> None:
    """fp32: the optimizer's copy and the model's are one number. The last stage has several gradient buckets."""
    found = tensors(interleaved / "checkpoints" / "step-00000003" / "weights")
    names = [name for name in found if not name.startswith("optimizer.")]
    assert len(names) == 4 * 12 + 8
    for name in names:
        assert torch.equal(found[name], found[f"optimizer.state.param.{name}"]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_an_interleaved_run_goes_on_under_another_layout(name: str, runs: dict[str, Path]) -> None:
    found, expected = metrics(runs[name]), metrics(runs["interleaved"])
    keys = ("loss", "grad_norm", "valid_bits_per_base", "valid_accuracy")
    for line, other in zip(found, expected, strict=True):
        assert line["step"] == other["step"]
        for key in keys:
            assert line.get(key, 0.0) == pytest.approx(other.get(key, 0.0), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_the_last_checkpoints_hold_the_same_weights_under_the_same_names(name: str, runs: dict[str, Path]) -> None:
    found, expected = (master_weights(runs[one] / "checkpoints" / "step-00000006") for one in (name, "interleaved"))
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        difference = (found[key] - weight).square().mean().sqrt()
        assert difference <= 1e-3 * weight.square().mean().sqrt() + 1e-5, key
        assert found[key].dtype == torch.float32
