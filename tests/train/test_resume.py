"""Checkpoints: the run that stops and resumes is the run that never stopped; damage is seen and passed over."""

import json
import shutil
from pathlib import Path

import pytest
from ranks import run_ranks
from toy import losses, metrics, run_training, toy_config

from megadna.errors import UserError
from megadna.train.describe import describe_run
from megadna.train.metrics import cut_after


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def whole_run(request: pytest.FixtureRequest, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on one rank, checkpoints at 3 and 6."""
    run = tmp_path_factory.mktemp("whole") / request.param
    run_ranks(run_training, 1, toy_config(toy_dataset, precision=request.param), run)
    return run


def stopped_copy(whole: Path, copy: Path) -> Path:
    """The run as a kill after step 5 would leave it: newest checkpoint 3, log up to 5 with half a line after it."""
    shutil.copytree(whole, copy, symlinks=True)
    shutil.rmtree(copy / "checkpoints" / "step-00000006")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    return copy


def test_resume_on_the_same_layout_is_bit_identical(whole_run: Path, toy_dataset: Path, tmp_path: Path) -> None:
    run = stopped_copy(whole_run, tmp_path / "run")
    run_ranks(run_training, 1, toy_config(toy_dataset, precision=whole_run.name), run, True)
    assert metrics(run) == metrics(whole_run)


@pytest.mark.slow
def test_saved_on_tensor_2_resumes_on_other_layouts(toy_dataset: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run_ranks(run_training, 2, toy_config(toy_dataset, tensor=2), whole)
    for num_ranks, parallel in ((2, {"pipeline": 2}), (1, {}), (2, {})):
        run = stopped_copy(whole, tmp_path / f"{num_ranks}{parallel}")
        run_ranks(run_training, num_ranks, toy_config(toy_dataset, **parallel), run, True)
        assert losses(run) == pytest.approx(losses(whole), rel=1e-4)


def test_a_checkpoint_without_marker_or_with_a_short_file_does_not_count(whole_run: Path, tmp_path: Path) -> None:
    from megadna.train.checkpoint import find_checkpoint

    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    assert find_checkpoint(run).name == "step-00000006"
    shard = next((run / "checkpoints" / "step-00000006" / "weights").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert find_checkpoint(run).name == "step-00000003"
    (run / "checkpoints" / "step-00000003" / "complete").unlink()
    with pytest.raises(UserError, match=r"none of its 2 checkpoints is whole; the newest: .*distcp: \d+ bytes"):
        find_checkpoint(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no whole checkpoint"):
        find_checkpoint(run)
    with pytest.raises(UserError, match="no such run"):
        find_checkpoint(tmp_path / "nowhere")


def test_cut_after_keeps_whole_lines_up_to_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "valid_loss": 1}\n{"step": 3}\n{"ste')
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "valid_loss": 1}\n'


def test_what_is_no_line_is_left_out_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage in the middle costs no line after it; a last line that is cut is what every killed run leaves."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.5}\n\xff\x00\xfe\n[]\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    said = list(describe_run(tmp_path))
    assert said[0] == f"run at step 2: {path}" and "lines left out: 2" in said[1] and "line 2)" in said[1]
    assert said[2] == f"  {path}: the last line is cut off and was left out"
    score = {"bits_per_base": 1.9, "perplexity": 3.7, "accuracy": 0.3}
    others = {"uniform": {**score, "bits_per_base": 2.0}, "markov": {**score, "bits_per_base": 1.88}}
    found = {"split": "test", "step": 2, "samples": 9, "hidden_bases": 99, "model": {**score, "standard_error": 0.01}}
    (tmp_path / "evaluation-test.json").write_text(json.dumps({**found, "baselines": others}))
    (tmp_path / "config.yaml").write_text("train: {steps: 8000}\ndata: {path: genomes}\n")
    said = list(describe_run(tmp_path))
    assert said[0] == f"run at step 2 of 8,000: {path}"
    assert said[3].endswith("; tokenizer nucleotide; trained on genomes")
    assert said[4] == "  test: 1.9000 ± 0.0100 bits per base at step 2; uniform 2.0000, markov 1.8800"
    assert said[5].startswith("    no better than markov (1.8800)") and said[6] == "0 whole checkpoints"
    cut_after(path, 5)
    assert path.read_text() == '{"step": 1, "loss": 1.5}\n{"step": 2, "loss": null}\n'
    assert "lines left out: 2" in caplog.text and "cut off" not in caplog.text
