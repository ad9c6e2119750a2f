"""What a training run costs beside its steps: logs, data, stop and fault checks, heartbeat, by CPU seconds of the rank.

    OMP_NUM_THREADS=1 python tools/bench_overhead.py [--steps 60]

One rank trains configs/demo.yaml's model on a small real genome, micro-batch as there, without loader processes. CPU
time inside `train_step` (with the making of its batches) is set against that of the whole loop. TensorBoard is on;
validations and checkpoints are off: their cost is counted apart, as stalls.
"""

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from megadna.arguments import load_config
from megadna.commands import preprocess
from megadna.engine.distributed import parallel_world
from megadna.train import loop

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the CPU milliseconds of a step, of what is around it, and the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps after 5 of warm-up")
    steps = parser.parse_args().steps
    inside, marks = [], []
    original = loop.train_step

    def timed(*arguments: Any, **keywords: Any) -> Any:
        marks.append(time.process_time())
        result = original(*arguments, **keywords)
        inside.append(time.process_time() - marks[-1])
        return result

    loop.train_step = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        genome = str(ROOT / "tests" / "data" / "mgenitalium_G37.fa.gz")
        preprocess.main(["--input", genome, "--output", str(folder / "dataset")])
        config = load_config(ROOT / "configs" / "demo.yaml")
        config = replace(
            config,
            data=replace(config.data, path=str(folder / "dataset"), num_workers=0),
            engine=replace(config.engine, device="cpu", num_processes=1),
            train=replace(config.train, steps=1000),
            checkpoint=replace(config.checkpoint, interval=1000),
            validation=replace(config.validation, interval=0),
        )
        (folder / "run").mkdir()
        with parallel_world(config.engine, config.parallel) as world:
            run = loop.TrainingRun(config, folder / "run", world)
            run._step = _until(run, run._step, steps + 6)  # type: ignore[method-assign]
            with suppress(_Enough):
                run.train(resume="never")
    step = sum(inside[5 : steps + 5]) / steps
    whole = (marks[steps + 5] - marks[5]) / steps
    sys.stdout.write(
        f"a step {1e3 * step:.1f} ms, around it {1e3 * (whole - step):.2f} ms: {100 * (whole / step - 1):.2f} % (CPU)\n"
    )


class _Enough(Exception):
    """The run has gone on for long enough."""


def _until(run: loop.TrainingRun, step: Any, last: int) -> Any:
    def limited() -> None:
        if run.state.step >= last:
            raise _Enough
        step()

    return limited


if __name__ == "__main__":
    main()
