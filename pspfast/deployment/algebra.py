"""The pyramid's arithmetic in standard operators, for maps of any size, known or not.

Pooling and interpolation are linear along each axis, so they are products with small matrices, made
here from comparisons of positions. Nothing is unrolled and nothing depends on a size in Python:
traced with symbolic sizes, one graph serves all of them. Exporters have no such form of adaptive
pools whose bins are uneven.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pooling_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """``[b, length]``: row u takes the mean over floor(u length / b) to ceil((u + 1) length / b).

    Args:
        length: of the axis.
        bins: b.
        like: has the dtype and the device of the result.
    """
    edges = torch.arange(bins, device=like.device) * length
    first = torch.div(edges, bins, rounding_mode="floor")[:, None]
    last = torch.div(edges + length + bins - 1, bins, rounding_mode="floor")[:, None]
    positions = torch.arange(length, device=like.device)[None]
    inside = (positions >= first) & (positions < last)
    return inside.to(like.dtype) / (last - first).to(like.dtype)


def interpolation_matrix(
    to: int, source: int, align_corners: bool, like: Tensor, first: int | None = None
) -> Tensor:
    """``[first, source]``: the weights of ``F.interpolate(mode="bilinear")`` along an axis.

    Args:
        to: length of the result.
        source: length of what is interpolated.
        align_corners: as of ``F.interpolate``.
        like: has the dtype and the device of the result.
        first: number of the result's first positions that are wanted; the default is all.
    """
    positions = torch.arange(
        to if first is None else first, device=like.device, dtype=torch.float32
    )
    # Lengths as tensors, for which no size is compared while they are traced.
    length = torch.full((1,), to, device=like.device, dtype=torch.float32)
    if align_corners:
        at = positions * (source - 1) / (length - 1).clamp(min=1)
    else:
        at = ((positions + 0.5) * source / length - 0.5).clamp(min=0)
    sources = torch.arange(source, device=like.device, dtype=torch.float32)
    at = torch.minimum(at, sources[-1:])
    return (1 - (at[:, None] - sources[None]).abs()).clamp(min=0).to(like.dtype)


def pyramid_pool(x: Tensor, bins: Sequence[int]) -> Tensor:
    """:func:`pspfast.ops.pyramid_pool`: ``[N, C, H, W]`` to ``[N, C, S]``."""
    rows = [pooling_matrix(x.shape[2], b, x) for b in bins]
    cols = torch.cat([pooling_matrix(x.shape[3], b, x) for b in bins])
    # All levels along the width in one read of the map.
    by_level = (x @ cols.t()).split(list(bins), dim=3)
    return torch.cat([(r @ level).flatten(2) for r, level in zip(rows, by_level, strict=True)], 2)


def pyramid_upsample_add(
    base: Tensor,
    mixed: Tensor,
    bias: Tensor | None,
    bins: Sequence[int],
    align_corners: bool,
    relu: bool,
) -> Tensor:
    """A convolution's result over the map, and its share of the levels from their mixed bins.

    Args:
        base: ``[N, O, H, W]``.
        mixed: ``[N, S, k, k, O]``, products of the weight and the priors, see ``pyramid_mix``.
        bias: ``[O]``.
        bins: b of each level.
        align_corners: of the interpolation.
        relu: whether negative results become zero.
    """
    kernel, height, width = mixed.shape[2], base.shape[2], base.shape[3]
    rows, maps = [], []
    for b, level in zip(bins, mixed.split([b * b for b in bins], dim=1), strict=True):
        # [N, O, ky u, kx v]
        level = level.unflatten(1, (b, b)).permute(0, 5, 3, 1, 4, 2).flatten(4, 5).flatten(2, 3)
        maps.append(level.to(base.dtype) @ _taps(width, b, kernel, align_corners, base).t())
        rows.append(_taps(height, b, kernel, align_corners, base))
    out = base + torch.cat(rows, dim=1) @ torch.cat(maps, dim=2)
    if bias is not None:
        out = out + bias[:, None, None]
    return out.relu() if relu else out


def _taps(length: int, bins: int, kernel: int, align_corners: bool, like: Tensor) -> Tensor:
    """``[length, k b]``: the interpolation matrix moved by each tap, zero outside the map."""
    weights = interpolation_matrix(length, bins, align_corners, like)
    padded = F.pad(weights, (0, 0, kernel // 2, kernel // 2))
    return torch.cat([padded[tap : tap + length] for tap in range(kernel)], dim=1)


def upsample(
    maps: Tensor, size: Sequence[int], align_corners: bool, crop: Sequence[int] | None = None
) -> Tensor:
    """``F.interpolate(maps, size, mode="bilinear")``, and of it the rows and columns of ``crop``."""
    rows, cols = (
        interpolation_matrix(to, source, align_corners, maps, first)
        for to, source, first in zip(size, maps.shape[2:], crop or size, strict=True)
    )
    return rows @ (maps @ cols.t())
