"""pyramid_pool in Triton: what the op calls; the kernels are in jit/pyramid_pool.py."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .jit.pyramid_pool import pool_bwd_kernel, pool_fwd_kernel
from .launch import (
    ENOUGH_PROGRAMS,
    column_block,
    dense,
    empty_map,
    launches_on_tensor_device,
    width_divisor,
    wrap_triton,
)

# Channels of a program: 64 or 128 consecutive bytes where channels are consecutive in memory.
_CHANNELS = {True: 32, False: 16}


def _segment_rows(programs: int, height: int) -> int:
    """Rows of a program: all, or segments where else the ``programs`` of one image would not fill a
    large GPU. The batch has no part in it: an image has the same bits in any."""
    return triton.cdiv(height, triton.cdiv(ENOUGH_PROGRAMS, max(programs, 1)))


def _columns(x: Tensor, width: int, channels_last: bool, forward: bool) -> int:
    """Columns of a program, up to 64: as many as it takes without spills."""
    most = 64
    if channels_last:
        # 64 columns of 16 bits would spill on sm_100.
        most = 32 if forward and x.element_size() == 2 else 64
    elif width_divisor(width) * x.element_size() < 16:
        # Where rows begin at no multiple of 16 bytes, 64 columns of 16 bits would spill on sm_90,
        # and in the forward of float16 32 columns would.
        most = 64 if forward and x.dtype == torch.float16 else 32
    return min(column_block(width), most)


@launches_on_tensor_device
def pyramid_pool_forward(x: Tensor, bins: Sequence[int]) -> Tensor:
    """All adaptive average pools of x ``[N, C, H, W]``: ``[N, C, S]``, in memory as x is."""
    x, channels_last = dense(x)
    batch, channels, height, width = x.shape
    bin_count = sum(b * b for b in bins)
    block_c, divisor = _CHANNELS[channels_last], width_divisor(width)
    # All bins of (1, 2, 3, 6) are one block of 64. More bins than 128 would not fit a program's
    # registers: x is then read once for every 128.
    block_s = 16 if bin_count <= 16 else 64 if bin_count <= 64 else 128
    programs = triton.cdiv(channels, block_c), triton.cdiv(bin_count, block_s)
    segment_rows = _segment_rows(programs[0] * programs[1], height)
    segments = triton.cdiv(height, segment_rows)
    # Segments write sums of their own, which are added here.
    pools = (bin_count, channels) if channels_last else (channels, bin_count)
    pooled = x.new_empty(
        (segments, batch, *pools), dtype=x.dtype if segments == 1 else torch.float32
    )
    grid = (batch * programs[0], programs[1], segments)
    wrap_triton(pool_fwd_kernel)[grid](
        x,
        pooled,
        channels,
        height,
        width // divisor,
        bin_count,
        batch,
        segment_rows,
        BINS=tuple(bins),
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_C=block_c,
        BLOCK_W=_columns(x, width, channels_last, forward=True),
        BLOCK_S=block_s,
    )
    total = pooled[0] if segments == 1 else pooled.sum(0).to(x.dtype)
    return total.transpose(1, 2) if channels_last else total


@launches_on_tensor_device
def pyramid_pool_backward(
    grad: Tensor, bins: Sequence[int], height: int, width: int, channels_last: bool
) -> Tensor:
    """Gradient ``[N, C, H, W]`` of x for the gradient ``[N, C, S]`` of its pools."""
    batch, channels, bin_count = grad.shape
    grad = (grad.transpose(1, 2) if channels_last else grad).contiguous()
    grad_x = empty_map(grad, (batch, channels, height, width), channels_last)
    block_c, divisor = _CHANNELS[channels_last], width_divisor(width)
    programs = triton.cdiv(channels, block_c)
    segment_rows = _segment_rows(programs, height)
    grid = (batch * programs, triton.cdiv(height, segment_rows))
    wrap_triton(pool_bwd_kernel)[grid](
        grad,
        grad_x,
        channels,
        height,
        width // divisor,
        bin_count,
        segment_rows,
        BINS=tuple(bins),
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_C=block_c,
        BLOCK_W=_columns(grad, width, channels_last, forward=False),
    )
    return grad_x
