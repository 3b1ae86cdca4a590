"""Rows of a map, interpolated from a smaller one by products of matrices.

A program mixes source rows for few rows of the map, for a block of channels, and then spreads
source columns over the map's columns by a product. Values of a source are those of k rows and k
columns of taps; k is KERNEL_SIZE.
"""

import triton
import triton.language as tl

from .geometry import interpolation_tap, interpolation_weight, map_offsets, nearest_source

# A product sums over pairs of a source column and a tap's kx, in rounds of the fewest that tl.dot
# takes.
_BLOCK_K = tl.constexpr(16)


@triton.jit
def source_tap(position, size, sources, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr):
    """Low and high source of a position on the axis, and the weight of the high one."""
    if NEAREST:
        low = nearest_source(position, size, sources)
        return low, low, 0.0
    else:
        return interpolation_tap(position, size, sources, ALIGN_CORNERS)


@triton.jit
def source_weight(
    position, size, source, sources, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr
):
    """What ``source_tap`` gives to ``source``; 0 at positions that are not on the axis."""
    if NEAREST:
        on_axis = (position >= 0) & (position < size)
        reads = nearest_source(position, size, sources) == source
        return (on_axis & reads).to(tl.float32)
    else:
        return interpolation_weight(position, size, source, sources, ALIGN_CORNERS)


@triton.jit
def locate_pairs(i_h, i_block, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr):
    """Rows and channels of blocks ``i_h`` and ``i_block``: a row's channels stand beside those of
    the next row, which reads the same sources at once."""
    o_hc = tl.arange(0, BLOCK_H * BLOCK_C)
    return i_h * BLOCK_H + o_hc // BLOCK_C, i_block.to(tl.int64) * BLOCK_C + o_hc % BLOCK_C


@triton.jit
def pair_offsets(i_n, o_c, o_h, first_h, o_w, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Offsets [columns, pairs] in a map [N, C, H, W]; ``first_h`` is the first row's number."""
    # A map's memory is a row behind the other, of a channel or of all.
    row_stride = width * channels if CHANNELS_LAST else width
    offsets = map_offsets(i_n, o_c, first_h, o_w, channels, height, width, CHANNELS_LAST)
    return offsets + ((o_h - first_h).to(tl.int64) * row_stride)[None, :]


@triton.jit
def add_level(
    b_sum,
    p_image,
    strides,
    sources,
    o_c,
    m_c,
    o_h,
    first_h,
    o_w,
    first_w,
    size,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Adds a level of ``sources`` (rows, cols), [rows, cols, k, k, C] with ``strides`` (of a tap,
    of a channel), to rows of a map of ``size`` (H, W).

    The sum is [columns, pairs of a row and a channel], which ``o_h`` and ``o_c`` are; rows and
    columns begin at ``first_h`` and ``first_w``.
    """
    tap_stride, channel_stride = strides
    height, width = size
    rows, cols = sources
    reach: tl.constexpr = KERNEL_SIZE // 2
    before = tl.maximum(first_w - reach, 0)
    first_col, _, _ = source_tap(before, width, cols, ALIGN_CORNERS, NEAREST)
    last_w = tl.minimum(first_w + o_w.shape[0] - 1 + reach, width - 1)
    _, last_col, _ = source_tap(last_w, width, cols, ALIGN_CORNERS, NEAREST)
    o_value = o_c * channel_stride
    # Taps of rows below the map are zero. A constant end would unroll the loop, out of registers.
    end_ky = tl.minimum(height - first_h + reach, KERNEL_SIZE)
    end_k = (last_col + 1) * KERNEL_SIZE
    # Few rounds, short of registers: not worth a pipeline.
    for first_k in tl.range(first_col * KERNEL_SIZE, end_k, _BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, _BLOCK_K)
        kx = o_k % KERNEL_SIZE
        v = o_k // KERNEL_SIZE
        o_tap = (v * (KERNEL_SIZE * KERNEL_SIZE) + kx).to(tl.int64) * tap_stride
        b_mixed = tl.zeros([_BLOCK_K, o_c.shape[0]], tl.float32)
        for ky in tl.range(0, end_ky, num_stages=1):
            i = o_h + (ky - reach)
            m_i = m_c & (i >= 0) & (i < height)
            m_value = (o_k < end_k)[:, None] & m_i[None, :]
            position = tl.minimum(tl.maximum(i, 0), height - 1)
            low, high, weight = source_tap(position, height, rows, ALIGN_CORNERS, NEAREST)
            low_tap = (low * cols * KERNEL_SIZE + ky) * KERNEL_SIZE
            p_low = p_image + (low_tap.to(tl.int64) * tap_stride + o_value)[None, :]
            b_low = tl.load(p_low + o_tap[:, None], mask=m_value, other=0.0).to(tl.float32)
            if NEAREST:
                b_mixed += b_low
            else:
                high_tap = (high * cols * KERNEL_SIZE + ky) * KERNEL_SIZE
                p_high = p_image + (high_tap.to(tl.int64) * tap_stride + o_value)[None, :]
                b_high = tl.load(p_high + o_tap[:, None], mask=m_value, other=0.0).to(tl.float32)
                b_mixed += (1.0 - weight)[None, :] * b_low + weight[None, :] * b_high
        j = o_w[:, None] + (kx - reach)[None, :]
        b_weight = source_weight(j, width, v[None, :], cols, ALIGN_CORNERS, NEAREST)
        b_sum = tl.dot(b_weight, b_mixed, b_sum, input_precision="ieee")
    return b_sum
