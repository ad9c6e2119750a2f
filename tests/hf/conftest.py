import gzip
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parents[1] / "data"
CODES = {"A": 5, "G": 6, "C": 7, "T": 8}


@pytest.fixture(autouse=True, scope="module")
def offline_and_single_threaded(tmp_path_factory):
    """No network, no cache outside the tests' folder, one thread; also in the processes that tests start."""
    home, threads = tmp_path_factory.mktemp("hf_home"), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {"HF_HOME": home, "HF_MODULES_CACHE": home / "modules"}.items():
            patch.setenv(key, str(value))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(home / "modules"))
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
