"""From the ids in published label files to class ids, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        file_ids: the id of each class in written files; `None` for the first of `classes`.
    """

    classes: tuple[int | None, ...]
    ignore_index: int = 255
    file_ids: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        return sum(class_id is not None for class_id in self.classes)

    @classmethod
    def mapped(cls, label_map: Mapping[int, int], num_classes: int, ignore_index: int) -> LabelIds:
        """Class ids, but for those that are mapped to others: `{255: 1}` for masks of 0 and 255.

        Args:
            label_map: ids in the files, 0 to 255, and the class or `ignore_index` of each.
            num_classes: K.
            ignore_index: id of pixels that are not to be learnt.

        Raises:
            ValueError: an id is out of range.
        """
        valid = {*range(num_classes), ignore_index}
        for file_id, class_id in label_map.items():
            if not 0 <= file_id <= 255 or class_id not in valid:
                raise ValueError(
                    f"data.label_map: expected ids 0 to 255 and classes 0 to {num_classes - 1} or "
                    f"{ignore_index} (ignored), got {file_id}: {class_id}"
                )
        written = {class_id: file_id for file_id, class_id in reversed([*label_map.items()])}
        return cls(
            # Ids that are no class are told by the check that follows.
            tuple(label_map.get(i, i) for i in range(256)),
            ignore_index,
            tuple(written.get(i, i) for i in range(num_classes)),
        )

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
        table = self.file_ids or [self.classes.index(i) for i in range(self.num_classes)]
        return _look_up(table, class_ids, "the prediction")


def _look_up(table: Sequence[int], ids: ArrayLike, what: str) -> NDArray[np.uint8]:
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
