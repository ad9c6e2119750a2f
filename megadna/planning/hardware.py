"""GPUs and networks by their data sheets."""

from dataclasses import dataclass

from megadna.errors import require
from megadna.model.flops import PEAK_TFLOPS

GPUS_PER_NODE = 8


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU among others of its node and of other nodes."""

    name: str
    memory_gb: float
    """Memory, 1e9 bytes."""
    tflops: float
    """Dense 16-bit peak, TFLOP/s."""
    bandwidth: float
    """Memory bandwidth, 1e12 bytes a second."""
    link: float
    """GB/s to the other GPUs of the node, each direction."""
    network: float
    """GB/s a GPU to other nodes, each direction."""
    reached: float = 0.56
    """Share of the peak that wide matrix products reach in training: fitted, see planning/step_time.py."""

    def __post_init__(self) -> None:
        for key in ("memory_gb", "tflops", "bandwidth", "link", "network", "reached"):
            require(getattr(self, key) > 0, f"gpu: {key} must be positive, got {getattr(self, key)}")


AMPERE = {"link": 300, "network": 25, "reached": 0.96}

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="a100-40", memory_gb=40, tflops=PEAK_TFLOPS["A100"], bandwidth=1.555, **AMPERE),
        Gpu(name="a100-80", memory_gb=80, tflops=PEAK_TFLOPS["A100"], bandwidth=2.039, **AMPERE),
        Gpu(name="h100", memory_gb=80, tflops=PEAK_TFLOPS["H100"], bandwidth=3.35, link=450, network=50),
        Gpu(name="h200", memory_gb=141, tflops=PEAK_TFLOPS["H200"], bandwidth=4.8, link=450, network=50),
        Gpu(name="b200", memory_gb=180, tflops=PEAK_TFLOPS["B200"], bandwidth=7.7, link=900, network=50),
    )
}
"""SXM cards in nodes of eight, NVLink inside; between nodes one 200 Gb/s (A100) or 400 Gb/s adapter a GPU."""
