"""Sizes of scaled images, and the windows that slide over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Size = tuple[int, int]


def semseg_size(size: Size, long: int) -> Size:
    """(H, W) of an image whose long side becomes ``long``, rounded as semseg does."""
    height, width = size
    if height > width:
        return long, max(1, round(long / height * width))
    return max(1, round(long / width * height)), long


def mmseg_size(size: Size, factor: float) -> Size:
    """(H, W) of an image ``factor`` times as large, rounded as mmseg does."""
    height, width = (max(1, int(length * factor + 0.5)) for length in size)
    return height, width


def semseg_stride(crop: Size) -> Size:
    """Rows and columns from a window to the next in semseg: two thirds of a window."""
    rows, cols = (math.ceil(length * 2 / 3) for length in crop)
    return rows, cols


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin on an axis, in semseg and in mmseg. The last one is moved back so that it
    ends where the axis does.

    Args:
        length: of the axis, at least ``crop``.
        crop: length of a window.
        stride: distance from a window to the next, at most ``crop``.
    """
    count = math.ceil((length - crop) / stride) + 1
    return [min(i * stride, length - crop) for i in range(count)]


def visits(
    size: Size, crop: Size, rows: list[int], cols: list[int], device: torch.device
) -> Tensor:
    """Number of windows that each pixel is in, float32 ``[H, W]``.

    Args:
        size: (H, W).
        crop: (H, W) of a window.
        rows: first rows of windows; there is a window at each pair of a row and a column.
        cols: their first columns.
        device: of the result.
    """
    counts = torch.zeros(size[0], 1, device=device), torch.zeros(size[1], device=device)
    for axis, starts, length in zip(counts, (rows, cols), crop, strict=True):
        for start in starts:
            axis[start : start + length] += 1
    return counts[0] * counts[1]
