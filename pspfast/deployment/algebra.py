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


def nearest_matrix(to: int, source: int, like: Tensor) -> Tensor:
    """``[to, source]``: the same of ``mode="nearest"``."""
    positions = torch.arange(to, device=like.device)
    at = torch.div(positions * source, to, rounding_mode="floor")
    sources = torch.arange(source, device=like.device)
    return (at[:, None] == sources[None]).to(like.dtype)


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
        along = [interpolation_matrix(s, b, align_corners, base) for s in (height, width)]
        maps.append(level.to(base.dtype) @ _taps(along[1], kernel).t())
        rows.append(_taps(along[0], kernel))
    out = base + torch.cat(rows, dim=1) @ torch.cat(maps, dim=2)
    if bias is not None:
        out = out + bias[:, None, None]
    return out.relu() if relu else out


def upsample_concat_conv2d(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
) -> Tensor:
    """:func:`pspfast.ops.upsample_concat_conv2d`: each map is mixed at its own resolution, and the
    products are interpolated and added."""
    kernel = weight.shape[2]
    out: Tensor | None = None
    for m, part in zip(maps, weight.split([m.shape[1] for m in maps], dim=1), strict=True):
        if list(m.shape[2:]) == list(size):
            share = F.conv2d(m, part, padding=kernel // 2)
        else:
            # A product of each column of taps: what follows then needs no transposed map, which
            # other runtimes take longer for than for the products.
            taps = part.permute(3, 0, 2, 1).flatten(1, 2)[:, :, :, None, None]
            rows, cols = (
                nearest_matrix(to, source, m)
                if nearest
                else interpolation_matrix(to, source, align_corners, m)
                for to, source in zip(size, m.shape[2:], strict=True)
            )
            # [N, O ky, h, W] each
            along = [
                F.conv2d(m, column) @ weights.t()
                for column, weights in zip(taps, _moved(cols, kernel), strict=True)
            ]
            # [N, O, ky h, W]
            stacked = sum(along[1:], along[0]).unflatten(1, (-1, kernel)).flatten(2, 3)
            share = _taps(rows, kernel) @ stacked
        out = share if out is None else out + share
    assert out is not None
    if bias is not None:
        out = out + bias[:, None, None]
    return out.relu() if relu else out


def _taps(weights: Tensor, kernel: int) -> Tensor:
    """``[length, k b]``: an interpolation matrix ``[length, b]`` moved by each tap."""
    return torch.cat(_moved(weights, kernel), dim=1)


def _moved(weights: Tensor, kernel: int) -> list[Tensor]:
    """An interpolation matrix ``[length, b]`` moved by each tap, zero outside the map."""
    length = weights.shape[0]
    padded = F.pad(weights, (0, 0, kernel // 2, kernel // 2))
    return [padded[tap : tap + length] for tap in range(kernel)]


def upsample(
    maps: Tensor, size: Sequence[int], align_corners: bool, crop: Sequence[int] | None = None
) -> Tensor:
    """The first rows and columns, as many as ``crop``, of ``F.interpolate(maps, size)``."""
    rows, cols = (
        interpolation_matrix(to, source, align_corners, maps, first)
        for to, source, first in zip(size, maps.shape[2:], crop or size, strict=True)
    )
    return rows @ (maps @ cols.t())
