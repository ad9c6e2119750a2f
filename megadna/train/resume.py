"""What a resumed run may change: everything but the model, the tokenizer and the order of the data.

Model weights, token ids and "sample i" must mean the same before and after; the layout, the number of steps, the
schedule, logging and where the dataset lies may differ, and every difference is logged. An optimizer saved as `fast`
needs the layout as well. A new run from old weights (checkpoint.init_from) needs their architecture and vocabulary.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megadna.config import Config
from megadna.errors import UserError
from megadna.log import get_logger
from megadna.train.checkpoint import optimizer_format, read_config, read_numbers

log = get_logger(__name__)

FIXED = ("seed", "tokenizer.", "model.", "data.sequence_length")
FREE = ("model.attention", "model.init_std", "model.dropout")
LAYOUT = (
    *("parallel.tensor", "parallel.pipeline", "parallel.pipeline_layers", "parallel.virtual_pipeline"),
    *("parallel.overlap_grad_reduce", "engine.precision"),
)
"""What the buffers of a `fast` optimizer depend on, the number of data-parallel ranks aside."""


def check_resume(checkpoint: Path, config: Config, facts: dict[str, Any]) -> None:
    """UserError with both values where what must stay has changed; the rest is logged.

    facts: what the writer put into state.json (tokenizer, dataset_id).
    """
    saved = read_numbers(checkpoint)
    for key, value in facts.items():
        if saved.get(key) != value:
            raise UserError(
                f"{checkpoint}: was trained with {key} {saved.get(key)}, this run has {value}; give the same one, or "
                "start a new run from its weights with --checkpoint.init_from"
            )
    is_fast = optimizer_format(saved) == "fast"
    for key, old, new in _differences(checkpoint, config):
        if is_fast and key in LAYOUT:
            raise UserError(
                f"{checkpoint}: its optimizer was saved with checkpoint.optimizer_format fast under {key} {old}, you "
                f"gave {new}; resume it as it was and stop it with SIGTERM, which saves a checkpoint for any layout"
            )
        if key.startswith(FIXED) and key not in FREE:
            raise UserError(
                f"--resume cannot change {key}: the run has {old}, you gave {new}; leave it, or start a new run "
                "from its weights with --checkpoint.init_from"
            )
        log.info("resuming with %s %s instead of %s", key, new, old)


def check_weights(checkpoint: Path, config: Config) -> None:
    """UserError with both values where `checkpoint` holds weights of another architecture or vocabulary."""
    for key, old, new in _differences(checkpoint, config):
        if key.startswith(("tokenizer.", "model.")) and key not in (*FREE, "model.rotary_interpolation"):
            raise UserError(
                f"checkpoint.init_from {checkpoint}: has {key} {old}, this run has {new}; give this run the "
                "architecture and vocabulary of the weights"
            )


def _differences(checkpoint: Path, config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Keys of which the checkpoint's config and this one hold different values, and both."""
    before, now = flat(asdict(read_config(checkpoint))), flat(asdict(config))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield key, before.get(key), now.get(key)


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.num_layers": 12, ...} of a nested dictionary; tuples as lists."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
