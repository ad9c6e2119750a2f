"""A few steps of the real engine on this machine: two ranks on a CPU, all GPUs of the machine otherwise.

In:  a number of ranks.
Out: SelfTest. The model learns one fixed micro-batch by heart; its loss must fall and be the same on all ranks.
"""

import itertools
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from megadna.config import Config, DataConfig, EngineConfig, ModelConfig, ParallelConfig, TrainConfig
from megadna.engine.launch import die_with_parent

STEPS, LENGTH = 8, 256
MESSAGE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class SelfTest:
    """What a self-test found."""

    device: str
    num_ranks: int
    first_loss: float
    last_loss: float
    all_reduce: float
    """Bytes a second that each rank sends while a large tensor is summed over all; 0 for one rank."""

    @property
    def passed(self) -> bool:
        """The loss fell."""
        return self.last_loss < 0.9 * self.first_loss


def run_self_test() -> SelfTest:
    """Start the ranks and wait for them; raises what a rank raised."""
    num_ranks = torch.cuda.device_count() if torch.cuda.is_available() else 2
    with tempfile.TemporaryDirectory(prefix="megadna-") as folder:
        torch.multiprocessing.spawn(_rank, args=(num_ranks, folder, os.getpid()), nprocs=num_ranks)
        return SelfTest(**json.loads((Path(folder) / "result.json").read_text(encoding="utf-8")))


def _config(num_ranks: int) -> Config:
    """Tensor parallelism over two ranks where they are even, data parallelism over the others."""
    tensor = 2 if num_ranks % 2 == 0 else 1
    return Config(
        data=DataConfig(sequence_length=LENGTH),
        model=ModelConfig(num_layers=2, hidden_size=128, num_attention_heads=4, ffn_hidden_size=256),
        parallel=ParallelConfig(tensor=tensor, sequence=tensor > 1),
        engine=EngineConfig(timeout_minutes=2.0),
        train=TrainConfig(steps=100, lr=3e-3, micro_batch_size=4, global_batch_size=4 * num_ranks // tensor),
    )


def _rank(rank: int, num_ranks: int, folder: str, parent: int) -> None:
    die_with_parent(parent)  # torch sends SIGINT, which a rank within a collective does not heed
    from megadna.data.batch import IGNORE_INDEX, Batch
    from megadna.engine.distributed import parallel_world
    from megadna.log import setup_logging
    from megadna.train.state import build_state
    from megadna.train.step import train_step

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), MEGADNA_STORE=f"{folder}/store")
    setup_logging(level=30)  # what the engine says of itself is the doctor's to say
    torch.set_num_threads(1)
    config = _config(num_ranks)
    tokens = torch.randint(5, 9, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.15
    batch = Batch(
        tokens_BS=tokens.masked_fill(hidden, 4),
        labels_BS=tokens.masked_fill(~hidden, IGNORE_INDEX),
        weights_BS=hidden.float(),
        lengths_B=None,
        samples_B=torch.arange(4),
    )
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        batches = itertools.repeat(batch)
        losses = [train_step(state, batches, config, world, sequence_length=LENGTH).loss for _ in range(STEPS)]
        found = SelfTest(world.device.type, num_ranks, losses[0], losses[-1], _all_reduce_rate(world.device, num_ranks))
    if rank == 0:
        (Path(folder) / "result.json").write_text(json.dumps(asdict(found)), encoding="utf-8")


def _all_reduce_rate(device: torch.device, num_ranks: int) -> float:
    """Bytes sent a second: a ring sends 2 (n - 1) / n of the tensor."""
    if num_ranks == 1:
        return 0.0
    x = torch.zeros(MESSAGE_BYTES[device.type], dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(4):
        torch.distributed.barrier()
        start = time.perf_counter()
        torch.distributed.all_reduce(x)
        float(x[0])  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * (num_ranks - 1) / num_ranks * x.numel() / min(seconds)
