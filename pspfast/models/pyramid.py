"""The pyramid pooling module and the head over it (PSPNet, arXiv 1612.01105 §3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspfast.models.recompute import norm_relu
from pspfast.ops import pyramid_concat, pyramid_conv2d, pyramid_pool


class PyramidPriors(nn.Module):
    """Pools and reduces a map, level by level: the first half of semseg's ``PPM``.

    All levels are pooled in one read of the map. ``features[i]`` is ``Sequential(AdaptiveAvgPool2d,
    Conv2d 1x1, BatchNorm2d, ReLU)`` as in semseg, and is called with a map of b x b pixels, one for
    each bin, on which the pool is the identity.

    Args:
        in_channels: C.
        reduction_channels: R, the channels of each level after its 1x1 convolution.
        bins: b of each level.

    Shape:
        ``[N, C, H, W]`` to ``[N, R, S]``, S the sum of b².
    """

    def __init__(self, in_channels: int, reduction_channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)
        self.features = nn.ModuleList(
            PriorLevel(
                PoolUnlessPooled(b),
                nn.Conv2d(in_channels, reduction_channels, kernel_size=1, bias=False),
                PriorBatchNorm2d(reduction_channels),
                nn.ReLU(inplace=True),
            )
            for b in self.bins
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = pyramid_pool(x, self.bins).split([b * b for b in self.bins], dim=2)
        priors = [
            feature(level.unflatten(2, (b, b))).flatten(2)
            for b, level, feature in zip(self.bins, pooled, self.features, strict=True)
        ]
        return torch.cat(priors, dim=2)


class PyramidPooling(PyramidPriors):
    """Drop-in for semseg's ``PPM``, for heads of one's own: priors, upsampled, behind the map.

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
        super().__init__(in_channels, reduction_channels, bins)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        return pyramid_concat(x, super().forward(x), self.bins, self.align_corners)


class PyramidConv2d(nn.Conv2d):
    """``nn.Conv2d`` over what :class:`PyramidPooling` returns, which is not made.

    Called with a map alone, it is an ordinary convolution, and the map a concatenation made before.

    Args:
        in_channels: C + L R.
        out_channels: O.
        kernel_size: k, 1 or 3; the padding is k // 2.
        bins: b of each level.
        align_corners: of the bilinear upsampling.

    Shape:
        ``[N, C, H, W]`` and priors ``[N, R, S]`` to ``[N, O, H, W]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bins: Sequence[int],
        align_corners: bool = True,
    ) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.bins = tuple(bins)
        self.align_corners = align_corners

    def forward(self, input: Tensor, priors: Tensor | None = None) -> Tensor:
        if priors is None:
            return super().forward(input)
        return pyramid_conv2d(input, priors, self.weight, self.bins, self.align_corners)


class Head(nn.Sequential):
    """A convolution, BatchNorm, ReLU and what follows. Priors are handed to the convolution, which
    then is a :class:`PyramidConv2d`."""

    def forward(self, input: Tensor, priors: Tensor | None = None) -> Tensor:
        conv, bn, relu, *rest = self
        x = conv(input) if priors is None else conv(input, priors)
        x = norm_relu(x, bn, relu)
        for layer in rest:
            x = layer(x)
        return x


class PriorLevel(nn.Sequential):
    """The pool of a level, its 1x1 convolution, BatchNorm and ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        *layers, bn, relu = self
        for layer in layers:
            input = layer(input)
        return norm_relu(input, bn, relu)


def make_head(conv: nn.Conv2d, classes: int, dropout: float) -> Head:
    """A head of a convolution, and a classifier of K classes behind it."""
    return Head(
        conv,
        nn.BatchNorm2d(conv.out_channels),
        nn.ReLU(inplace=True),
        nn.Dropout2d(p=dropout),
        nn.Conv2d(conv.out_channels, classes, kernel_size=1),
    )


class PoolUnlessPooled(nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d that returns a map of its output size as it is: there it is the identity.

    Eager mode would compute it all the same, and its gradient on a GPU is not deterministic.
    """

    def forward(self, input: Tensor) -> Tensor:
        pooled = input.shape[2] == input.shape[3] == self.output_size
        return input if pooled else super().forward(input)


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
