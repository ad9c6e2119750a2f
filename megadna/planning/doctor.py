"""What `megadna doctor` examines: versions, packages, limits and disks, each a Finding, with a remedy where needed.

Self-test: a few steps of the real engine on this machine, on two ranks of a CPU or on all of its GPUs. The model
memorizes one fixed micro-batch; its loss must fall.
"""

import importlib.metadata
import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path

import torch
from packaging.requirements import Requirement

from megadna.config import Config, DataConfig, EngineConfig, ModelConfig, ParallelConfig, TrainConfig
from megadna.model.attention import choose_backend
from megadna.model.layers import apex_kernel
from megadna.processes import die_with_parent

STEPS, LENGTH = 8, 256
MESSAGE_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}


@dataclass(frozen=True)
class SelfTest:
    """Result of the self-test."""

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
    """Start the ranks and wait for them; an exception of a rank is raised here."""
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
    die_with_parent(parent)  # torch sends SIGINT, which a rank inside a collective ignores
    from megadna.data.batch import IGNORE_INDEX, Batch
    from megadna.engine.distributed import parallel_world
    from megadna.log import setup_logging
    from megadna.train.step import build_state, train_step

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), MEGADNA_STORE=f"{folder}/store")
    setup_logging(level=30)  # the doctor reports, not the engine
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


FILES, SHARED_MEMORY = 4096, 1 << 30
"""Open files and bytes of /dev/shm that ranks with loader workers need."""
DISK_BYTES, SLOW_DISK = 256 << 20, 100e6


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    name: str
    text: str
    remedy: str = ""
    """How to repair it; empty where nothing is wrong."""


def examine(folders: list[Path]) -> Iterator[Finding]:
    """Everything but the self-test; `folders` hold datasets and checkpoints."""
    version = sys.version_info[:2]
    remedy = "" if (3, 10) <= version < (3, 13) else "megadna needs Python 3.10 to 3.12"
    yield Finding("python", sys.version.split()[0], remedy)
    yield _package("torch", "torch", "")
    core = _version("megatron-core")
    is_right = core is not None and core.startswith("0.16.")
    yield Finding("megatron-core", core or "absent", "" if is_right else "pip install 'megatron-core==0.16.*'")
    yield from _gpus()
    for name, module in (("transformer-engine", "transformer_engine"), ("flash-attn", "flash_attn")):
        yield _package(name, module, "not needed")
    yield _apex()
    if _version("megadna") is not None:  # it is imported from a folder where pip has not installed it
        yield _extra("downstream")
    yield from _choices()
    yield from _limits()
    for folder in folders:
        yield _disk(folder)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, module: str, absent: str) -> Finding:
    version = _version(name)
    if version is None:
        return Finding(name, f"absent, {absent}" if absent else "absent", "" if absent else f"pip install {name}")
    try:
        importlib.import_module(module)
    except Exception as error:
        cause = str(error).partition("\n")[0]
        return Finding(name, f"{version} cannot be imported: {cause}", f"reinstall {name} for this torch, or remove it")
    return Finding(name, version)


def _extra(name: str) -> Finding:
    """Whether the libraries of an extra are installed; training needs none of them."""
    stated = importlib.metadata.requires("megadna") or []
    wanted = [
        entry for text in stated if (entry := Requirement(text)).marker and entry.marker.evaluate({"extra": name})
    ]
    absent = [
        entry.name
        for entry in wanted
        if (version := _version(entry.name)) is None or not entry.specifier.contains(version, prereleases=True)
    ]
    remedy = f"absent or too old: {', '.join(absent)}; pip install 'megadna[{name}]' before you use a finished model"
    return Finding(f"extra {name}", remedy if absent else f"complete, {len(wanted)} libraries")


def _gpus() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        yield Finding("gpu", f"none; everything runs on {os.cpu_count()} CPU cores ({built})")
        return
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        has_bf16 = card.major >= 8
        remedy = "" if has_bf16 else "this card has no bf16: train with --engine.precision fp16"
        yield Finding(f"gpu {number}", f"{card.name}, {card.total_memory / 1e9:.0f} GB", remedy)
    version = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding("cuda, nccl", f"CUDA {torch.version.cuda}, NCCL {version}")


def _apex() -> Finding:
    """NVIDIA's apex has fused optimizers; the package of that name on PyPI is an unrelated one."""
    version = _version("apex")
    if version is None:
        return Finding("apex", "absent, not needed")
    found = PathFinder.find_spec("apex")
    folders = found.submodule_search_locations if found else None
    if not any((Path(folder) / "optimizers").is_dir() for folder in folders or []):
        return Finding("apex", f"{version}: not NVIDIA's, an unrelated package of that name", "pip uninstall apex")
    return Finding("apex", version)


def _choices() -> Iterator[Finding]:
    """Which implementation each feature will use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding("attention", choose_backend("auto", device, torch.bfloat16, 64))
    fused = device.type == "cuda" and apex_kernel("fused_layer_norm_affine", "cuda")
    yield Finding("norms", "apex" if fused else "torch")
    import megatron.core.optimizer as optimizer

    yield Finding("optimizer", f"{optimizer.Adam.__module__.partition('.')[0]} {optimizer.Adam.__name__}")
    yield Finding("collectives", "nccl" if device.type == "cuda" else "gloo")


def _limits() -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", f"{files:,}", "" if files >= FILES else f"ulimit -n {FILES}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        remedy = "" if size >= SHARED_MEMORY else "give containers more: --shm-size=8g"
        yield Finding("shared memory", f"{size / 1e9:.1f} GB", remedy)


def _disk(folder: Path) -> Finding:
    """Rates of writing with fsync and of reading back (from the page cache where that holds it)."""
    name = f"disk {folder}"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(name, "not a folder that can be written to", "name one that exists: --folders FOLDER")
    block = os.urandom(1 << 22)
    with tempfile.TemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        written = DISK_BYTES / (time.perf_counter() - start)
        file.seek(0)
        start = time.perf_counter()
        while file.read(len(block)):
            pass
        read = DISK_BYTES / (time.perf_counter() - start)
    free = shutil.disk_usage(folder).free
    text = f"writes {written / 1e6:,.0f} MB/s, reads {read / 1e6:,.0f} MB/s, {free / 1e9:,.0f} GB free"
    return Finding(name, text, "" if written >= SLOW_DISK else "slow: saving checkpoints will take long here")
