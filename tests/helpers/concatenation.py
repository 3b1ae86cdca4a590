"""The concatenation of a map and its upsampled pyramid, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def concatenation(x: Tensor, priors: Tensor, bins: tuple[int, ...], align_corners: bool) -> Tensor:
    maps = [x]
    first = 0
    for b in bins:
        level = priors[:, :, first : first + b * b].reshape(*priors.shape[:2], b, b)
        maps.append(F.interpolate(level, x.shape[2:], mode="bilinear", align_corners=align_corners))
        first += b * b
    return torch.cat(maps, 1)
