"""How long a checkpoint pauses training: the stall of a save, and the time until it is on the disk.

    python tools/bench_checkpoint.py [--layers 12] [--hidden 512] [--ranks 2] [--rounds 5] [--folder /dev/shm]

The ranks (gloo, one thread each, bf16, data parallel) save together, with nothing between saves. Stall: the time of
`save`; its ratio is to the whole save of the same round, and the median over the rounds is given. Memory: the highest
peak of a rank during the stall beyond what it held before. Prints Markdown.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import spawn

from megadna.config import CheckpointConfig, Config, EngineConfig, ModelConfig


def rank_main(rank: int, config: Config, options: argparse.Namespace, folder: str) -> None:
    """Save `options.rounds` times on this rank; writes its seconds and bytes into `folder`."""
    from megadna.engine.distributed import parallel_world
    from megadna.train.saving import CheckpointWriter
    from megadna.train.step import build_state

    torch.set_num_threads(1)
    size = str(options.ranks)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, MEGADNA_STORE=f"{folder}/store")
    found: dict[str, list[float]] = {"stall": [], "whole": [], "bytes": []}
    with parallel_world(config.engine, config.parallel) as world:
        state = build_state(config, 16, world)
        writer = CheckpointWriter(Path(folder), config, world, {})
        for round_number in range(options.rounds + 1):
            state.step, start = state.step + 1, time.perf_counter()
            writer.save(state, {})
            writer.finish()
            if round_number:  # the first allocates
                found["stall"].append(writer.stall_seconds)
                found["whole"].append(time.perf_counter() - start)
                found["bytes"].append(writer.stall_bytes)
        assert not writer.num_failed
        found["parameters"] = [sum(p.numel() for part in state.model_parts for p in part.parameters())]
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(found))


def table(ranks: list[dict[str, list[float]]], options: argparse.Namespace) -> str:
    """Markdown: the slowest rank of each save, medians over the rounds."""
    stall, whole = ([max(times) for times in zip(*(r[key] for r in ranks), strict=True)] for key in ("stall", "whole"))
    ratio = statistics.median(a / b for a, b in zip(stall, whole, strict=True))
    memory = max(max(r["bytes"]) for r in ranks) / 1e6
    lines = [
        f"{int(ranks[0]['parameters'][0]):,} parameters, bf16, {options.ranks} ranks, {options.rounds} rounds",
        "",
        "| seconds that training pauses | seconds of the whole save | share | host memory, MB per rank |",
        "|---|---|---|---|",
        f"| {statistics.median(stall):.2f} | {statistics.median(whole):.2f} | {ratio:.0%} | {memory:,.0f} |",
    ]
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
        checkpoint=CheckpointConfig(keep_last=1, keep_best=0),
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        spawn(rank_main, args=(config, options, folder), nprocs=options.ranks)
        ranks = [json.loads(Path(folder, f"rank-{rank}.json").read_text()) for rank in range(options.ranks)]
    print(table(ranks, options))


if __name__ == "__main__":
    main()
