"""Whole-image evaluation: IoU and accuracy per class and overall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from pspfast.models import PSPNet


@dataclass
class Scores:
    """Scores of a confusion matrix.

    A class that occurs neither in labels nor in predictions has IoU NaN, one that occurs in no
    label has accuracy NaN, and the means leave NaN out (as mmseg; semseg counts it as 0). A class
    that is predicted but occurs in no label has IoU 0.

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
    def pixel_accuracy(self) -> float:
        counts = self.confusion.double()
        return (counts.diagonal().sum() / counts.sum()).item()

    def summary(self) -> dict[str, float]:
        """The three overall scores by their short names."""
        return {
            "mIoU": self.mean_iou,
            "mAcc": self.mean_accuracy,
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


def make_confusion(classes: int, ignore_index: int, device: Any) -> MulticlassConfusionMatrix:
    """Confusion matrix that accumulates on the device and sums over processes in ``compute``."""
    # Labels are checked before training and evaluation; checking each batch would synchronise.
    return MulticlassConfusionMatrix(
        classes, ignore_index=ignore_index, validate_args=False
    ).to(device)


@torch.inference_mode()
def evaluate(
    model: PSPNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    confusion: MulticlassConfusionMatrix,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Scores:
    """Scores the labels of ``model.predict``, at the images' own size.

    Args:
        model: the network; left in the mode it was in.
        batches: images ``[N, 3, H, W]`` and labels ``[N, H, W]``.
        confusion: empty matrix, see ``make_confusion``.
        device: where the model is.
        memory_format: of the images.
    """
    for images, labels in batches:
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        confusion.update(model.predict(images), labels.to(device, non_blocking=True))
    return Scores(confusion.compute().cpu())
