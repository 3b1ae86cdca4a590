"""An image with its labels, and the files that the page shows of it."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspfast.config import Config
from pspfast.data import ClassList
from pspfast.labelled_data import choose_label_ids
from pspfast.model_files import load_model
from pspfast.prediction.outputs import save_pictures
from pspfast.prediction.segmenter import Segmenter


@dataclass
class Segmented:
    """What became of an image.

    Attributes:
        stem: path of its files, without their endings.
        pixels: ``[H, W, 3]``, uint8.
        labels: classes ``[H, W]``, uint8.
        counts: pixels of each class ``[K]``.
        text: its size, the time taken, and the device.
    """

    stem: Path
    pixels: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    counts: NDArray[np.int64]
    text: str

    def present(self) -> list[int]:
        """Classes that occur, the largest first."""
        order = np.argsort(-self.counts, kind="stable")
        return [int(i) for i in order if self.counts[i]]


class Model:
    """A model and the files of the images that it is given.

    Args:
        checkpoint: see ``load_model``, as which it raises.
        crop_size: (H, W) of windows; None takes images whole.
        device: where it runs.
        folder: for the files.
    """

    def __init__(
        self,
        checkpoint: str,
        crop_size: tuple[int, int] | None,
        device: torch.device,
        folder: Path,
    ) -> None:
        trained = load_model(checkpoint)
        self.class_list: ClassList = trained.class_list
        self.config: Config = trained.config
        self.folder = folder
        self._segmenter = Segmenter(trained, device, crop_size)
        self._lock = threading.Lock()

    def segment(self, name: str, image: Tensor) -> Segmented:
        """Labels an image and writes its labels.

        Args:
            name: of the image, for its files.
            image: ``[3, H, W]``, uint8.
        """
        # One image at a time: two would need twice the memory, and take as long.
        with self._lock:
            start = time.perf_counter()
            labels = self._segmenter([image])[0]
            seconds = time.perf_counter() - start
        height, width = labels.shape
        found = Segmented(
            Path(tempfile.mkdtemp(dir=self.folder)) / Path(name).stem,
            image.permute(1, 2, 0).numpy(),
            labels,
            np.bincount(labels.ravel(), minlength=self.class_list.num_classes),
            f"{name}: {width} × {height} pixels in {seconds:.2f} s on {self._segmenter.device}",
        )
        label_ids = choose_label_ids(self.config.data, self.class_list.num_classes)
        save_pictures(
            found.stem,
            found.pixels,
            labels,
            self.class_list,
            kinds=("labels",),
            label_ids=label_ids,
        )
        return found

    def draw(self, found: Segmented, shown: Sequence[int], alpha: float) -> Path:
        """Writes the overlay; classes that are not shown leave their pixels as they are."""
        none = self.class_list.num_classes
        ids = np.where(np.isin(found.labels, shown), found.labels.astype(np.int64), none)
        return save_pictures(found.stem, found.pixels, ids, self.class_list, alpha, ("overlay",))[0]
