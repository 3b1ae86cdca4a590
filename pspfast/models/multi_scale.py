"""Inference as semseg and mmseg do it: whole or by windows, at several scales, mirrored.

Images are normalised. semseg and mmseg resize and pad them before that, which makes no difference:
resizing is linear, and the mean colour, with which they pad, is zero here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast.models.pspnet import PSPNet
from pspfast.models.windows import (
    Size,
    mmseg_size,
    semseg_size,
    visits,
    window_starts,
)
from pspfast.ops import upsample_softmax

T = TypeVar("T")


@dataclass(kw_only=True)
class _MultiScale:
    """Labels from the probabilities that a subclass computes.

    Args:
        model: in evaluation mode.
        scales: at which the model is given an image, factors of ``base_size``.
        flip: whether it is also given each image mirrored.
        base_size: long side of an image at scale 1; None for its own.
    """

    model: PSPNet
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    base_size: int | None = None

    @property
    def flips(self) -> tuple[bool, ...]:
        return (False, True) if self.flip else (False,)

    def predict(self, images: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to labels ``[N, H, W]``, an ordinary tensor."""
        with torch.inference_mode():
            # On the CPU argmax takes four times as long as max on contiguous maps.
            labels = [self.probabilities(image).max(1)[1] for image in images.split(1)]
        return torch.cat(labels)

    def probabilities(self, image: Tensor) -> Tensor:
        """``[1, 3, H, W]`` to ``[1, K, H, W]``, up to a common factor."""
        raise NotImplementedError

    def _zeros(self, image: Tensor) -> Tensor:
        return torch.zeros(1, self.model.classes, *image.shape[2:], device=image.device)


@dataclass(kw_only=True)
class SlidingProbabilities(_MultiScale):
    """semseg's way: probabilities are averaged over windows of one size and over scales.

    An image is resized, and padded evenly where it is smaller than a window. Windows are mirrored
    one by one. The probabilities are resized to the image.

    Args:
        crop: (H, W) of the windows, sn+1 with s the output stride, 8, where the model has
            ``align_corners``.
        stride: rows and columns from a window to the next.
        window_batch: number of windows that the model is given at a time, mirrored ones included.

    Raises:
        ValueError: ``crop`` is not as above.
    """

    crop: Size
    stride: Size
    window_batch: int

    def __post_init__(self) -> None:
        s = self.model.output_stride
        if self.model.align_corners and any((length - 1) % s for length in self.crop):
            nearest = [s * max(round((length - 1) / s), 1) + 1 for length in self.crop]
            raise ValueError(
                f"crop_size: expected sizes {s}n+1 for a model with align_corners, such as "
                f"{nearest}, got {list(self.crop)}"
            )

    @torch.inference_mode()
    def probabilities(self, image: Tensor) -> Tensor:
        size = _size(image)
        total = self._zeros(image)
        # A batch takes windows of several scales: a small one has only a window or two.
        for batch in _batches(self._windows(image), self.window_batch):
            images = [_mirror(canvas.window(canvas.image, y, x), f) for canvas, y, x, f in batch]
            # With such a zoom_factor logits are upsampled twice: by the model, then to the window.
            zoomed = self.model.zoom_factor in (2, 4)
            logits = self.model(torch.cat(images), upsample=zoomed)
            for of_window, (canvas, y, x, flip) in zip(logits.split(1), batch, strict=True):
                upsample_softmax(
                    of_window,
                    self.crop,
                    align_corners=self.model.align_corners,
                    flip=flip,
                    out=canvas.window(canvas.total, y, x),
                )
                canvas.missing -= 1
                if not canvas.missing:
                    total += _resize(canvas.probabilities(), size)
        return total

    def _windows(self, image: Tensor) -> Iterator[tuple[_Canvas, int, int, bool]]:
        """Of each window: its canvas, first row, first column, and whether it is mirrored."""
        for scale in self.scales:
            long = max(1, round(scale * (self.base_size or max(_size(image)))))
            resized = _resize(image, semseg_size(_size(image), long))
            canvas = _Canvas(resized, self.model.classes, self.crop, self.stride, len(self.flips))
            for y, x, flip in product(canvas.rows, canvas.cols, self.flips):
                yield canvas, y, x, flip


class _Canvas:
    """An image at one scale, padded, and the sum of its windows' probabilities."""

    def __init__(self, resized: Tensor, classes: int, crop: Size, stride: Size, flips: int) -> None:
        self.size, self.crop = _size(resized), crop
        bottom, right = (max(c - s, 0) for c, s in zip(crop, self.size, strict=True))
        self.top, self.left = bottom // 2, right // 2
        padding = self.left, right - self.left, self.top, bottom - self.top
        self.image = F.pad(resized, padding)
        self.total = torch.zeros(1, classes, *self.image.shape[2:], device=resized.device)
        self.rows, self.cols = map(window_starts, _size(self.image), crop, stride)
        self.missing = len(self.rows) * len(self.cols) * flips

    def window(self, maps: Tensor, y: int, x: int) -> Tensor:
        return _window(maps, y, x, self.crop)

    def probabilities(self) -> Tensor:
        """``[1, K, h, w]`` without the padding; no window may be missing."""
        counts = visits(_size(self.image), self.crop, self.rows, self.cols, self.total.device)
        return _window(self.total.div_(counts), self.top, self.left, self.size)


@dataclass(kw_only=True)
class WholeImage(_MultiScale):
    """mmseg's way with whole images: probabilities are averaged over scales and mirror images.

    Logits are upsampled to the resized image, then resized to the image; then softmax is taken.
    mmseg also rounds the pixels of a resized image to 8 bits, which is not done here.
    """

    @torch.inference_mode()
    def probabilities(self, image: Tensor) -> Tensor:
        size = _size(image)
        total = self._zeros(image)
        base = self.base_size / max(size) if self.base_size else 1.0
        for scale in self.scales:
            resized = _resize(image, mmseg_size(size, scale * base))
            for flip in self.flips:
                upsample_softmax(
                    self._logits(_mirror(resized, flip)),
                    size,
                    align_corners=self.model.align_corners,
                    flip=flip,
                    out=total,
                )
        return total

    def _logits(self, images: Tensor) -> Tensor:
        """``[N, 3, h, w]`` to ``[N, K, h, w]``."""
        return _resize(self.model(images), _size(images), self.model.align_corners)


@dataclass(kw_only=True)
class SlidingLogits(WholeImage):
    """mmseg's way with windows: as ``WholeImage``, with logits averaged over windows.

    Args:
        crop: (H, W) of the windows; where the image is smaller, they are as large as it is.
        stride: rows and columns from a window to the next.
        window_batch: number of windows that the model is given at a time.
    """

    crop: Size
    stride: Size
    window_batch: int

    def _logits(self, images: Tensor) -> Tensor:
        size = _size(images)
        crop = min(self.crop[0], size[0]), min(self.crop[1], size[1])
        total = self._zeros(images)
        rows, cols = map(window_starts, size, crop, self.stride)
        for batch in _batches(product(rows, cols), self.window_batch):
            windows = torch.cat([_window(images, y, x, crop) for y, x in batch])
            for logits, (y, x) in zip(super()._logits(windows).split(1), batch, strict=True):
                _window(total, y, x, crop).add_(logits)
        return total / visits(size, crop, rows, cols, total.device)


def _size(maps: Tensor) -> Size:
    return maps.shape[2], maps.shape[3]


def _window(maps: Tensor, y: int, x: int, size: Size) -> Tensor:
    return maps[:, :, y : y + size[0], x : x + size[1]]


def _mirror(maps: Tensor, flip: bool) -> Tensor:
    return maps.flip(3) if flip else maps


def _resize(maps: Tensor, size: Size, align_corners: bool = False) -> Tensor:
    """Bilinear without antialiasing; by default with the pixel centres of OpenCV's ``resize``."""
    if _size(maps) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])
