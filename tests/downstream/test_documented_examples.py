"""Every example of docs/downstream.md runs, in its order, in one folder."""

import sys
from pathlib import Path

import pytest
from documented import ROOT, blocks_of, run_blocks

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    megadna_folder(tmp_path / "model")
    for name in ("tests", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    examples = blocks_of("downstream.md")
    assert len(examples) >= 7
    run_blocks(examples, tmp_path)
