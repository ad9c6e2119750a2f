"""What a resumed run may change: everything but the model, the tokenizer and the order of the data.

Model weights, token ids and "sample i" must mean the same before and after; the layout, the number of steps, the
schedule, logging and where the dataset lies may differ, and every difference is logged.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megadna.config import Config
from megadna.errors import UserError
from megadna.log import get_logger
from megadna.train.checkpoint import read_config, read_numbers

log = get_logger(__name__)

FIXED = ("seed", "tokenizer.", "model.", "data.sequence_length")
FREE = ("model.attention", "model.init_std", "model.dropout")


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
    before, now = flat(asdict(read_config(checkpoint))), flat(asdict(config))
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if key.startswith(FIXED) and key not in FREE:
            raise UserError(
                f"--resume cannot change {key}: the run has {old}, you gave {new}; leave it, or start a new run "
                "from its weights with --checkpoint.init_from"
            )
        log.info("resuming with %s %s instead of %s", key, new, old)


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model.num_layers": 12, ...} of a nested dictionary; tuples as lists."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
