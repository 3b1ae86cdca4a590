"""The score of each image of an evaluation, and the labels of the best and the worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from pspfast.scores import Scores, make_confusion

# Of each kind: enough to see a pattern, and few enough for a page of some hundred kilobytes.
SHOWN = 4


class ImageScore(NamedTuple):
    """Scores of one image, by the index of its sample; NaN where all its pixels are ignored."""

    sample: int
    mean_iou: float
    pixel_accuracy: float


@dataclass
class ImageScores:
    """What ``ImageScorer`` found.

    Attributes:
        scores: of all images, in the order of the samples.
        predicted: classes ``[H, W]`` by the index, of ``best`` and ``worst``.
    """

    scores: list[ImageScore]
    predicted: dict[int, NDArray[np.uint8]]

    @property
    def best(self) -> list[ImageScore]:
        """At most ``SHOWN``, the best first."""
        return _ranked(self.scores)[: -SHOWN - 1 : -1]

    @property
    def worst(self) -> list[ImageScore]:
        """At most ``SHOWN``, the worst first; none that is among the best."""
        best = self.best
        return [score for score in _ranked(self.scores)[:SHOWN] if score not in best]


class ImageScorer:
    """Scores each image by itself; ``evaluate`` calls it with batches of one.

    The mean IoU of an image is over the classes that occur in it or in its prediction.

    Args:
        indices: of the images in the order in which they come.
        classes: K.
        ignore_index: label of pixels that do not count.
    """

    def __init__(self, indices: Sequence[int], classes: int, ignore_index: int) -> None:
        self.indices, self.classes, self.ignore_index = indices, classes, ignore_index
        self._scores: list[ImageScore] = []
        self._predicted: dict[int, NDArray[np.uint8]] = {}

    def __call__(self, predicted: Tensor, labels: Tensor) -> None:
        """Adds the next image: ``[1, H, W]``, both integers."""
        index = self.indices[len(self._scores)]
        confusion = make_confusion(self.classes, self.ignore_index, predicted.device)
        confusion.update(predicted, labels.to(predicted.device))
        # Not compute(), which would add the images of the other processes.
        counts = confusion.counts[:-1].view(self.classes, self.classes)
        scores = Scores(counts.cpu())
        self._scores.append(ImageScore(index, scores.mean_iou, scores.pixel_accuracy))
        self._predicted[index] = predicted[0].cpu().numpy().astype(np.uint8)
        self._predicted = _extremes(self._scores, self._predicted)

    def gather(self) -> ImageScores:
        """Of all processes, which all have to call it."""
        scores = sorted(gather_object(self._scores))
        predicted = dict(gather_object([*self._predicted.items()]))
        return ImageScores(scores, _extremes(scores, predicted))


def _ranked(scores: list[ImageScore]) -> list[ImageScore]:
    """From the worst to the best; images without a score are left out."""
    scored = [score for score in scores if not math.isnan(score.mean_iou)]
    return sorted(scored, key=lambda score: (score.mean_iou, score.sample))


def _extremes(
    scores: list[ImageScore], predicted: dict[int, NDArray[np.uint8]]
) -> dict[int, NDArray[np.uint8]]:
    ranked = _ranked([score for score in scores if score.sample in predicted])
    kept = {score.sample for score in ranked[:SHOWN] + ranked[-SHOWN:]}
    return {index: labels for index, labels in predicted.items() if index in kept}
