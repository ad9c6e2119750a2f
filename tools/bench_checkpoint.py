"""How long a checkpoint holds training up: synchronous and asynchronous saves, both optimizer formats.

    python tools/bench_checkpoint.py [--layers 12] [--hidden 512] [--ranks 2] [--rounds 5] [--folder /dev/shm]

The ranks (gloo, one thread each, bf16, data parallel) save in turn, nothing else runs between saves. Stall: what `save`
takes; its ratio is to the synchronous save of the same round, and the median over the rounds is given. Memory: the
highest peak of a rank during the stall beyond what it held before. Prints Markdown.
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.multiprocessing import spawn

from megadna.config import CheckpointConfig, Config, EngineConfig, ModelConfig

KINDS: dict[str, tuple[Literal["reshardable", "fast"], bool]] = {
    "synchronous, reshardable": ("reshardable", False),
    "synchronous, fast": ("fast", False),
    "asynchronous, reshardable": ("reshardable", True),
    "asynchronous, fast": ("fast", True),
}
Row = dict[str, list[float]]


def rank_main(rank: int, config: Config, options: argparse.Namespace, folder: str) -> None:
    """Save `options.rounds` times in every way on this rank; writes its seconds and bytes into `folder`."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    torch.set_num_threads(1)
    size = str(options.ranks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, MEGADNA_STORE=f"{folder}/store")
    found: dict[str, Row] = {name: {"seconds": [], "bytes": []} for name in KINDS}
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        writers = {}
        for name, (optimizer_format, asynchronous) in KINDS.items():
            keep = CheckpointConfig(
                keep_last=1, keep_best=0, optimizer_format=optimizer_format, asynchronous=asynchronous
            )
            writers[name] = CheckpointWriter(Path(folder), replace(config, checkpoint=keep), world, {})
        for round_number in range(options.rounds + 1):
            for name, writer in writers.items():
                state.step += 1
                writer.save(state, {})
                if round_number:  # the first allocates
                    found[name]["seconds"].append(writer.stall_seconds)
                    found[name]["bytes"].append(writer.stall_bytes)
                writer.finish()
        assert not any(writer.num_failed for writer in writers.values())
        found["parameters"] = {"count": [sum(p.numel() for chunk in state.model_parts for p in chunk.parameters())]}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))


def table(ranks: list[dict[str, Row]], options: argparse.Namespace) -> str:
    """Markdown: the slowest rank of each save, medians over the rounds."""
    seconds = {name: [max(times) for times in zip(*(r[name]["seconds"] for r in ranks), strict=True)] for name in KINDS}
    lines = [
        f"{int(ranks[0]['parameters']['count'][0]):,} parameters, bf16, {options.ranks} ranks, {options.rounds} rounds",
        "",
        "| save | seconds that training stands still | share of the synchronous save | host memory for it, MB a rank |",
        "|---|---|---|---|",
    ]
    for name, (optimizer_format, _) in KINDS.items():
        whole = seconds[f"synchronous, {optimizer_format}"]
        ratio = statistics.median(a / b for a, b in zip(seconds[name], whole, strict=True))
        memory = max(max(r[name]["bytes"]) for r in ranks) / 1e6
        lines.append(f"| {name} | {statistics.median(seconds[name]):.2f} | {ratio:.0%} | {memory:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 12), ("hidden", 512), ("ranks", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, default=None, help="where to save; default: the temporary folder")
    options = parser.parse_args()
    model: dict[str, Any] = {"num_layers": options.layers, "hidden_size": options.hidden, "num_attention_heads": 8}
    config = Config(
        model=ModelConfig(**model, ffn_hidden_size=options.hidden * 8 // 3 // 16 * 16),
        engine=EngineConfig(device="cpu", precision="bf16"),
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        spawn(rank_main, args=(config, options, folder), nprocs=options.ranks)
        ranks = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(options.ranks)]
    print(table(ranks, options))


if __name__ == "__main__":
    main()
