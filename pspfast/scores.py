"""How well a model labels: its confusion matrix over labelled images, and the scores of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import plot_confusion_matrix

# Numbers of a larger matrix would be too small to read.
MOST_NUMBERED_CLASSES = 30


class Predictor(Protocol):
    """What can be scored: a PSPNet, or one that labels at several scales or by windows."""

    def predict(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to labels ``[N, H, W]``."""


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
            add_text=len(names) <= MOST_NUMBERED_CLASSES,
            labels=list(names),
        )
        return figure


class ConfusionMatrix(Metric):
    """Pixel counts ``[K, K]``, rows are labels and columns predictions. ``compute`` sums over
    processes; ``update`` waits for no device.

    Args:
        classes: K.
        ignore_index: label of pixels that do not count.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, classes: int, ignore_index: int) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index
        # A bucket for each pair of classes, and one for pixels that do not count. Their number is
        # fixed: where it depends on values, as bincount's, or pixels are masked, a device waits.
        self.add_state(
            "counts", torch.zeros(classes * classes + 1, dtype=torch.long), dist_reduce_fx="sum"
        )

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """
        Args:
            predicted: classes ``[N, H, W]``, integers.
            labels: ``[N, H, W]``, integers: classes or ``ignore_index``.
        """
        labels = labels.long()
        pairs = torch.where(
            labels == self.ignore_index, len(self.counts) - 1, labels * self.classes + predicted
        )
        one = self.counts.new_ones(())
        self.counts.scatter_add_(0, pairs.flatten(), one.expand(pairs.numel()))

    def compute(self) -> Tensor:
        return self.counts[:-1].view(self.classes, self.classes)


def make_confusion(classes: int, ignore_index: int, device: torch.device) -> ConfusionMatrix:
    """An empty one on a device."""
    return ConfusionMatrix(classes, ignore_index).to(device)


@torch.inference_mode()
def evaluate(
    model: Predictor,
    batches: Iterable[tuple[Tensor, Tensor]],
    confusion: ConfusionMatrix,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    observe: Callable[[Tensor, Tensor], None] | None = None,
) -> Scores:
    """Scores the labels of ``model.predict``, at the images' own size.

    Args:
        model: the network, left in the mode it was in, or a protocol.
        batches: images ``[N, 3, H, W]`` and labels ``[N, H, W]``.
        confusion: empty matrix, see ``make_confusion``.
        device: where the model is.
        memory_format: of the images.
        observe: is given the prediction and the labels of each batch, ``[N, H, W]`` both.
    """
    for images, labels in batches:
        images = images.to(device, memory_format=memory_format, non_blocking=True)
        predicted = model.predict(images)
        confusion.update(predicted, labels.to(device, non_blocking=True))
        if observe is not None:
            observe(predicted, labels)
    return Scores(confusion.compute().cpu())
