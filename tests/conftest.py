"""Shared fixtures: small datasets built from real genomes by the real builder."""

import shlex
from pathlib import Path

import pytest

from megadna.commands import preprocess

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mycoplasma genitalium in chunks of 512 nt, a tenth each valid and test."""
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    genome = str(DATA / "mgenitalium_G37.fa.gz")
    options = shlex.split("--chunk_length 512 --valid_fraction 0.1 --test_fraction 0.1")
    preprocess.main(["--input", genome, "--output", str(folder), *options])
    return folder
