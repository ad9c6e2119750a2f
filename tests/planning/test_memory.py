"""The planner's activations are what torch saves for the backward pass, on real layers of a small model."""

from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from megadna.config import Config, DataConfig, EngineConfig, ModelConfig, ParallelConfig, TrainConfig
from megadna.planning.memory import fullest_memory, layer_bytes, parts_in_flight, recomputed_layer_bytes

TOKENS = 2 * 512
SMALL = {"hidden_size": 128, "num_attention_heads": 4, "ffn_hidden_size": 320}
MODELS = {
    "modern": ModelConfig(**SMALL),
    "BERT": ModelConfig(**SMALL, norm_placement="post", positions="learned", activation="gelu", token_types=2),
    "grouped queries": ModelConfig(**SMALL, num_query_groups=2),
    "wide": ModelConfig(hidden_size=64, num_attention_heads=2, ffn_hidden_size=512),
}
LAYOUTS = {
    "one rank": ParallelConfig(),
    "tensor 2": ParallelConfig(tensor=2),
    "tensor 2, sequence": ParallelConfig(tensor=2, sequence=True),
    "recompute full": ParallelConfig(recompute="full"),
}


def make(model: ModelConfig, parallel: ParallelConfig, num_layers: int) -> Config:
    return Config(
        model=replace(model, num_layers=num_layers),
        parallel=parallel,
        engine=EngineConfig(device="cpu", precision="fp32"),
        data=DataConfig(sequence_length=512),
        train=TrainConfig(micro_batch_size=2, global_batch_size=2),
    )


def saved_by_torch(cases: list[Config]) -> list[int]:
    """Bytes of the storages that forward keeps for backward, parameters aside."""
    from megadna.engine.distributed import parallel_world
    from megadna.model.encoder import build_encoder

    found = []
    with parallel_world(cases[0].engine, cases[0].parallel) as world:
        for config in cases:
            encoder = build_encoder(config, 16, world.device)
            own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
            kept: dict[int, torch.UntypedStorage] = {}

            def pack(x: torch.Tensor, own: set = own, kept: dict = kept) -> torch.Tensor:
                if x.untyped_storage().data_ptr() not in own:
                    kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                logits = encoder(torch.randint(5, 9, (2, 512)))
            found.append(sum(storage.nbytes() for storage in kept.values()))
            del logits
    return found


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_layer_keeps_what_the_formula_says(num_ranks: int) -> None:
    """The third layer's share, so that embedding, head and rotary angles cancel; a tenth is allowed, 2 % is held."""
    layouts = {name: parallel for name, parallel in LAYOUTS.items() if parallel.tensor == num_ranks}
    pairs = [(name, model, layout) for name, model in MODELS.items() for layout in layouts]
    cases = [make(model, layouts[layout], layers) for _, model, layout in pairs for layers in (2, 3)]
    saved = run_ranks(saved_by_torch, num_ranks, cases)[0]
    for number, (name, model, layout) in enumerate(pairs):
        config = make(model, layouts[layout], 3)
        expected = layer_bytes(config, TOKENS, on_gpu=False)
        if layouts[layout].recompute == "full":
            expected = recomputed_layer_bytes(config, TOKENS)
        assert saved[2 * number + 1] - saved[2 * number] == pytest.approx(expected, rel=0.02), (name, layout)


def test_micro_batches_in_flight_follow_the_schedule() -> None:
    plain = Config(model=ModelConfig(num_layers=8), parallel=ParallelConfig(pipeline=4))
    assert [parts_in_flight(plain, stage, 16) for stage in range(4)] == [4, 3, 2, 1]
    assert parts_in_flight(plain, 0, 2) == 2
    interleaved = replace(plain, parallel=ParallelConfig(pipeline=4, virtual_pipeline=2))
    assert [parts_in_flight(interleaved, stage, 16) for stage in range(4)] == [11, 9, 7, 5]


def test_the_fullest_stage_counts() -> None:
    """The first stage holds most micro-batches; with a large vocabulary and one in flight, the last has the logits."""
    config = replace(
        Config(model=ModelConfig(num_layers=8), parallel=ParallelConfig(pipeline=4)),
        train=TrainConfig(micro_batch_size=1, global_batch_size=16),
    )
    many = fullest_memory(config, 16, 4000, 4)
    assert many.logits == 0 and many.activations == 4 * 2 * layer_bytes(config, 4000)
    one = replace(config, train=TrainConfig(micro_batch_size=1, global_batch_size=1))
    assert fullest_memory(one, 65536, 4000, 4).logits > 0
