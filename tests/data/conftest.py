"""Datasets of the loader's tests, made by the real builder."""

from pathlib import Path

import pytest

from megadna.commands import preprocess

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def two_genomes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two datasets: Mycoplasma genitalium with the human mitochondrion, and phage lambda, in chunks of 1,000 nt."""
    folder = tmp_path_factory.mktemp("two")
    for name, files in {"cells": ["mgenitalium_G37.fa.gz", "human_mt.fa.gz"], "phage": ["lambda.fa.gz"]}.items():
        inputs = [str(DATA / file) for file in files]
        preprocess.main(["--input", *inputs, "--output", str(folder / name), "--chunk_length", "1000"])
    return [str(folder / "cells"), str(folder / "phage")]
