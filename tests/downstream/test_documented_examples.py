"""Every example of docs/downstream.md runs, in its order, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = re.compile(r"^```(bash|python)\n(.*?)^```", re.M | re.S)


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    megadna_folder(tmp_path / "model")
    for name in ("tests", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    examples = EXAMPLE.findall((REPOSITORY / "docs" / "downstream.md").read_text())
    assert len(examples) >= 7
    for language, text in examples:
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stderr}"
