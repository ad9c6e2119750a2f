"""docs/workflow/Snakefile, run by snakemake on a small genome: every step once, and nothing again the second time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest

ROOT = Path(__file__).parents[1]
SNAKEMAKE = shutil.which("snakemake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
KEYS = "--train.steps 2 --train.warmup_steps 1 --validation.samples 8 --engine.num_processes 1 --data.num_workers 0"


@pytest.mark.slow
@pytest.mark.skipif(
    SNAKEMAKE is None, reason="snakemake is not installed (the extra `test` has it from Python 3.11 on)"
)
def test_the_workflow_runs_once(tmp_path: Path) -> None:
    (tmp_path / "genomes").mkdir()
    shutil.copy(ROOT / "tests" / "data" / "lambda.fa.gz", tmp_path / "genomes")
    environment = {**os.environ, "PATH": f"{Path(preloaded.python()).parent}:{os.environ['PATH']}"}
    split = "split=--valid_fraction 0.2 --test_fraction 0.2 --block_chunks 1"
    words = ["--snakefile", str(ROOT / "docs/workflow/Snakefile"), "--cores", "1", "--config", f"keys={KEYS}", split]

    def run() -> str:
        result = subprocess.run([str(SNAKEMAKE), *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stderr

    assert "(100%) done" in run()
    for name in ("dataset/manifest.json", "run/evaluation-test.json", "run/report/report.html", "model/config.json"):
        assert (tmp_path / name).is_file()
    assert (tmp_path / "embeddings" / "lambda.fa.gz.parquet").stat().st_size > 0
    assert "Nothing to be done" in run()
