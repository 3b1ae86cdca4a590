"""upsample_add in Triton: what the ops call; the kernels are in jit/upsample_add.py."""

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from .jit.upsample_add import upsample_add_bwd_kernel, upsample_add_fwd_kernel
from .launch import (
    column_block,
    dense,
    empty_map,
    launches_on_tensor_device,
    width_divisor,
    wrap_triton,
)

# Levels of a launch at most: the kernel has an argument for each.
_LEVELS = 4
# A program's channels at most, and forward its rows. Forward, they all share the weights of the
# columns, so many is better: 64 pairs of a row and a channel, of 64 columns, are 32 registers of
# each of 128 threads. Two rows mostly read the same sources, at once. Backward, a thread holds
# three such blocks for three rows of taps, and 64 would spill.
_FORWARD_CHANNELS = 32
_FORWARD_ROWS = 2
_BACKWARD_CHANNELS = 32
# Pairs of a source column and a tap's kx that a program of the backward gathers for: the fewest
# that tl.dot takes; more would spill.
_PAIRS = 16


def _channel_block(channels: int, most: int) -> int:
    # tl.dot takes 16 or more.
    return 16 if channels <= 16 else 32 if channels <= 32 else most


@launches_on_tensor_device
def upsample_add_forward(
    first: Tensor,
    base: Tensor | None,
    mixed: Sequence[Tensor],
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
    channels_last: bool,
) -> Tensor:
    """base ``[N, O, H, W]`` plus bias ``[O]`` plus, over all levels and taps, mixed
    ``[N, rows, cols, k, k, O]``, interpolated to ``size`` and shifted by the tap.

    Args:
        first: the first of mixed, which says where to launch.
        channels_last: whether the result is, and base if there is one.
    """
    batch, _, _, k, _, channels = first.shape
    height, width = size
    dtype = first.dtype if base is None else base.dtype
    if base is not None:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        base = base.contiguous(memory_format=memory_format)
    out = empty_map(first, (batch, channels, height, width), channels_last, dtype)
    if out.numel() == 0:
        return out
    block_w, block_c = column_block(width), _channel_block(channels, _FORWARD_CHANNELS)
    row_blocks = triton.cdiv(height, _FORWARD_ROWS)
    divisor = width_divisor(width)
    grid = (batch * triton.cdiv(channels, block_c) * triton.cdiv(width, block_w) * row_blocks,)
    for begin in range(0, len(mixed), _LEVELS):
        levels = [level.contiguous() for level in mixed[begin : begin + _LEVELS]]
        is_last = begin + _LEVELS >= len(mixed)
        # Levels that there are not stand for nothing.
        filled = [*levels, *[levels[0]] * (_LEVELS - len(levels))]
        wrap_triton(upsample_add_fwd_kernel)[grid](
            out if base is None else base,
            out if bias is None else bias.contiguous(),
            out,
            *filled,
            *[s for level in filled for s in level.shape[1:3]],
            channels,
            height,
            width // divisor,
            LEVELS=len(levels),
            KERNEL_SIZE=k,
            ALIGN_CORNERS=align_corners,
            NEAREST=nearest,
            HAS_BASE=base is not None,
            HAS_BIAS=bias is not None and is_last,
            RELU=relu and is_last,
            CHANNELS_LAST=channels_last,
            WIDTH_DIVISOR=divisor,
            BLOCK_H=_FORWARD_ROWS,
            BLOCK_W=block_w,
            BLOCK_C=block_c,
        )
        base = out
    return out


@launches_on_tensor_device
def upsample_add_backward(
    grad: Tensor,
    sizes: Sequence[int],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The gradients of mixed, one behind the other. ``sizes`` are rows and columns of every
    level."""
    grad, channels_last = dense(grad)
    batch, channels, height, width = grad.shape
    levels = list(zip(sizes[::2], sizes[1::2], strict=True))
    numel = batch * kernel_size * kernel_size * channels
    result = grad.new_empty(sum(rows * cols for rows, cols in levels) * numel, dtype=dtype)
    if numel == 0:
        return result
    block_c = _channel_block(channels, _BACKWARD_CHANNELS)
    divisor = width_divisor(width)
    sources = _PAIRS // kernel_size
    begin = 0
    for rows, cols in levels:
        # As many columns read the sources, and some more.
        columns = (sources + 1) * width // cols + kernel_size + divisor
        grid = (batch * triton.cdiv(channels, block_c) * triton.cdiv(cols, sources) * rows,)
        wrap_triton(upsample_add_bwd_kernel)[grid](
            grad,
            result[begin : begin + rows * cols * numel],
            rows,
            cols,
            channels,
            height,
            width // divisor,
            KERNEL_SIZE=kernel_size,
            ALIGN_CORNERS=align_corners,
            NEAREST=nearest,
            CHANNELS_LAST=channels_last,
            WIDTH_DIVISOR=divisor,
            BLOCK_K=_PAIRS,
            BLOCK_W=column_block(min(columns, width)),
            BLOCK_C=block_c,
        )
        begin += rows * cols * numel
    return result
