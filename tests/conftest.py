"""Shared fixtures: small datasets built from real genomes by the real builder. No network, no cache of the user's."""

import os
import shlex
import tempfile
from pathlib import Path

import pytest

from megadna.commands import preprocess

DATA = Path(__file__).parent / "data"
HOME = tempfile.TemporaryDirectory(prefix="megadna-tests-")
# Before transformers is imported: it reads them once. Processes that tests start inherit them.
os.environ |= {"HF_HOME": HOME.name, "HF_MODULES_CACHE": f"{HOME.name}/modules", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mycoplasma genitalium in chunks of 512 nt, a tenth each valid and test."""
    folder = tmp_path_factory.mktemp("toy") / "dataset"
    genome = str(DATA / "mgenitalium_G37.fa.gz")
    options = shlex.split("--chunk_length 512 --valid_fraction 0.1 --test_fraction 0.1")
    preprocess.main(["--input", genome, "--output", str(folder), *options])
    return folder
