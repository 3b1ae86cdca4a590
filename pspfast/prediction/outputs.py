"""Label maps as pictures, and the shares of the classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pspfast.data import ClassList, LabelIds, colorize, overlay
from pspfast.files import atomic_open

PICTURES = ("labels", "color", "overlay")


def save_pictures(
    stem: str | Path,
    pixels: NDArray[np.uint8],
    labels: ArrayLike,
    class_list: ClassList,
    alpha: float = 0.5,
    kinds: Sequence[str] = PICTURES,
    label_ids: LabelIds | None = None,
) -> list[Path]:
    """Writes ``<stem>_labels.png``, ``<stem>_color.png`` and ``<stem>_overlay.png``.

    The first is an indexed image: its 8-bit pixels are the ids, its palette has the colours.

    Args:
        stem: path without the endings; its folder is made if there is none.
        pixels: image ``[H, W, 3]`` in uint8.
        labels: classes ``[H, W]``, an array or a tensor on the CPU.
        class_list: gives the colours.
        alpha: weight of the colours in the overlay.
        kinds: those of ``PICTURES`` that are written; others are passed over.
        label_ids: gives the ids in the label file; None for class ids.

    Returns:
        The files.
    """
    draw = {
        "labels": lambda: _indexed(labels, class_list, label_ids),
        "color": lambda: Image.fromarray(colorize(labels, class_list)),
        "overlay": lambda: Image.fromarray(overlay(pixels, labels, class_list, alpha)),
    }
    written: list[Path] = []
    for kind in PICTURES:
        if kind in kinds:
            written.append(Path(f"{stem}_{kind}.png"))
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            with atomic_open(written[-1]) as file:
                draw[kind]().save(file, format="png")
    return written


def _indexed(labels: ArrayLike, class_list: ClassList, label_ids: LabelIds | None) -> Image.Image:
    file_ids = np.arange(class_list.num_classes, dtype=np.uint8)
    if label_ids is not None:
        file_ids = label_ids.to_file_ids(file_ids)
    # With a palette of at most 16 colours Pillow would write fewer bits than 8.
    palette = np.zeros((256, 3), np.uint8)
    palette[file_ids] = class_list.palette
    picture = Image.fromarray(file_ids[np.asarray(labels)])
    picture.putpalette(palette.tobytes())
    return picture


class ClassShares:
    """Which share of the pixels each class has, by image and in total.

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.counts: dict[str, NDArray[np.int64]] = {}

    def add(self, image: str, labels: NDArray[np.uint8]) -> None:
        """Counts classes ``[H, W]``; those of one image, or video, may come in parts."""
        none = np.zeros(len(self.names), np.int64)
        counts = np.bincount(labels.ravel(), minlength=len(self.names))
        self.counts[image] = self.counts.get(image, none) + counts

    def rows(self) -> list[tuple[str, NDArray[np.int64]]]:
        """Name and pixel counts ``[K]`` of each image, and of all."""
        total = sum(self.counts.values(), np.zeros(len(self.names), np.int64))
        return [*self.counts.items(), ("total", total)]

    def table(self) -> str:
        """Markdown table in percent of the classes that occur, the largest first."""
        lines = ["| image | share of the pixels, % |", "|:------|:-----------------------|"]
        for image, counts in self.rows():
            order = np.argsort(-counts, kind="stable")
            shares = (f"{self.names[i]} {100 * s:.1f}" for i in order if (s := _shares(counts)[i]))
            lines.append(f"| {image} | {', '.join(shares)} |")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Writes a CSV file with a row for each image and a column for each class, 0 to 1."""
        text = io.StringIO(newline="")
        table = csv.writer(text)
        table.writerow(["image", "pixels", *self.names])
        for image, counts in self.rows():
            table.writerow([image, counts.sum(), *(f"{s:.6f}" for s in _shares(counts))])
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(path) as file:
            # Names of files may hold bytes that are no UTF-8 (PEP 383).
            file.write(text.getvalue().encode(errors="backslashreplace"))


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    # A total of no images has no pixels.
    return counts / max(counts.sum(), 1)
