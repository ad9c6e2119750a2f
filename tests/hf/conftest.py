import gzip
import os
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parents[1] / "data"
CODES = {"A": 5, "G": 6, "C": 7, "T": 8}


@pytest.fixture(autouse=True, scope="module")
def single_threaded():
    """One thread, also in the processes that tests start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def every_core(monkeypatch):
    """For what computes more than it waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lambda_genome():
    with gzip.open(DATA / "lambda.fa.gz", "rt") as lines:
        return "".join(line.strip() for line in lines if not line.startswith(">")).upper()


@pytest.fixture(scope="session")
def lambda_ids(lambda_genome):
    """[3, 128] tokens of three stretches of phage lambda, [CLS] and [SEP] included."""
    rows = [[2, *(CODES[base] for base in lambda_genome[start : start + 126]), 3] for start in (0, 20_000, 40_000)]
    return torch.tensor(rows)
