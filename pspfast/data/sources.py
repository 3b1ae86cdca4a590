"""Samples of published data sets as they are when unpacked, without list files."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torchvision.datasets import Cityscapes, VOCSegmentation

from pspfast.data.samples import Sample, folder_samples

Split = Literal["train", "val"]


def published_samples(source: str, root: str | Path, split: Split) -> list[Sample]:
    """Image and label files of a split, sorted by name.

    Args:
        source: "ade20k", the scene parsing benchmark with `images` and `annotations` in `root`;
            "cityscapes" with `leftImg8bit` and `gtFine`, whose `_labelIds.png` are taken; or
            "voc2012" with `VOCdevkit`, without the augmented training set.
        root: folder of the data set.
        split: for "ade20k", "train" and "val" are its folders `training` and `validation`.

    Raises:
        FileNotFoundError: the data set is not in `root`.
    """
    try:
        return sorted(_SOURCES[source](Path(root), split))
    # torchvision's word for a missing folder.
    except RuntimeError as error:
        raise FileNotFoundError(f"{root}: no {source} data set there: {error}") from error


def _ade20k(root: Path, split: Split) -> list[Sample]:
    folder = {"train": "training", "val": "validation"}[split]
    return folder_samples(root / "images" / folder, root / "annotations" / folder)


def _cityscapes(root: Path, split: Split) -> list[Sample]:
    found = Cityscapes(root, split, target_type="semantic")
    pairs = zip(found.images, found.targets, strict=True)
    return [(Path(image), Path(label)) for image, (label,) in pairs]


def _voc2012(root: Path, split: Split) -> list[Sample]:
    found = VOCSegmentation(root, "2012", split)
    return [(Path(i), Path(m)) for i, m in zip(found.images, found.masks, strict=True)]


_SOURCES: dict[str, Callable[[Path, Split], list[Sample]]] = {
    "ade20k": _ade20k,
    "cityscapes": _cityscapes,
    "voc2012": _voc2012,
}
