"""Errors that end a command (a user's mistake: one line, exit status 2; a run that cannot continue), exit statuses."""

import re
from typing import Any

EXIT_RANK_LOST = 71
"""Exit status of the remaining ranks when one died or hung; --resume continues from the last checkpoint."""
EXIT_REQUEUE = 75
"""Exit status of a run that stopped early with everything saved: rerun the same command with --resume."""


class RunEnded(RuntimeError):
    """Training cannot continue; the message says why and what to do, in one line."""

    status = 1
    """Exit status of the command."""


class Diverged(RunEnded):
    """Training still met bad updates after the last roll-back allowed; the message says where."""

    status = 70


class SaveFailed(RunEnded):
    """The last checkpoint, or checkpoint.max_failed in a row, could not be saved."""

    status = 74


class RankLost(RunEnded):
    """Another rank died or hung; the message names it and the last step."""

    status = EXIT_RANK_LOST


class UserError(ValueError):
    """A bad file, key, value or layout. The message names it and the remedy, in one line."""


def require(condition: bool, message: str) -> None:
    """UserError with `message` where `condition` does not hold."""
    if not condition:
        raise UserError(message)


def require_share(key: str, value: float) -> None:
    """UserError where `value` is not in [0, 1]."""
    require(0.0 <= value <= 1.0, f"{key} must lie in [0, 1], got {value}")


_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")


def require_one_line(where: str, name: str) -> None:
    """UserError where the name contains a tab, a line end, another control character, or bytes that are not UTF-8."""
    found = _NOT_IN_A_LINE.search(name)
    if found:
        raise UserError(f"{where}: the name {name!r} holds {found[0]!r}, which a line of a table cannot; rename it")


def require_positive(section: str, config: Any, *keys: str) -> None:
    """UserError that names the first of `keys` whose value is not above 0."""
    for key in keys:
        value = getattr(config, key)
        require(value > 0, f"{section}.{key} must be positive, got {value}")


def require_not_negative(section: str, config: Any, *keys: str) -> None:
    """UserError that names the first of `keys` whose value is below 0."""
    for key in keys:
        value = getattr(config, key)
        require(value >= 0, f"{section}.{key} must not be negative, got {value}")
