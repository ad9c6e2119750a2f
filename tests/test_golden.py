"""Numbers that no change of the code's shape may change: bytes of datasets, losses of a toy run, tensors of its export.

tests/data/golden.json holds them. A change that means to alter one writes the file anew, and says so in CHANGELOG.md:

    python tests/test_golden.py
"""

import hashlib
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks
from toy import losses, run_training, toy_config

from megadna.commands import preprocess

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden.json"
BUILDS = {
    "phage": "lambda.fa.gz --chunk_length 500 --valid_fraction 0.1 --test_fraction 0.1",
    "bacterium, contigs and blocks": "mgenitalium_G37.fa.gz --chunk_length 512 --block_chunks 4 --seed 7",
    "yeast by contig": "yeast_I_VI_VIII.fa.gz --split contig --valid_contigs VI --test_contigs I",
    "human, soft mask folded": "human_GRCh38_chr9_1-1000000_sm.fa.gz --soft_mask fold --chunk_length 1000",
    "plant, several contigs": "arabidopsis_bacs.fa.gz --chunk_length 300 --min_tail 50 --valid_fraction 0.05",
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def build(name: str, folder: Path) -> dict[str, str]:
    """Digests of the chunks and indices of one dataset."""
    genome, *options = shlex.split(BUILDS[name])
    output = folder / name.replace(" ", "_")
    preprocess.main(["--input", str(DATA / genome), "--output", str(output), *options])
    return {path.name: digest(path) for path in sorted(output.iterdir()) if path.suffix in (".bin", ".idx")}


def train_and_export(folder: Path) -> dict[str, Any]:
    """Losses of six steps on one rank, and the exported tensors: their sums, which any processor gives alike."""
    from safetensors.torch import load_file

    from megadna.hf.export import export
    from megadna.train.checkpoint import find_checkpoint

    dataset = folder / "dataset"
    options = shlex.split("--chunk_length 512 --valid_fraction 0.1 --test_fraction 0.1")
    preprocess.main(["--input", str(DATA / "mgenitalium_G37.fa.gz"), "--output", str(dataset), *options])
    run_ranks(run_training, 1, toy_config(dataset), folder / "run")
    export(find_checkpoint(folder / "run"), folder / "model", check=False)
    tensors = load_file(folder / "model" / "model.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    norms = {name: float(tensor.double().norm()) for name, tensor in sorted(tensors.items())}
    return {"losses": losses(folder / "run"), "shapes": shapes, "norms": norms}


@pytest.mark.parametrize("name", BUILDS)
def test_datasets_keep_their_bytes(name: str, tmp_path: Path) -> None:
    assert build(name, tmp_path) == json.loads(GOLDEN.read_text())["datasets"][name]


def test_a_toy_run_keeps_its_losses_and_its_export(tmp_path: Path) -> None:
    found, golden = train_and_export(tmp_path), json.loads(GOLDEN.read_text())["training"]
    assert found["losses"] == pytest.approx(golden["losses"], abs=1e-5)
    assert found["shapes"] == golden["shapes"]
    assert found["norms"] == pytest.approx(golden["norms"], rel=1e-5)


def main() -> None:
    """Write tests/data/golden.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = {"datasets": {build_name: build(build_name, folder) for build_name in BUILDS}}
        content["training"] = train_and_export(folder)
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")
    sys.stdout.write(f"wrote {GOLDEN}\n")


if __name__ == "__main__":
    main()
