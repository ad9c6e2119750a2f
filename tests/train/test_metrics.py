"""What a run leaves to read: metrics.jsonl, TensorBoard, Weights & Biases, log.txt; resumed or not."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import preloaded
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import stopped_copy
from toy import metrics, toy_config

from megadna.arguments import dump_config
from megadna.config import Config, LogConfig
from megadna.data.batch import collate
from megadna.data.masking import Masked
from megadna.errors import UserError
from megadna.log import log_file, setup_logging
from megadna.model.shapes import peak_tflops, training_flops
from megadna.tokenizer.base import NucleotideTokenizer
from megadna.train import metrics as metrics_module
from megadna.train.loop import TIMING_KEYS
from megadna.train.metrics import Metrics, check_log


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every TensorBoard tag."""
    accumulator = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def expected_events(run: Path) -> dict[str, Any]:
    """What TensorBoard must hold, from metrics.jsonl."""
    lines, series = read_lines(run), {}
    for tag in sorted({key for line in lines for key in line if line[key] is not None} - {"step"}):
        pairs = [(line["step"], line[tag]) for line in lines if line.get(tag) is not None]
        series[tag] = [(step, pytest.approx(value, rel=1e-6)) for step, value in pairs]
    return series


def history(file: Path) -> list[dict[str, Any]]:
    """Rows of an offline run of Weights & Biases."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    store, rows = DataStore(), []
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item})
    return rows


def train(config: Config, run: Path, *options: str) -> None:
    yaml = run.with_suffix(".yaml")
    yaml.write_text(dump_config(config))
    command = [preloaded.python(), "-m", "megadna", "train", "--config", str(yaml), "--output", str(run), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr


@pytest.fixture(scope="module")
def config(toy_dataset: Path) -> Config:
    return replace(toy_config(toy_dataset), log=LogConfig(wandb=True))


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with every sink, checkpoints at 3 and 6."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(config, run)
    return run


@pytest.fixture(scope="module")
def resumed(config: Config, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, lost after step 5 and resumed from step 3."""
    run = stopped_copy(whole, tmp_path_factory.mktemp("resumed") / "run")
    train(config, run, "--resume")
    return run


def test_a_training_line_holds_these_keys_and_they_fit_each_other(whole: Path, config: Config) -> None:
    lines = [line for line in read_lines(whole) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    exact = {"step", "loss", "grad_norm", "lr", "epoch", "masking_fraction", "padded_fraction", "attended_tokens"}
    exact |= {"consumed_samples", "consumed_bases", "failed_saves"}
    for line in lines:
        assert set(line) == exact | set(TIMING_KEYS) - {"mfu"}  # a CPU has no peak to compare with
        assert line["masking_fraction"] == 0.15 and line["epoch"] > 0
        assert 100 < line["attended_tokens"] <= 128
        assert line["tokens_per_second"] == line["tokens_per_second_per_gpu"]
        flops = training_flops(config.model, 16, 128, predicted=0.15) / 128
        full = flops * line["tokens_per_second"] / 1e12
        real = full * (1 - line["padded_fraction"])
        less = 0.999 * real * line["attended_tokens"] / 128  # shorter rows cost less attention
        assert less < line["tflops_per_gpu"] <= 1.000001 * real
        assert 0 < line["data_wait_seconds"] < 8 * 128 / line["tokens_per_second"]
        assert 100 < line["memory_mib"] < 10_000
    assert any(line["padded_fraction"] > 0 for line in lines)  # the last window of a chunk of 512 has 10 tokens
    stalls = [line["save_stall_seconds"] for line in lines]
    # Step 3 is copied, and sealed when its writer is done, a step later; the last step waits for its own.
    assert max(range(5), key=stalls.__getitem__) in (3, 4)


def test_a_resumed_run_repeats_all_but_the_timing_keys(whole: Path, resumed: Path) -> None:
    assert metrics(resumed) == metrics(whole)


def test_tensorboard_holds_the_same_numbers_and_no_step_twice(whole: Path, resumed: Path) -> None:
    for run in (whole, resumed):
        assert events(run) == expected_events(run)
    assert {"loss", "valid_bits_per_base", "tokens_per_second", "data_wait_seconds"} <= events(resumed).keys()


def test_tensorboard_forgets_steps_that_are_rolled_back(tmp_path: Path, config: Config) -> None:
    sinks = Metrics(tmp_path, replace(config, log=LogConfig()), first_step=0)
    numbers = {"grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 1.0}
    for step in (1, 2, 3):
        sinks.training(step, {"loss": float("nan") if step == 3 else 5.0 - step, **numbers})
    sinks.go_back(1)
    for step in (2, 3):
        sinks.training(step, {"loss": 8.0 + step, **numbers})
    sinks.close()
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [(1, 4.0), (2, 10.0), (3, 11.0)]
    assert events(tmp_path) == expected_events(tmp_path)


def test_weights_and_biases_offline_holds_every_line(whole: Path, resumed: Path) -> None:
    file = next(whole.glob("wandb/offline-run-*/*.wandb"))
    rows = [{key: value for key, value in row.items() if not key.startswith("_")} for row in history(file)]
    assert rows == read_lines(whole)
    identity = (whole / "wandb" / "id").read_text()
    assert file.name == f"run-{identity}.wandb"
    files = sorted(resumed.glob(f"wandb/offline-run-*/run-{identity}.wandb"))
    assert [[row["step"] for row in history(file) if "loss" in row] for file in files] == [
        [1, 2, 3, 4, 5, 6],
        [4, 5, 6],
    ]


def test_log_txt_holds_plain_dated_lines_of_both_starts(resumed: Path) -> None:
    text = (resumed / "log.txt").read_text()
    lines = text.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines) and "\x1b" not in text
    steps = [int(match) for match in re.findall(r"step (\d+)/6, loss", text)]
    assert steps == [1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert "resuming" in text


def test_log_file_keeps_debug_lines_and_what_ended_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, path = logging.getLogger("megadna.test"), tmp_path / "log.txt"
    setup_logging()
    with log_file(path):
        log.debug("step %d", 1)
    with pytest.raises(UserError), log_file(path):
        raise UserError("train.lr is odd")
    monkeypatch.setenv("RANK", "1")
    with log_file(path):
        log.info("another rank")
    log.info("afterwards")
    assert [line[20:] for line in path.read_text().splitlines()] == ["step 1", "ended by UserError: train.lr is odd"]


def test_beside_a_progress_bar_the_steps_still_go_to_log_txt(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    config = replace(config, train=replace(config.train, steps=100), log=LogConfig(tensorboard=False, interval=10))
    setup_logging()
    with log_file(tmp_path / "log.txt"):
        sinks = Metrics(tmp_path, config, first_step=0)
        for step in filter(sinks.is_due, range(1, 101)):
            numbers = {"loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_second": 1.0}
            sinks.training(step, numbers)
        sinks.close()
    text = (tmp_path / "log.txt").read_text()
    assert "step 10/100, loss 1.0000, lr 1.0e-3, 1 tokens/s, " in text and "left" in text
    assert len(read_lines(tmp_path)) == 10


def test_the_lines_of_a_long_run_fit_80_columns(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(metrics_module.log, "info", lambda text, *values: heard.append(text % values))
    monkeypatch.setattr(metrics_module.time, "monotonic", iter([0.0, 1.0, 5_000.0]).__next__)
    config = replace(config, train=replace(config.train, steps=400_000), log=LogConfig(tensorboard=False))
    sinks = Metrics(tmp_path, config, first_step=100_000)
    numbers = {"loss": 12.34567, "grad_norm": 1.0, "lr": 4e-4, "tokens_per_second": 123_456.0}
    sinks.training(160_000, numbers)
    sinks.training(200_000, {**numbers, "tokens_per_second": 7_350.0})
    sinks.validation(
        200_000,
        {"valid_bits_per_base": 1.84602, "valid_bits_per_base_se": 0.00459, "valid_accuracy": 0.397},
        "base",
    )
    sinks.close()
    assert heard == [
        "step 160000/400000, loss 12.3457, lr 4.0e-4, 123 k tokens/s, 4 s left",
        "step 200000/400000, loss 12.3457, lr 4.0e-4, 7,350 tokens/s, 2.8 h left",
        "step 200000, valid 1.8460 ± 0.0046 bits per base, accuracy 0.3970",
    ]
    assert all(len("12:00:00 " + line) <= 80 for line in heard)


def test_what_this_machine_cannot_log_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "from megadna.train.metrics import *; check_log(LogConfig(wandb=True))"
    environment = {**os.environ, "WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": ""}
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, env=environment)
    assert result.stderr.endswith("there is no API key; `wandb login`, or set WANDB_MODE=offline\n")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"log\.wandb is true, but wandb is not installed; pip install 'megadna\[wandb\]'"
    ):
        check_log(config.log)
    check_log(LogConfig())


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA L4", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_that_of_the_card(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


@pytest.mark.parametrize("packed", [False, True])
def test_attention_work_is_counted_within_sequences(packed: bool) -> None:
    """Rows of 16 tokens; the segments, [CLS] and [SEP] included, have the lengths below, what remains is padding."""
    lengths = [[5, 8], [16], [3]] if packed else [[13], [16], [3]]

    def window(length: int) -> Masked:
        tokens = np.full(length - 2, 5)
        return Masked(tokens, tokens, np.zeros(length - 2, dtype=bool))

    rows = collate(
        [[window(length) for length in row] for row in lengths], np.arange(3), NucleotideTokenizer(), 16, packed=packed
    )
    assert rows.attended_pairs() == sum(length**2 for row in lengths for length in row)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mfu_on_a_gpu(config: Config, tmp_path: Path) -> None:
    engine = replace(config.engine, device="cuda", precision="bf16")
    train(replace(config, engine=engine), tmp_path / "run")
    if peak_tflops(torch.cuda.get_device_name()):
        assert all(0 < line["mfu"] < 1 for line in read_lines(tmp_path / "run") if "loss" in line)
