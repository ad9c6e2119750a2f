"""Training on a GPU equals training on the CPU; a checkpoint goes from one to the other. Needs one GPU."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from toy import losses, metrics, run_training, toy_config

from megadna.config import Config
from megadna.errors import UserError
from megadna.model.attention import choose_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def config_on(dataset: Path, device: str, *, precision: str = "fp32") -> Config:
    """Five steps of the toy run, checkpoint at 3."""
    config = toy_config(dataset, precision=precision)
    return replace(
        config,
        engine=replace(config.engine, device=device),
        train=replace(config.train, steps=5),
    )


def train(config: Config, run: Path, *, resume: bool = False) -> Path:
    run_ranks(run_training, 1, config, run, resume)
    return run


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 on the CPU and on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    return {device: train(config_on(toy_dataset, device), folder / device) for device in ("cpu", "cuda")}


def stopped_at_three(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-00000005")
    return copy


def test_five_fp32_steps_equal_the_cpu(runs: dict[str, Path]) -> None:
    assert losses(runs["cuda"]) == pytest.approx(losses(runs["cpu"]), rel=1e-3)
    norms = [[line["grad_norm"] for line in metrics(run) if "loss" in line] for run in runs.values()]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_with_the_distributed_optimizer(
    precision: str, runs: dict[str, Path], toy_dataset: Path, tmp_path: Path
) -> None:
    run = train(config_on(toy_dataset, "cuda", precision=precision), tmp_path / "run")
    assert losses(run) == pytest.approx(losses(runs["cpu"]), rel=2e-2)


def waits(config: Config) -> list[str]:
    """What torch warns of in the third step: operations for which the host waited."""
    from itertools import cycle

    from megadna.data.loader import train_batches
    from megadna.engine.distributed import parallel_world
    from megadna.tokenizer.build import build_tokenizer
    from megadna.train.step import build_state, train_step

    tokenizer = build_tokenizer(config.tokenizer)
    with parallel_world(config.engine, config.parallel) as world:
        batches = train_batches(config, tokenizer, sequence_length=128, rank=0, size=1, consumed_samples=0)
        rows = cycle([next(batches) for _ in range(4)])
        state = build_state(config, tokenizer.vocab_size, world)
        for _ in range(2):
            train_step(state, rows, config, world, sequence_length=128)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            train_step(state, rows, config, world, sequence_length=128)
            torch.cuda.set_sync_debug_mode("default")
        return [f"{warning.filename}:{warning.lineno} {warning.message}" for warning in found]


def test_the_host_waits_once_a_step(toy_dataset: Path) -> None:
    """As tests/planning/test_waits.py counts it without a GPU."""
    found = run_ranks(waits, 1, config_on(toy_dataset, "cuda", precision="bf16"))[0]
    assert len([line for line in found if "synchroniz" in line]) <= 1, found


def saved_tensors(run: Path) -> dict[str, tuple[int, ...]]:
    """Name and full shape of every tensor in the last checkpoint."""
    entries = FileSystemReader(run / "checkpoints" / "step-00000005" / "weights").read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


@pytest.mark.parametrize("backend", ["sdpa", "flash_attn", "transformer_engine", "eager"])
def test_checkpoints_have_the_same_names_under_every_backend(
    backend: str, runs: dict[str, Path], toy_dataset: Path, tmp_path: Path
) -> None:
    """Whatever norms and Adam are installed: the CPU's are torch's."""
    try:
        choose_backend(backend, torch.device("cuda"), torch.bfloat16, 16)
    except UserError as error:
        pytest.skip(str(error))
    config = config_on(toy_dataset, "cuda", precision="bf16")
    run = train(replace(config, model=replace(config.model, attention=backend)), tmp_path / "run")
    assert saved_tensors(run) == saved_tensors(runs["cpu"])


def fused_norms() -> dict[str, float]:
    """Largest relative difference of apex's norms from torch's, forward and backward, in bf16; empty without apex."""
    from megadna.model.layers import apex_kernel

    found = {}
    for name in ("fused_layer_norm_affine", "fused_rms_norm_affine"):
        kernel = apex_kernel(name, "cuda")
        if kernel is None:
            continue
        x = torch.randn(64, 3, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight, bias = (torch.randn(256, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        if name == "fused_layer_norm_affine":
            pairs = kernel(x, weight, bias, (256,), 1e-5), torch.nn.functional.layer_norm(x, (256,), weight, bias, 1e-5)
            inputs = [x, weight, bias]
        else:
            pairs = kernel(x, weight, (256,), 1e-5), torch.nn.functional.rms_norm(x, (256,), weight, 1e-5)
            inputs = [x, weight]
        results = [[y, *torch.autograd.grad(y.float().square().sum(), inputs)] for y in pairs]
        found[name] = max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(*results, strict=True))
    return found


def test_fused_norms_equal_those_of_torch() -> None:
    found = fused_norms()
    if not found:
        pytest.skip("NVIDIA's apex is not installed")
    assert max(found.values()) < 1e-2


@pytest.mark.parametrize(("saved", "loaded"), [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_a_checkpoint_goes_on_there(
    saved: str, loaded: str, runs: dict[str, Path], toy_dataset: Path, tmp_path: Path
) -> None:
    run = stopped_at_three(runs[saved], tmp_path / "run")
    train(config_on(toy_dataset, loaded), run, resume=True)
    assert losses(run) == pytest.approx(losses(runs["cpu"]), rel=1e-3)
