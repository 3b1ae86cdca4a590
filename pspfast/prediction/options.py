"""Options of ``pspfast predict``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pspfast.config import at_least


@dataclass
class PredictConfig:
    """The images, the model, and what is written."""

    inputs: list[str]
    """Image files, folders that are searched for images, patterns like 'a/**/*.jpg', and videos."""
    checkpoint: str
    """File of a training run: best.safetensors, final.safetensors or a checkpoint; or of semseg or
    mmsegmentation, a folder of save_pretrained, or a name on the Hub."""
    output: str = "predictions"
    """Folder for <stem>_labels.png and so on of each image. Where two have the same stem, images
    keep their folders in it."""
    outputs: tuple[Literal["labels", "color", "overlay", "shares"], ...] = (
        "labels",
        "color",
        "overlay",
    )
    """What is written: the class ids as an indexed 8-bit PNG file, after training with data.labels
    in the ids of those files; their colours; the image with the colours over it; shares.csv, how
    much of each image each class covers. Of a video only <stem>_overlay.mp4, in any case."""
    alpha: float = 0.5
    """Weight of the class colours in the overlay, 0 to 1."""
    batch_size: int = 1
    """Images of one size, or windows of an image, that the network is given at a time."""
    crop_size: tuple[int, int] | None = None
    """Height and width of windows that slide over the image in steps of two thirds, for images too
    large for the device; the default is the whole image at once."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected 0 to 1, got {self.alpha}")
        if not self.outputs:
            raise ValueError("outputs: expected at least one, got none")
        at_least("batch_size", self.batch_size, 1)
        if self.crop_size is not None:
            at_least("crop_size", min(self.crop_size), 1)
