"""Process groups: from the environment of torchrun, srun or a single process to megatron's parallel groups.

In:  EngineConfig, ParallelConfig, and RANK, WORLD_SIZE, LOCAL_RANK, MASTER_* (torchrun) or SLURM_* (srun).
Out: an initialised torch.distributed and megatron.core.parallel_state, and a `World`: the position of this process.
"""

import atexit
import datetime
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from megadna.config import EngineConfig, ParallelConfig
from megadna.engine.cpu import redirect_cuda
from megadna.errors import RankLost, UserError
from megadna.log import rank_from_environment
from megadna.processes import STORE

DEFAULT_PORT = "29531"


@dataclass(frozen=True)
class World:
    """The position of this process among the ranks."""

    rank: int
    size: int
    device: torch.device
    data_rank: int = 0
    """Rank among the data-parallel replicas."""
    data_size: int = 1
    """Number of data-parallel replicas."""
    is_first_stage: bool = True
    is_last_stage: bool = True
    tensor_rank: int = 0
    context_rank: int = 0
    """Number of the consecutive part of each sequence that this rank holds."""
    context_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0


def select_device(config: EngineConfig) -> torch.device:
    """CUDA if a GPU is visible and engine.device allows it, else the CPU; UserError if cuda is required but absent."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU here; use --engine.device cpu or auto")
    if config.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))
    return torch.device("cpu")


def world_size_from_environment() -> int:
    """Number of ranks, from torchrun (WORLD_SIZE) or srun (SLURM_NTASKS inside a step); 1 for a single process."""
    if "RANK" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "SLURM_STEP_ID" in os.environ:
        return int(os.environ.get("SLURM_NTASKS", "1"))
    return 1


def launched_outside() -> bool:
    """True if torchrun or srun started this process."""
    return "RANK" in os.environ or "SLURM_STEP_ID" in os.environ


@contextmanager
def parallel_world(engine: EngineConfig, parallel: ParallelConfig) -> Iterator[World]:
    """Join the job, split it into megatron's groups, and destroy them at the end."""
    device = select_device(engine)
    if device.type == "cpu":
        redirect_cuda(device)
    else:
        torch.cuda.set_device(device)
    rank, size = rank_from_environment(), world_size_from_environment()
    timeout = datetime.timedelta(minutes=engine.timeout_minutes)
    store = _store_of_this_start(timeout)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=None if store else _init_method(size),
        store=store,
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        yield _split(rank, size, device, parallel, timeout_minutes=engine.timeout_minutes)
    except RankLost:
        raise  # destroy_process_group would block on the dead rank
    except BaseException:
        _leave()
        raise
    _leave()


@contextmanager
def imagined_world(parallel: ParallelConfig, *, rank: int, size: int, backend: str = "fake") -> Iterator[World]:
    """Rank `rank` of a job of `size` ranks in this process only, on the `meta` device: collectives do nothing.

    backend: torch's `fake`, or one that tests register (tests/planning/communications.py).
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    device = torch.device("meta")
    redirect_cuda(device)
    torch.distributed.init_process_group(backend, store=FakeStore(), rank=rank, world_size=size)
    try:
        yield _split(rank, size, device, parallel)
    finally:
        _leave()


def _split(rank: int, size: int, device: torch.device, parallel: ParallelConfig, timeout_minutes: float = 1.0) -> World:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        create_gloo_process_groups=False,
        distributed_timeout_minutes=timeout_minutes,
    )
    model_parallel_cuda_manual_seed(1234)  # dropout states only: weights and data never depend on them
    return World(
        rank=rank,
        size=size,
        device=device,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        is_first_stage=parallel_state.is_pipeline_first_stage(),
        is_last_stage=parallel_state.is_pipeline_last_stage(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel.context,
    )


def seed_dropout(seed: int, step: int, world: World) -> None:
    """Random states of a step: a pure function of (seed, step, position of the rank), so a resumed run repeats them.

    Tensor-parallel ranks share one state for what they replicate and have different ones for what they split.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    stage = parallel_state.get_pipeline_model_parallel_rank()
    key = f"{seed}/{step}/{stage}/{world.data_rank}/{world.context_rank}"
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    model_parallel_cuda_manual_seed(int.from_bytes(digest, "little"))


def _leave() -> None:
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    destroy_num_microbatches_calculator()
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


def _store_of_this_start(timeout: datetime.timedelta) -> torch.distributed.Store | None:
    """torchrun's store on one node, with a prefix for each restart; None elsewhere.

    torchrun keeps its store over restarts, and gloo would look for ranks at the addresses of dead ones. The nodes of a
    larger job count restarts separately: launch/torchrun.sh makes torchrun open a new store each time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return None
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=timeout))
    return torch.distributed.PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)


def _init_method(size: int) -> str:
    """A file for a single process (no port that could be taken), else the launcher's address."""
    if STORE in os.environ:
        return f"file://{os.environ[STORE]}"
    if size == 1:
        folder = tempfile.mkdtemp(prefix="megadna-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return f"file://{Path(folder) / 'store'}"
    if "MASTER_ADDR" not in os.environ and "SLURM_JOB_NODELIST" in os.environ:
        hosts = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        os.environ["MASTER_ADDR"] = hosts[0]
    os.environ.setdefault("MASTER_PORT", DEFAULT_PORT)
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"{size} ranks, but MASTER_ADDR is not set; start them with torchrun, or srun inside a Slurm job"
        )
    return "env://"
