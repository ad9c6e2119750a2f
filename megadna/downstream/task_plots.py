"""PNG plots of a test set: confusion matrix, ROC and precision-recall curves, or predicted against true numbers."""

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

from megadna.downstream.tasks import Target


def write_plots(
    truth: np.ndarray, predicted_NC: np.ndarray, target: Target, folder: Path, split: str, file_name: str
) -> None:
    """confusion-SPLIT.png, roc-SPLIT.png and pr-SPLIT.png, or scatter-SPLIT.png; `file_name` is the split's part."""
    title, names = _shown(split), [_shown(name) for name in target.names]
    if target.is_regression:
        figure, axes = _figure()
        for place, name in enumerate(names):
            axes.plot(truth[:, place], predicted_NC[:, place], ".", markersize=3, label=name)
        axes.set(xlabel="true", ylabel="predicted", title=title)
        axes.legend()
        figure.savefig(folder / f"scatter-{file_name}.png")
        return
    several = target.independent
    truth_NC = truth if several else np.eye(len(target.names))[truth]
    if not several:
        figure, axes = _figure()
        called = predicted_NC.argmax(axis=1)
        labels = list(range(len(target.names)))
        ConfusionMatrixDisplay.from_predictions(
            truth, called, labels=labels, display_labels=names, ax=axes, colorbar=False
        )
        figure.savefig(folder / f"confusion-{file_name}.png")
    for kind, display in (("roc", RocCurveDisplay), ("pr", PrecisionRecallDisplay)):
        figure, axes = _figure()
        for place, name in enumerate(names):
            if 0 < truth_NC[:, place].sum() < len(truth_NC):
                display.from_predictions(truth_NC[:, place], predicted_NC[:, place], name=name, ax=axes)
        axes.set_title(title)
        figure.savefig(folder / f"{kind}-{file_name}.png")


def _shown(name: str) -> str:
    """The name as matplotlib draws it: no formula between dollar signs, no legend entry left out for its underscore."""
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    return figure, figure.subplots()
