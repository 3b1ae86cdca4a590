"""Whole-image evaluation: IoU and accuracy per class and overall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from tqdm import tqdm

from pspfast.data import EvalTransform, SegmentationDataset, Taxonomy
from pspfast.engine.config import EvalConfig
from pspfast.engine.inputs import checked_samples, make_loader
from pspfast.engine.weights import load_model
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


def evaluate_files(options: EvalConfig) -> tuple[Scores, Taxonomy]:
    """Scores a trained model on labelled images.

    Returns:
        The scores, and the classes that the model was trained for.

    Raises:
        ValueError, FileNotFoundError: checkpoint or data are wrong; before anything is evaluated.
    """
    trained = load_model(options.checkpoint)
    classes, ignore_index = trained.taxonomy.num_classes, trained.config.data.ignore_index
    samples = checked_samples(
        options.list, options.images, options.labels, options.root, classes, ignore_index
    )
    accelerator = Accelerator(mixed_precision=options.precision)
    loader = make_loader(
        SegmentationDataset(samples, EvalTransform()),
        [[i] for i in range(len(samples))],
        options.workers,
    )
    confusion = make_confusion(classes, ignore_index, accelerator.device)
    bar = tqdm(loader, desc="evaluate", unit=" images", disable=None)
    with accelerator.autocast():
        scores = evaluate(trained.model.to(accelerator.device), bar, confusion, accelerator.device)
    return scores, trained.taxonomy


def make_confusion(
    classes: int, ignore_index: int, device: torch.device
) -> MulticlassConfusionMatrix:
    """Confusion matrix that accumulates on the device and sums over processes in ``compute``."""
    # Labels are checked before training and evaluation; checking each batch would synchronise.
    matrix = MulticlassConfusionMatrix(classes, ignore_index=ignore_index, validate_args=False)
    return matrix.to(device)


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
