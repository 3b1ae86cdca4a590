"""The pyramid pooling module (PSPNet, arXiv 1612.01105 §3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspfast.ops import pyramid_pool


class PyramidPooling(nn.Module):
    """Drop-in for semseg's ``PPM``: pool into bins, reduce, upsample, concatenate with the map.

    All levels are pooled in one read of the map. ``features[i]`` is ``Sequential(AdaptiveAvgPool2d,
    Conv2d 1x1, BatchNorm2d, ReLU)`` as in semseg; its first entry is not called here.

    Args:
        in_channels: C.
        reduction_channels: R, the channels of each level after its 1x1 convolution.
        bins: b of each level.
        align_corners: of the bilinear upsampling.

    Shape:
        ``[N, C, H, W]`` to ``[N, C + L R, H, W]``.
    """

    def __init__(
        self,
        in_channels: int,
        reduction_channels: int,
        bins: Sequence[int],
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(b),
                nn.Conv2d(in_channels, reduction_channels, kernel_size=1, bias=False),
                PriorBatchNorm2d(reduction_channels),
                nn.ReLU(inplace=True),
            )
            for b in self.bins
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = pyramid_pool(x, self.bins).split([b * b for b in self.bins], dim=2)
        maps = [x]
        for b, level, feature in zip(self.bins, pooled, self.features, strict=True):
            _, conv, bn, relu = feature.children()
            prior = relu(bn(conv(level.unflatten(2, (b, b)))))
            maps.append(
                F.interpolate(prior, x.shape[2:], mode="bilinear", align_corners=self.align_corners)
            )
        return torch.cat(maps, dim=1)


class PriorBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that a single value per channel does not stop in training.

    Level 1x1 of a batch of one gives one value per channel, whose variance is undefined:
    ``nn.BatchNorm2d`` raises an error there. This layer then normalises with its running
    statistics, as in evaluation, and leaves them as they are. Everything else, the state_dict keys
    and ``SyncBatchNorm.convert_sync_batchnorm`` included, is inherited.
    """

    def forward(self, input: Tensor) -> Tensor:
        single = input.shape[0] * input.shape[2] * input.shape[3] == 1
        if not (self.training and single and self.track_running_stats):
            return super().forward(input)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
