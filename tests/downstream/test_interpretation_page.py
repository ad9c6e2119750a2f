"""Every example of docs/interpretation.md runs, in its order, in one folder."""

import sys
from pathlib import Path

import pytest
from documented import ROOT, blocks_of, run_blocks

sys.path.insert(0, str(Path(__file__).parent))

from toy_models import megadna_folder


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path):
    megadna_folder(tmp_path / "model")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    examples = blocks_of("interpretation.md")
    assert len(examples) >= 16
    run_blocks(examples, tmp_path)
    written = [
        "scored.vcf.gz.tbi",
        "effects.html",
        "map.png",
        "donor_motifs/motifs.meme",
        "lambda.clusters.png",
        "hits.bed",
    ]
    assert [name for name in written if not (tmp_path / name).is_file()] == []
