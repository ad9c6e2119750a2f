"""What a run carries from step to step: model, optimizer, schedule, and how many samples it has consumed."""

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megadna.config import Config
from megadna.engine.distributed import World
from megadna.engine.optimizer import build_optimizer, build_scheduler, wrap_model
from megadna.model.encoder import build_encoder


@dataclass
class TrainState:
    """Everything a checkpoint holds."""

    chunks: list[DistributedDataParallel]
    """The model, or this rank's part of it: one module, several under parallel.virtual_pipeline."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    step: int = 0
    """Optimizer steps done."""
    consumed_samples: int = 0
    """Samples that the run has consumed; with `skipped` the whole data state."""
    skipped: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of samples left out after roll-backs, half-open."""


def build_state(config: Config, vocab_size: int, world: World) -> TrainState:
    """A run at step 0."""
    count = config.parallel.virtual_pipeline
    chunks = [
        wrap_model(
            build_encoder(
                config,
                vocab_size,
                world.device,
                pre_process=world.is_first_stage and number == 0,
                post_process=world.is_last_stage and number == count - 1,
                vp_stage=number if count > 1 else None,
            ),
            config,
            is_first_chunk=number == 0,
        )
        for number in range(count)
    ]
    optimizer = build_optimizer(chunks, config)
    return TrainState(chunks, optimizer, build_scheduler(optimizer, config.train))
