"""From the ids in published label files to class ids, and back."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torchvision.datasets import Cityscapes

MAX_LISTED = 10


@dataclass(frozen=True)
class LabelIds:
    """What the ids in a data set's label files mean.

    Attributes:
        classes: the class of each id from 0; `None` where its pixels are not to be learnt.
        ignore_index: takes the place of those.
    """

    classes: tuple[int | None, ...]
    ignore_index: int = 255

    @property
    def num_classes(self) -> int:
        return sum(class_id is not None for class_id in self.classes)

    def to_classes(self, file_ids: ArrayLike) -> NDArray[np.uint8]:
        """The class ids of the ids in a label file, in the same shape.

        Raises:
            ValueError: an id is not in `classes`.
        """
        table = [self.ignore_index if i is None else i for i in self.classes]
        return _look_up(table, file_ids, "the label map")

    def to_file_ids(self, class_ids: ArrayLike) -> NDArray[np.uint8]:
        """The inverse, for the files that a benchmark's server scores.

        Args:
            class_ids: predicted classes, 0 to K-1, an array or a tensor on the CPU.

        Raises:
            ValueError: an id is no class.
        """
        table = [self.classes.index(class_id) for class_id in range(self.num_classes)]
        return _look_up(table, class_ids, "the prediction")


def _look_up(table: list[int], ids: ArrayLike, what: str) -> NDArray[np.uint8]:
    ids = np.asarray(ids)
    wrong = np.unique(ids[(ids < 0) | (ids >= len(table))])
    if wrong.size:
        raise ValueError(f"{what} holds {list_ids(wrong)}; valid ids are 0 to {len(table) - 1}")
    return np.array(table, np.uint8)[ids]


def list_ids(ids: Iterable[int]) -> str:
    """The ids for an error message, ten at most."""
    listed = [str(i) for i in ids]
    return ", ".join(listed[:MAX_LISTED]) + (", ..." if listed[MAX_LISTED:] else "")


def _cityscapes_ids() -> tuple[int | None, ...]:
    # License plates have the id -1 and are never drawn; every other id that is not trained is 255.
    ids = {c.id: c.train_id if c.train_id != 255 else None for c in Cityscapes.classes if c.id >= 0}
    return tuple(ids[i] for i in range(len(ids)))


LABEL_IDS: dict[str, LabelIds] = {
    # annotations/*.png of the scene parsing benchmark: 0 is "other objects", 1 to 150 the classes.
    "ade20k": LabelIds((None, *range(150))),
    # gtFine/*_labelIds.png; a server scores these ids, networks learn the "train ids" 0 to 18.
    "cityscapes_ids": LabelIds(_cityscapes_ids()),
}
