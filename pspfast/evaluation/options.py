"""Options of ``pspfast eval``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pspfast.config import Source, at_least


@dataclass
class EvalConfig:
    """The model, the labelled images and how an image is labelled."""

    checkpoint: str
    """File of a training run: best.safetensors, final.safetensors or a checkpoint; or of semseg or
    mmsegmentation, a folder of save_pretrained, or a name on the Hub."""
    list: str | None = None
    """List file of the samples, "image label" per line."""
    root: str | None = None
    """Folder that the paths are relative to; the default is the list file's own folder."""
    images: str | None = None
    """Folder of the images, when there is no list."""
    labels: str | None = None
    """Folder of the labels, with the stems of the images."""
    source: Source | None = None
    """Published data set, unpacked in root, whose validation images are taken; see data.source."""
    label_ids: Literal["ids", "ade20k", "cityscapes_ids"] | None = None
    """What label files hold, see data.labels; the default is as in training."""
    protocol: Literal["whole", "slide_logits", "semseg"] = "whole"
    """"whole" labels an image at once, "slide_logits" by windows whose logits are averaged (both
    as mmseg), "semseg" by windows whose probabilities are averaged."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's size, over which probabilities are averaged."""
    flip: bool = False
    """Whether probabilities are averaged with those of the mirror image, as semseg always does."""
    base_size: int | None = None
    """Long side of an image at scale 1; the default is its own."""
    crop_size: tuple[int, int] | None = None
    """Height and width of the windows; the default is that of the training crops."""
    stride: tuple[int, int] | None = None
    """Rows and columns from a window to the next; the default is semseg's, 2/3 of crop_size."""
    window_batch: int = 8
    """Windows that the network is given at a time."""
    output: str | None = None
    """Folder for scores.json, confusion.png and report.html; the default is to write none."""
    precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the network's weights and maps; "no" is fp32. fp16 needs a GPU."""
    workers: int = 2
    """Processes that load samples; 0 loads in this process."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.list, self.images, self.source)) != 1:
            raise ValueError("expected one of --list, --images with --labels, and --source")
        if self.source and self.root is None:
            raise ValueError(f"--root: expected the folder of {self.source}, got none")
        if (self.images is None) != (self.labels is None):
            raise ValueError("--images and --labels: expected both or neither")
        at_least("workers", self.workers, 0)
        at_least("window_batch", self.window_batch, 1)
        self.scales = tuple(self.scales)
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales: expected positive factors, got {[*self.scales]}")
        if self.base_size is not None:
            at_least("base_size", self.base_size, 1)
        for name in ("crop_size", "stride"):
            size = getattr(self, name)
            if size is None:
                continue
            if self.protocol == "whole":
                raise ValueError(f"{name}: expected none for whole images, got {[*size]}")
            at_least(name, min(size), 1)
            setattr(self, name, (size[0], size[1]))
