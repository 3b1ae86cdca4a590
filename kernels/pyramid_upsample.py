"""pyramid_upsample in Triton: what the ops call; the kernels are in jit/pyramid_upsample.py and
jit/pyramid_upsample_backward.py."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .jit.pyramid_upsample import add_fwd_kernel, concat_fwd_kernel
from .jit.pyramid_upsample_backward import bwd_kernel
from .launch import (
    ENOUGH_PROGRAMS,
    column_block,
    dense,
    empty_map,
    launches_on_tensor_device,
    width_divisor,
    wrap_triton,
)

# A program's channels at most, and of the addition its rows. In a concatenation, channels share
# the weights of the columns, so many is better: 64, of 64 columns, are 32 registers of each of 128
# threads. The addition has as many pairs of a channel and a row: two rows read nearly the same bins
# at once. Backward, a thread holds two blocks for two rows of bins, and with three rows of taps
# six, of half as many channels: more would spill.
_FORWARD_CHANNELS = 64
_ADDED_CHANNELS = 32
_ADDED_ROWS = 2
_BACKWARD_CHANNELS = 32
# Rows of the map for each segment of the backward at least. For two rows of six bins, nine sums
# each, a segment writes as many bytes as four rows of 60 columns of 16 bits have, and it reads two
# rows more than its share: with fewer than eight it would write half of what it reads or more.
_SEGMENT_ROWS = 8


def _channel_block(channels: int, most: int) -> int:
    # tl.dot takes 16 or more.
    return 16 if channels <= 16 else min(32, most) if channels <= 32 else most


def _segments(programs: int, height: int) -> int:
    """How many programs share the rows of the map between two rows of bins: several where else
    the ``programs`` of one image would not fill a large GPU. The batch has no part in it: an image
    has the same bits in any."""
    return max(min(triton.cdiv(ENOUGH_PROGRAMS, programs), height // _SEGMENT_ROWS), 1)


@launches_on_tensor_device
def pyramid_concat_forward(
    x: Tensor, priors: Tensor, bins: Sequence[int], align_corners: bool
) -> Tensor:
    """x ``[N, C, H, W]`` and every level of priors ``[N, R, S]`` upsampled to it:
    ``[N, C + L * R, H, W]``, in memory as x is."""
    x, channels_last = dense(x)
    batch, copied_channels, height, width = x.shape
    channels = priors.shape[1]
    out_channels = copied_channels + len(bins) * channels
    out = empty_map(x, (batch, out_channels, height, width), channels_last)
    if out.numel() == 0:
        return out
    block_w, block_c = column_block(width), _channel_block(channels, _FORWARD_CHANNELS)
    copied_blocks, level_blocks = (triton.cdiv(c, block_c) for c in (copied_channels, channels))
    channel_blocks = copied_blocks + len(bins) * level_blocks
    divisor = width_divisor(width)
    grid = (batch * channel_blocks * triton.cdiv(width, block_w) * height,)
    wrap_triton(concat_fwd_kernel)[grid](
        x,
        priors,
        out,
        copied_channels,
        channels,
        height,
        width // divisor,
        *priors.stride(),
        BINS=tuple(bins),
        ALIGN_CORNERS=align_corners,
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_W=block_w,
        BLOCK_C=block_c,
    )
    return out


@launches_on_tensor_device
def pyramid_upsample_add_forward(
    base: Tensor,
    mixed: Tensor,
    bias: Tensor | None,
    bins: Sequence[int],
    align_corners: bool,
    relu: bool,
) -> Tensor:
    """base ``[N, O, H, W]`` plus bias ``[O]`` plus, over all levels and taps, mixed
    ``[N, S, k, k, O]``, float32, upsampled and shifted by the tap; in memory as base is."""
    base, channels_last = dense(base)
    batch, channels, height, width = base.shape
    out = empty_map(base, (batch, channels, height, width), channels_last)
    if out.numel() == 0:
        return out
    block_w, block_c = column_block(width), _channel_block(channels, _ADDED_CHANNELS)
    divisor = width_divisor(width)
    row_blocks = triton.cdiv(height, _ADDED_ROWS)
    grid = (batch * triton.cdiv(channels, block_c) * triton.cdiv(width, block_w) * row_blocks,)
    wrap_triton(add_fwd_kernel)[grid](
        base,
        mixed.contiguous(),
        base if bias is None else bias.contiguous(),
        out,
        channels,
        height,
        width // divisor,
        BINS=tuple(bins),
        KERNEL_SIZE=mixed.shape[2],
        ALIGN_CORNERS=align_corners,
        HAS_BIAS=bias is not None,
        RELU=relu,
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_H=_ADDED_ROWS,
        BLOCK_W=block_w,
        BLOCK_C=block_c,
    )
    return out


def _backward(
    grad: Tensor,
    channels: int,
    bins: Sequence[int],
    align_corners: bool,
    kernel_size: int,
    sum_levels: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient ``[N, S, k, k, channels]`` of the values that the map's last channels upsample."""
    grad, channels_last = dense(grad)
    batch, map_channels, height, width = grad.shape
    taps = (kernel_size, kernel_size, channels)
    if batch * channels == 0:
        return grad.new_empty((batch, sum(b * b for b in bins), *taps), dtype=dtype)
    # The weights of a position add up to 1, so a single bin has the sum of another level's.
    gathered = [b for b in bins if b > 1 or not sum_levels] or list(bins)
    bin_count = sum(b * b for b in gathered)
    most = _BACKWARD_CHANNELS // 2 if kernel_size == 3 else _BACKWARD_CHANNELS
    block_w, block_c = column_block(width), _channel_block(channels, most)
    column_blocks = triton.cdiv(width, block_w)
    programs = triton.cdiv(channels, block_c) * column_blocks * sum(gathered)
    segments = _segments(programs, height)
    # Programs of other columns and rows write sums of their own, which are added here.
    parts = 2 * segments * column_blocks
    grad_values = grad.new_empty((parts, batch, bin_count, *taps), dtype=torch.float32)
    divisor = width_divisor(width)
    grid = (batch * programs, segments)
    wrap_triton(bwd_kernel)[grid](
        grad,
        grad_values,
        map_channels,
        map_channels - channels * (1 if sum_levels else len(bins)),
        channels,
        height,
        width // divisor,
        bin_count,
        batch,
        segments,
        BINS=tuple(gathered),
        KERNEL_SIZE=kernel_size,
        ALIGN_CORNERS=align_corners,
        SUM_LEVELS=sum_levels,
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_W=block_w,
        BLOCK_C=block_c,
    )
    grad_values = grad_values.sum(0)
    if len(gathered) < len(bins):
        levels = grad_values.split([b * b for b in gathered], 1)
        single = levels[0].sum(1, keepdim=True)
        rest = iter(levels)
        grad_values = torch.cat([single if b == 1 else next(rest) for b in bins], 1)
    return grad_values.to(dtype)


@launches_on_tensor_device
def pyramid_concat_backward(
    grad: Tensor, bins: Sequence[int], align_corners: bool, channels: int
) -> Tensor:
    """Gradient ``[N, R, S]`` of the priors, ``[N, S, R]`` in memory; R is ``channels``. Reads only
    the last L * R channels of grad, unless its strides ask for a copy."""
    grad_priors = _backward(grad, channels, bins, align_corners, 1, False, grad.dtype)
    return grad_priors.flatten(1, 3).transpose(1, 2)


@launches_on_tensor_device
def pyramid_upsample_add_backward(
    grad: Tensor, bins: Sequence[int], align_corners: bool, kernel_size: int
) -> Tensor:
    """Gradient ``[N, S, k, k, O]`` of mixed, float32."""
    return _backward(grad, grad.shape[1], bins, align_corners, kernel_size, True, torch.float32)
