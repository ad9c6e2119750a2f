"""The proof on a GPU: its dry run on the CPU runs every stage, and what a user may get wrong ends in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


def prove(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | variables
    command = ["bash", str(ROOT / "tools" / "prove_gpu.sh"), *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of results, which each test adds to."""
    return tmp_path_factory.mktemp("proof")


def rehearse(proof: Path, *stages: str) -> dict[str, Any]:
    """What the dry run of these stages wrote, a JSON and a line each."""
    result = prove("--dry_run", proof, *stages)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert [line.partition(":")[0] for line in result.stdout.splitlines()[1:]] == list(stages)
    return {name: json.loads((proof / f"{name}.json").read_text()) for name in stages}


@pytest.mark.slow
def test_a_dry_run_measures_steps_and_does_not_repeat_them(proof: Path) -> None:
    found = rehearse(proof, "tests", "steps", "bare")
    assert "collected only, not run" in found["tests"]["line"] and found["tests"]["collected"] > 50
    ran = [row for row in found["steps"]["rows"] if "left_out" not in row]
    presets = {"megadna-86m", "aido-dna-7b, 4 layers", "megadna-7b-hd128, 4 layers"}
    assert presets <= {row["preset"] for row in ran if row["kernel"] == "sdpa"}
    for row in ran:
        assert sum(row["shares"].values()) == pytest.approx(1, abs=0.05)
        assert row["forward_ms"] + row["backward_ms"] + row["optimizer_ms"] == pytest.approx(row["step_ms"])
        assert row["planned_memory_gb"] > 0
    assert found["bare"]["ratios"]["bare"] > 0
    again = prove("--dry_run", proof, "steps", "bare")
    assert (again.returncode, again.stdout.splitlines()[1:]) == (0, ["steps: done before", "bare: done before"])


@pytest.mark.slow
def test_a_dry_run_trains_through_a_kill_and_uses_the_model(proof: Path) -> None:
    found = rehearse(proof, "pretrain", "downstream")
    assert found["pretrain"]["killed_at"] < found["pretrain"]["last_step"] == 60
    assert found["pretrain"]["largest_difference"] == 0
    assert found["downstream"]["embed"]["largest_difference"] < 1e-5


@pytest.mark.slow
def test_a_dry_run_goes_on_with_two_ranks(proof: Path) -> None:
    found = rehearse(proof, "ranks")["ranks"]
    assert found["killed_at"] < found["last_step"] == 60
    assert found["largest_difference"] < 1e-2  # tensor parallelism adds up in another order


def test_a_stage_that_fails_says_so_and_leaves_no_result(tmp_path: Path) -> None:
    result = prove("--dry_run", tmp_path, "downstream")
    assert result.returncode == 1
    assert "downstream: failed with status 1" in result.stdout
    assert "stage pretrain must come first" in result.stdout
    assert not list(tmp_path.glob("downstream.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    result = prove(tmp_path / "proof")
    assert result.returncode == 2
    assert result.stderr.startswith("prove_gpu.sh: no GPU here") and result.stderr.count("\n") == 1
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a folder for the results"),
        (["--dry_run"], "name a folder for the results"),
        (["--dry", "OUT"], "--dry is no option"),
        (["--dry_run", "OUT", "step"], "step is no stage: tests steps bare"),
        (["--dry_run", "FILE"], "is a file; name a folder"),
        (["--dry_run", "--wheels", "EMPTY", "OUT"], "holds no wheels; make them with tools/prove_gpu.sh --fetch"),
        (["--fetch"], "--fetch takes one folder"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "FILE").touch()
    (tmp_path / "EMPTY").mkdir()
    places = {name: tmp_path / name for name in ("OUT", "FILE", "EMPTY")}
    result = prove(*(places.get(word, word) for word in words))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr


def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "isal.py").write_text("raise ModuleNotFoundError(\"No module named 'isal'\")\n")
    result = prove("--dry_run", tmp_path / "proof", PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "No module named 'isal'; make wheels with --fetch FOLDER and say --wheels FOLDER" in result.stderr
