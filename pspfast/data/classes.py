"""Class names and colours of the known datasets, and label maps as pictures."""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from torchvision.datasets import Cityscapes

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """The classes of a dataset; class id i is called `names[i]` and drawn in `palette[i]`.

    Attributes:
        names: one name for each class.
        palette: RGB colours, 0 to 255, one for each class.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(
                f"ClassList: palette must have one colour for each of the {len(self.names)} names, "
                f"got {len(self.palette)}"
            )

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def swatch(self, i: int) -> str:
        """HTML of a patch in the colour of class i; the page's style gives ``swatch`` its size."""
        return f'<span class="swatch" style="background:rgb{self.palette[i]}"></span>'

    @classmethod
    def generic(cls, num_classes: int) -> "ClassList":
        """Numbered names and distinct colours, for data that brings no names of its own.

        Raises:
            ValueError: `num_classes` is outside 1 to 255 (label maps are 8-bit, 255 means ignore).
        """
        if not 1 <= num_classes <= 255:
            raise ValueError(
                f"ClassList.generic: num_classes must be from 1 to 255, got {num_classes}"
            )
        return cls(
            tuple(f"class_{i}" for i in range(num_classes)),
            # PASCAL VOC gives entry 0 to its background, black; black is the ignore colour here.
            tuple(_voc_colour(i + 1) for i in range(num_classes)),
        )


def _voc_colour(entry: int) -> Colour:
    """Entry of PASCAL VOC's palette: bits 0, 1, 2 of each octal digit go to red, green, blue.

    The lowest digit sets the highest bit of its channel, so that small entries lie far apart.
    """
    return tuple(
        sum((entry >> (3 * digit + channel) & 1) << (7 - digit) for digit in range(3))
        for channel in range(3)
    )  # type: ignore[return-value]


def _ade20k() -> ClassList:
    text = (files("pspfast.data") / "ade20k.yaml").read_text(encoding="utf-8")
    colours: dict[str, list[int]] = yaml.safe_load(text)
    return ClassList(tuple(colours), tuple((r, g, b) for r, g, b in colours.values()))


def _cityscapes() -> ClassList:
    trained = sorted(
        (c.train_id, c.name, c.color) for c in Cityscapes.classes if 0 <= c.train_id < 255
    )
    return ClassList(tuple(name for _, name, _ in trained), tuple(colour for *_, colour in trained))


_VOC2012 = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)

CLASSES: dict[str, ClassList] = {
    "ade20k": _ade20k(),
    "voc2012": ClassList(_VOC2012, tuple(_voc_colour(i) for i in range(len(_VOC2012)))),
    "cityscapes": _cityscapes(),
    # Ids as in the 11-class label maps of the SegNet tutorial. Class lists that travel with copies
    # of them may be in another order.
    "camvid": ClassList(
        names=(
            "sky",
            "building",
            "column_pole",
            "road",
            "sidewalk",
            "tree",
            "sign_symbol",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        palette=(
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (0, 0, 192),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ),
    ),
    "scenes": ClassList(
        names=("sky", "mountain", "grass", "water", "road", "house", "tree", "car", "boat"),
        palette=(
            (135, 196, 235),
            (148, 124, 158),
            (152, 204, 92),
            (36, 104, 180),
            (112, 112, 120),
            (232, 160, 64),
            (28, 112, 60),
            (214, 40, 57),
            (252, 224, 72),
        ),
    ),
}


def colorize(labels: ArrayLike, class_list: ClassList) -> NDArray[np.uint8]:
    """Draw a label map in the colours of its classes.

    Args:
        labels: `[H, W]` class ids, an array or a tensor on the CPU.
        class_list: gives the colours.

    Returns:
        `[H, W, 3]` RGB. Every id that is no class, such as the ignore value, is black.
    """
    ids = np.asarray(labels)
    palette = np.zeros((class_list.num_classes + 1, 3), np.uint8)
    palette[:-1] = class_list.palette
    return palette[np.where(_is_class(ids, class_list), ids, class_list.num_classes)]


def overlay(
    image: ArrayLike, labels: ArrayLike, class_list: ClassList, alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Blend the colours of a label map into its image.

    Args:
        image: `[H, W, 3]` RGB, 0 to 255: a Pillow image, an array or a tensor on the CPU.
        labels: `[H, W]` class ids. Ids that are no class leave their pixel as it is.
        class_list: gives the colours.
        alpha: weight of the colours, 0 (image only) to 1 (colours only).

    Returns:
        `[H, W, 3]` RGB.

    Raises:
        ValueError: the shapes differ.
    """
    pixels, ids = np.asarray(image), np.asarray(labels)
    if pixels.shape != (*ids.shape, 3):
        raise ValueError(
            f"overlay: image must have the labels' size and three channels, "
            f"{(*ids.shape, 3)}, got {pixels.shape}"
        )
    weight = alpha * _is_class(ids, class_list)[..., None]
    return np.rint(pixels * (1 - weight) + colorize(ids, class_list) * weight).astype(np.uint8)


def _is_class(ids: NDArray, class_list: ClassList) -> NDArray[np.bool_]:
    return (ids >= 0) & (ids < class_list.num_classes)
