"""Which errors are failures of a collective; that ranks are named is proved with real ones in test_lost_ranks.py."""

import pytest
import torch

from megadna.errors import RunEnded
from megadna.train.faults import is_collective_failure


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Application timeout caused pair closure"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [::1]:4061"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."),
        torch.distributed.DistNetworkError("Connection timed out"),
    ],
)
def test_what_gloo_nccl_and_the_store_raise_is_a_failure_of_a_collective(error: RuntimeError) -> None:
    assert is_collective_failure(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), RunEnded("gloo"), OSError("gloo")])
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_collective_failure(error)
