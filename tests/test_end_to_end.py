"""The demo's path at toy size, by the commands a user types: FASTA -> dataset -> run -> export -> report."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import preloaded
import pytest
from toy import losses, metrics

DATA = Path(__file__).parent / "data"
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"

TOY = shlex.split("""
    --data.sequence_length 128 --data.num_workers 1 --model.num_layers 2 --model.hidden_size 64
    --train.steps 8 --train.warmup_steps 2 --train.micro_batch_size 4 --train.global_batch_size 16
    --checkpoint.interval 4 --validation.interval 4 --validation.samples 16
""")

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("megadna", "megatron"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from transformers import AutoModelForMaskedLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True)
logits = model(**tokenizer("ACGT[MASK]ACGT", return_tensors="pt")).logits
assert logits.shape == (1, 11, 16) and logits.isfinite().all()
"""


def run(*command: Any, **environment: str) -> str:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def megadna(*arguments: Any, **environment: str) -> str:
    return run(preloaded.python(), "-m", "megadna", *arguments, **environment)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dataset/ and run/, trained by two ranks in bf16."""
    folder = tmp_path_factory.mktemp("demo")
    genomes = [DATA / "mgenitalium_G37.fa.gz", DATA / "lambda.fa.gz"]
    fractions = shlex.split("--valid_fraction 0.1 --test_fraction 0.1 --chunk_length 1000")
    megadna("preprocess", "--input", *genomes, "--output", folder / "dataset", *fractions)
    megadna("train", "--config", CONFIG, "--data.path", folder / "dataset", "--output", folder / "run", *TOY)
    return folder


def test_the_run_folder_holds_what_it_promises(demo: Path) -> None:
    lines = metrics(demo / "run")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert {"loss", "grad_norm", "lr", "consumed_samples"} <= lines[0].keys()
    valid = [line for line in lines if "valid_bits_per_base" in line]
    assert [line["step"] for line in valid] == [4, 8]
    assert valid[-1]["valid_bits_per_base"] < 2.5
    assert lines[-1]["valid_perplexity"] == pytest.approx(2 ** lines[-1]["valid_bits_per_base"])
    assert (demo / "run" / "config.yaml").is_file() and any((demo / "run" / "tensorboard").iterdir())
    assert [path.name for path in sorted((demo / "run" / "checkpoints").glob("step-*"))] == [
        "step-00000004",
        "step-00000008",
    ]
    assert losses(demo / "run")[-1] < losses(demo / "run")[0]


def test_evaluate_export_and_report(demo: Path) -> None:
    megadna("evaluate", "--model", demo / "run", "--split", "test")
    result = json.loads((demo / "run" / "evaluation-test.json").read_text())
    assert result["baselines"]["uniform"]["bits_per_base"] == pytest.approx(2.0)
    assert result["baselines"]["markov"]["bits_per_base"] < result["baselines"]["composition"]["bits_per_base"]
    assert "logits (fp32) differ by" in megadna("export", "--checkpoint", demo / "run", "--output", demo / "model")
    run(sys.executable, "-c", BLOCKED, demo / "model", HF_MODULES_CACHE=str(demo / "modules"), HF_HUB_OFFLINE="1")
    megadna("report", demo / "run")
    page = (demo / "run" / "report" / "report.html").read_text()
    assert "Bokeh.safely" in page and "fewer than Markov by" in page and "default-src 'none'" in page


def test_resume_by_torchrun_and_by_srun_variables(demo: Path) -> None:
    """Both launchers continue the finished run of 8 steps to 10, each with its own way of naming ranks."""
    toy = " ".join(TOY).replace("--train.steps 8 ", "").split()
    train = ["train", "--config", CONFIG, "--data.path", demo / "dataset", "--output", demo / "run", *toy, "--resume"]
    torchrun = [
        Path(preloaded.python()).with_name("torchrun"),
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "megadna",
    ]
    run(*torchrun, *train, "--train.steps", "9")
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    megadna(*train, "--train.steps", "10", **slurm)
    assert [line["step"] for line in metrics(demo / "run") if "loss" in line] == list(range(1, 11))
