"""Scores of a confusion matrix, as numbers, a table, JSON and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.utilities.plot import plot_confusion_matrix

from pspfast import __version__
from pspfast.data import Taxonomy
from pspfast.engine.config import EvalConfig
from pspfast.engine.files import atomic_open

# Numbers of a larger matrix would be too small to read.
_MOST_NUMBERED_CLASSES = 30


@dataclass
class Scores:
    """Scores of a confusion matrix.

    A class that occurs neither in labels nor in predictions has IoU NaN, one that occurs in no
    label has accuracy NaN, and the means leave NaN out (as mmseg). A class that is predicted but
    occurs in no label has IoU 0.

    Args:
        confusion: pixel counts ``[K, K]``, rows are labels and columns predictions.
    """

    confusion: Tensor

    @property
    def iou(self) -> Tensor:
        """Intersection over union of each class ``[K]``."""
        counts = self.confusion.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    @property
    def accuracy(self) -> Tensor:
        """Share of each class's pixels that were predicted as that class ``[K]``."""
        counts = self.confusion.double()
        return counts.diagonal() / counts.sum(1)

    @property
    def mean_iou(self) -> float:
        return self.iou.nanmean().item()

    @property
    def mean_accuracy(self) -> float:
        return self.accuracy.nanmean().item()

    @property
    def semseg_mean_iou(self) -> float:
        """Mean over all K classes, absent ones as 0 (as semseg)."""
        return self.iou.nan_to_num(0).mean().item()

    @property
    def semseg_mean_accuracy(self) -> float:
        """Mean over all K classes, absent ones as 0 (as semseg)."""
        return self.accuracy.nan_to_num(0).mean().item()

    @property
    def pixel_accuracy(self) -> float:
        counts = self.confusion.double()
        return (counts.diagonal().sum() / counts.sum()).item()

    def summary(self) -> dict[str, float]:
        """The overall scores by their short names."""
        return {
            "mIoU": self.mean_iou,
            "mAcc": self.mean_accuracy,
            "mIoU_absent_0": self.semseg_mean_iou,
            "mAcc_absent_0": self.semseg_mean_accuracy,
            "pixel_acc": self.pixel_accuracy,
        }

    def table(self, names: Sequence[str]) -> str:
        """Markdown table of IoU and accuracy per class, in percent, and the overall scores."""
        width = max(len("class"), *(len(name) for name in names))
        lines = [f"| {'class':{width}} |   IoU |   acc |", f"|:{'-' * width}-|------:|------:|"]
        rows = [*zip(names, self.iou.tolist(), self.accuracy.tolist(), strict=True)]
        rows.append(("mean", self.mean_iou, self.mean_accuracy))
        lines += [f"| {name:{width}} | {100 * i:5.1f} | {100 * a:5.1f} |" for name, i, a in rows]
        return "\n".join([*lines, "", f"pixel accuracy {100 * self.pixel_accuracy:.1f}"])

    def picture(self, names: Sequence[str]) -> Figure:
        """The confusion matrix, each row as shares of the label's pixels."""
        counts = self.confusion.double()
        shares = (counts / counts.sum(1, keepdim=True)).nan_to_num(0)
        side = 2 + min(0.5 * len(names), 20)
        figure = Figure(figsize=(side, side), layout="constrained")
        plot_confusion_matrix(
            shares.mul(100).round() / 100,
            figure.subplots(),
            add_text=len(names) <= _MOST_NUMBERED_CLASSES,
            labels=list(names),
        )
        return figure


def save_scores(
    folder: str | Path,
    scores: Scores,
    taxonomy: Taxonomy,
    options: EvalConfig,
    device: torch.device,
) -> None:
    """Writes ``scores.json`` and ``confusion.png`` into a folder, which is made if there is none.

    The JSON has the overall scores, those of every class, the pixel counts of the confusion matrix
    with labels in rows, the options and the versions; null is the score of an absent class.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    per_class = zip(
        taxonomy.names,
        scores.iou.tolist(),
        scores.accuracy.tolist(),
        scores.confusion.sum(1).tolist(),
        strict=True,
    )
    record = {
        "scores": {name: _or_null(value) for name, value in scores.summary().items()},
        "classes": {
            name: {"IoU": _or_null(iou), "acc": _or_null(accuracy), "pixels": pixels}
            for name, iou, accuracy, pixels in per_class
        },
        "confusion": scores.confusion.tolist(),
        "options": asdict(options),
        "versions": {"pspfast": __version__, "torch": torch.__version__},
        "device": device.type,
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    with atomic_open(folder / "scores.json") as file:
        file.write(text.encode())
    with atomic_open(folder / "confusion.png") as file:
        scores.picture(taxonomy.names).savefig(file, format="png", dpi=100)


def _or_null(score: float) -> float | None:
    return None if math.isnan(score) else score
