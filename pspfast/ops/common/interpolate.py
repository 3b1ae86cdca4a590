"""Maps interpolated in plain PyTorch, empty ones too."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def interpolate(x: Tensor, size: Sequence[int], align_corners: bool, nearest: bool) -> Tensor:
    """``F.interpolate`` by the nearest pixel or bilinearly; a map of that size is x itself."""
    if list(x.shape[2:]) == list(size):
        return x
    if 0 in x.shape[:2]:
        # F.interpolate refuses a map without channels.
        return x.new_zeros((*x.shape[:2], *size))
    if nearest:
        return F.interpolate(x, list(size), mode="nearest")
    return F.interpolate(x, list(size), mode="bilinear", align_corners=align_corners)
