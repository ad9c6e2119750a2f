"""Which group a sample comes from, and which of the group's rows it is, in closed form.

In:  the share of each group.
Out: for sample i the group g and j, the number of earlier samples of the run from g. Row j of a group follows the
group's own epochs, so a group is passed through completely before it repeats.

A pattern of 65,536 slots is laid out once: group g gets the largest-remainder number of slots, spread evenly.
Realised shares differ from those asked by less than 1/65,536, plus a few samples.
"""

import numpy as np
from numpy.typing import NDArray

from megadna.errors import UserError

PATTERN = 65_536


class Blend:
    """The repeating pattern of groups."""

    def __init__(self, shares: list[float]) -> None:
        exact = np.array(shares) * PATTERN
        self._counts = np.floor(exact).astype(np.int64)
        missing = PATTERN - int(self._counts.sum())
        self._counts[np.argsort(self._counts - exact, kind="stable")[:missing]] += 1
        if not self._counts.all():
            raise UserError(
                f"data.blend: a share of {min(shares):.2g} is too small to be kept (least: 1/{PATTERN}); "
                "raise its weight, or the temperature"
            )
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in self._counts])
        order = np.argsort(places, kind="stable")
        self._groups = np.repeat(np.arange(len(shares)), self._counts)[order]
        self._ranks = np.concatenate([np.arange(count) for count in self._counts])[order]

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Group and number within the group of each sample."""
        turns, slots = np.divmod(samples, PATTERN)
        groups = self._groups[slots]
        return groups, turns * self._counts[groups] + self._ranks[slots]
