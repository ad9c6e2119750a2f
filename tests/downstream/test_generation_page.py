"""Every example of docs/generation.md runs, in its order, in one folder."""

import sys
from pathlib import Path

import pytest
from documented import ROOT, blocks_of, run_blocks

sys.path.insert(0, str(Path(__file__).parent))

from test_predict import task_folder
from toy_models import megadna_folder

from megadna.downstream.tasks import Target


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    encoder = megadna_folder(tmp_path / "model")
    for name in ("strength", "second"):
        task_folder(encoder, tmp_path / name, Target("regression", ["expression"]))
    for name in ("tests", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    examples = blocks_of("generation.md")
    assert len(examples) == 7
    run_blocks(examples, tmp_path)
    written = ["new/sequences.fa", "rewritten/sequences.fa", "guided/scores.tsv", "recoded/generation.json"]
    written += ["strong/sequences.fa", "compared/report.html"]
    assert [name for name in written if not (tmp_path / name).is_file()] == []
