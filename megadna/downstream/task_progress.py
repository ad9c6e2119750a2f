"""Tells of the steps and batches of transformers' Trainer through megadna.progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from megadna.progress import Progress


class Reporter(TrainerCallback):
    """A callback; what the Trainer does within `during` is told."""

    def __init__(self) -> None:
        self._progress = Progress("")
        self._batches = 0

    @contextmanager
    def during(self, what: str, unit: str) -> Iterator[None]:
        """`unit`: steps (of training), or batches (of a prediction)."""
        with Progress(what, unit=unit) as self._progress:
            yield

    def on_train_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The number of steps is known from now on."""
        self._progress.total = state.max_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """One step."""
        self._progress.advance()

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **unused: Any
    ) -> None:
        """One batch of an evaluation while training, or of a prediction."""
        self._batches += 1
        if self._progress.unit == "batches":
            self._progress.total = len(eval_dataloader)
            self._progress.advance()
        else:
            self._progress.note = f"evaluating, batch {self._batches} of {len(eval_dataloader)}"

    def on_evaluate(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
        """The end of an evaluation while training."""
        self._batches, self._progress.note = 0, ""
