"""The best and the worst images of an evaluation, drawn for the page."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pspfast.data import ClassList, SegmentationDataset, overlay
from pspfast.evaluation.image_scores import ImageScore, ImageScores

_LONG_SIDE = 480  # pixels, of three pictures beside each other on a page 1400 pixels wide


@dataclass(frozen=True)
class Example:
    """An image with its labels and its prediction drawn over it.

    Attributes:
        is_best: whether it is one of the best, not of the worst.
        name: of its file.
        score: of it.
        pictures: JPEG files by what they show.
    """

    is_best: bool
    name: str
    score: ImageScore
    pictures: dict[str, bytes]


def draw_examples(
    images: ImageScores, dataset: SegmentationDataset, class_list: ClassList
) -> list[Example]:
    """The best, then the worst.

    Raises:
        ValueError, FileNotFoundError: a file broke since it was scored.
    """
    examples = []
    for is_best, scores in ((True, images.best), (False, images.worst)):
        for score in scores:
            image, labels = dataset.load(score.sample)
            pixels = image.permute(1, 2, 0).numpy()
            drawn = {
                "image": pixels,
                "labels": overlay(pixels, labels, class_list),
                "prediction": overlay(pixels, images.predicted[score.sample], class_list),
            }
            pictures = {name: _jpeg(picture) for name, picture in drawn.items()}
            name = str(dataset.samples[score.sample][0])
            examples.append(Example(is_best, name, score, pictures))
    return examples


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_LONG_SIDE, _LONG_SIDE))
    file = io.BytesIO()
    picture.save(file, format="jpeg", quality=85)
    return file.getvalue()
