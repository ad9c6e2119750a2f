"""Time of one optimizer step on GPUs by parts, from FLOPs, bytes, the schedule and data sheets of GPUs and networks.

In:  a config (layout, batch), rows of the vocabulary, tokens of a sequence, ranks, a Gpu.
Out: StepTime, seconds of the slowest stage, and the bytes each rank sends by kind.

Matrix products run at Gpu.reached of the peak, attention at ATTENTION_SHARE for heads of 128 and less where a kernel
pads them; everything else is bound by memory bandwidth. Computation hides all but TENSOR_EXPOSED of the tensor-parallel
sums, and all but DATA_EXPOSED of the data-parallel ones where they overlap the backward pass. `reached` and
TENSOR_EXPOSED are fitted to Megatron-LM's table of nine models on H100, the A100's `reached` to one row;
tools/planning_table.py prints every prediction with its published figure. The other constants are guesses of the right
order of magnitude.
"""

from dataclasses import dataclass

from megadna.config import Config
from megadna.errors import require_positive
from megadna.model.shapes import BACKWARD, PEAK_TFLOPS, training_flops
from megadna.planning.memory import Position, part_layers, state_bytes

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
        require_positive("gpu", self, "memory_gb", "tflops", "bandwidth", "link", "network", "reached")


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


ATTENTION_SHARE = 0.40
"""FlashAttention-2 on an H100, forward and backward together (arXiv:2307.08691 has 0.5 to 0.73 of an A100)."""
HEAD_SIZES = {64: 0.8, 128: 1.0}
"""Share of the above by head size; others run as the next multiple of 64 with a second tile."""
BANDWIDTH_SHARE = 0.8
TENSOR_EXPOSED = 0.3
DATA_EXPOSED = 0.2
LINK_SHARE = 0.75
"""Of a link's rate that collectives reach."""
LAUNCH_SECONDS = 5e-6
KERNELS_PER_LAYER = 75
"""Forward and backward of one layer: small micro-batches wait for the CPU that launches them."""
LATENCY_SECONDS = 20e-6


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step."""

    matrices: float
    attention: float
    elementwise: float
    recompute: float
    tensor: float
    """Sums over tensor-parallel ranks."""
    context: float
    pipeline: float
    """Messages between stages."""
    bubble: float
    """Stages waiting for each other."""
    data: float
    """Gradients summed and weights gathered over data-parallel ranks."""
    optimizer: float
    traffic: dict[str, float]
    """Bytes a rank sends a step, by kind."""

    @property
    def seconds(self) -> float:
        """All parts together."""
        return sum(value for value in vars(self).values() if isinstance(value, float))


def step_time(
    config: Config, vocab_rows: int, sequence_length: int, num_ranks: int, gpu: Gpu, *, causal: bool = False
) -> StepTime:
    """Time of one step; causal: attention does half the work that is counted (published decoders, not ours)."""
    parallel, train = config.parallel, config.train
    position = Position.of(config, num_ranks - 1, num_ranks)
    micro_batches = train.global_batch_size * parallel.context // (train.micro_batch_size * position.shards)
    rows = train.micro_batch_size * sequence_length // parallel.context  # tokens of a rank's micro-batch
    layers = max(part_layers(config, stage) for stage in range(parallel.pipeline)) * parallel.virtual_pipeline
    bandwidth, again = gpu.bandwidth * 1e12 * BANDWIDTH_SHARE, _recomputed_share(config)

    matrices, attention = _products(config, vocab_rows, sequence_length, layers, gpu)
    attention /= 2 if causal else 1
    elementwise = _elementwise_bytes(config, vocab_rows, rows, layers) / bandwidth
    launches = layers * KERNELS_PER_LAYER * LAUNCH_SECONDS
    elementwise += max(0.0, launches - matrices - attention - elementwise)
    recompute = again / (1 + BACKWARD) * (matrices + attention + elementwise)

    link, network = gpu.link * 1e9 * LINK_SHARE, gpu.network * 1e9 * LINK_SHARE
    sums, sent = _messages(config, rows, layers)
    tensor_link = link if parallel.tensor <= GPUS_PER_NODE else network
    context_link = link if parallel.tensor * parallel.context <= GPUS_PER_NODE else network
    tensor = (sums / tensor_link + LATENCY_SECONDS * layers * 4 * (parallel.tensor > 1)) * TENSOR_EXPOSED
    context, pipeline = sent["context"] / context_link, sent["pipeline"] / network / 2

    one = matrices + attention + elementwise + recompute + tensor + context + pipeline
    states = [
        state_bytes(config, vocab_rows, Position(stage, 0, position.shards)) for stage in range(parallel.pipeline)
    ]
    state = max(states, key=lambda one: one["gradients"])
    data_bytes = (state["gradients"] + state["weights"]) * _others(position.shards)
    in_node = parallel.model_size * (position.shards // parallel.context) <= GPUS_PER_NODE
    exposed = DATA_EXPOSED if parallel.overlap_grad_reduce else 1.0
    # Weights, master weights and moments are read and written once, gradients cleared, summed up and read.
    touched = 2 * state["optimizer"] + 3 * state["gradients"]
    return StepTime(
        matrices=matrices * micro_batches,
        attention=attention * micro_batches,
        elementwise=elementwise * micro_batches,
        recompute=recompute * micro_batches,
        tensor=tensor * micro_batches,
        context=context * micro_batches,
        pipeline=pipeline * micro_batches,
        bubble=one * (parallel.pipeline - 1) / parallel.virtual_pipeline,
        data=exposed * data_bytes / (link if in_node else network),
        optimizer=touched / bandwidth,
        traffic={kind: count * micro_batches for kind, count in sent.items()} | {"data": data_bytes},
    )


def _products(config: Config, vocab_rows: int, sequence_length: int, layers: int, gpu: Gpu) -> tuple[float, float]:
    """Seconds of matrix products and of attention for a micro-batch in `layers` layers, forward and backward."""
    model, parallel, batch = config.model, config.parallel, config.train.micro_batch_size / config.parallel.context
    flops = training_flops(model, vocab_rows, sequence_length, predicted=config.data.masking.fraction) * batch
    width = model.num_attention_heads * model.head_size
    attention = 3 * 4 * batch * sequence_length**2 * width * model.num_layers
    share = layers / model.num_layers / parallel.tensor / (gpu.tflops * 1e12)
    products = (flops - attention) * share / gpu.reached
    return products, attention * share / (ATTENTION_SHARE * head_share(model.head_size))


def _messages(config: Config, rows: int, layers: int) -> tuple[float, dict[str, float]]:
    """Bytes of a micro-batch that tensor parallelism waits for, and all that a rank sends, by kind."""
    model, parallel, again = config.model, config.parallel, _recomputed_share(config)
    hidden = 2 * rows * model.hidden_size
    one = layers * 2 * hidden * _others(parallel.tensor)  # one sum in each layer
    sums = one * (4 + 2 * again)
    keys = 2 * 2 * rows * model.query_groups * model.head_size / parallel.tensor
    stages = (2 * parallel.virtual_pipeline - (parallel.pipeline == 2)) * (parallel.pipeline > 1)
    return sums, {
        # Sequence parallelism gathers two inputs once more, while the input gradients are computed.
        "tensor": sums + one * parallel.sequence,
        "context": layers * (2 + again) * keys * (parallel.context - 1),
        "pipeline": stages * hidden / (parallel.tensor if parallel.sequence else 1),
    }


def head_share(head_size: int) -> float:
    """Share of the best rate of attention that a head size reaches: 136 runs as 192."""
    padded = -(-head_size // 64) * 64
    return HEAD_SIZES.get(padded, 0.9) * head_size / padded


def _elementwise_bytes(config: Config, vocab_rows: int, rows: int, layers: int) -> float:
    """Bytes read and written between the matrix products, forward and backward (twice as many) of one micro-batch.

    A layer, in elements a token: two norms 4 h, two residual sums 6 h, rotation 4 w, activation 3 f.
    """
    model, tensor = config.model, config.parallel.tensor
    width = model.num_attention_heads * model.head_size
    whole = 10 * model.hidden_size / (tensor if config.parallel.sequence else 1)
    split = (4 * width * (model.positions == "rotary") + 3 * model.ffn_hidden_size) / tensor
    logits = 8 * config.data.masking.fraction * rows * vocab_rows / tensor
    return 3 * 2 * (rows * layers * (whole + split) + logits)


def _recomputed_share(config: Config) -> float:
    """Share of the forward pass that runs twice."""
    parallel = config.parallel
    if parallel.recompute == "full":
        return 1.0 / parallel.recompute_interval
    return 0.15 if parallel.recompute == "selective" else 0.0


def _others(size: int) -> float:
    """Share of a ring's data that crosses each link."""
    return (size - 1) / size
