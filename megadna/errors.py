"""What ends a command: a user's mistake (one line, exit status 2) or a run that cannot go on; exit statuses."""

from typing import Any

EXIT_DIVERGED = 70
"""Exit status of a run that went back to its checkpoint as often as it may and still met bad updates."""
EXIT_REQUEUE = 75
"""Exit status of a run that stopped early with everything saved: start the same command again with --resume."""


class Diverged(RuntimeError):
    """Training met bad updates after the last roll-back allowed; the message says where."""


class UserError(ValueError):
    """A bad file, key, value or layout. The message names it and the remedy, in one line."""


def require(condition: bool, message: str) -> None:
    """UserError with `message` where `condition` does not hold."""
    if not condition:
        raise UserError(message)


def require_share(key: str, value: float) -> None:
    """UserError where `value` is not a share of 1."""
    require(0.0 <= value <= 1.0, f"{key} must lie in [0, 1], got {value}")


def require_positive(section: str, config: Any, *keys: str) -> None:
    """UserError that names the first of `keys` whose value is not above 0."""
    for key in keys:
        value = getattr(config, key)
        require(value > 0, f"{section}.{key} must be positive, got {value}")
