"""Interpolation of maps of any sizes, taps and all, into one map, and its transposition: fixed
order, bit-reproducible.

``csrc/upsample_maps.h`` has the formula. Its weights are separable: those of rows times those of
columns; common/upsampled_rows.py makes rows of the map. Backward, a program gathers for some
sources of a row of a level: it sums rows of the map first, and their columns at the end by the
transposed product.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST, and values of a level are
[N, rows, cols, k, k, C]; k is KERNEL_SIZE. The width is a quotient times WIDTH_DIVISOR: the product
shows the compiler what divides the offset of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import locate_row, map_offsets, weighted_positions
from .common.upsampled_rows import add_level, locate_pairs, pair_offsets, source_weight


@triton.jit
def _readers(source, size, sources, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr):
    """Begin and end of positions, among which are all that read ``source``."""
    if NEAREST:
        # Rounding may move the first and the last by one.
        begin = source * size // sources - 1
        end = ((source + 1) * size + sources - 1) // sources + 1
        return tl.maximum(begin, 0), tl.minimum(end, size)
    else:
        return weighted_positions(source, size, sources, ALIGN_CORNERS)


@triton.jit
def upsample_add_fwd_kernel(
    p_base,
    p_bias,
    p_out,
    p_level0,
    p_level1,
    p_level2,
    p_level3,
    rows0,
    cols0,
    rows1,
    cols1,
    rows2,
    cols2,
    rows3,
    cols3,
    channels,
    height,
    width_quotient,
    LEVELS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    HAS_BASE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [N, O, H, W]: base [N, O, H, W] if HAS_BASE, plus bias [O] if HAS_BIAS, plus LEVELS
    levels of values and taps, interpolated and shifted by the tap; with RELU not below zero. O are
    the channels."""
    width = width_quotient * WIDTH_DIVISOR
    i_h, i_w, i_block, i_n = locate_row(
        tl.cdiv(height, BLOCK_H), tl.cdiv(width, BLOCK_W), tl.cdiv(channels, BLOCK_C)
    )
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    o_h, o_c = locate_pairs(i_h, i_block, BLOCK_H, BLOCK_C)
    m_c = (o_c < channels) & (o_h < height)
    p_levels = (p_level0, p_level1, p_level2, p_level3)
    rows = (rows0, rows1, rows2, rows3)
    cols = (cols0, cols1, cols2, cols3)
    b_out = tl.zeros([BLOCK_W, BLOCK_H * BLOCK_C], tl.float32)
    for level in tl.static_range(LEVELS):
        taps = rows[level] * cols[level] * (KERNEL_SIZE * KERNEL_SIZE)
        b_out = add_level(
            b_out,
            p_levels[level] + i_n * taps * channels,
            (channels, 1),
            (rows[level], cols[level]),
            o_c,
            m_c,
            o_h,
            i_h * BLOCK_H,
            o_w,
            i_w * BLOCK_W,
            (height, width),
            KERNEL_SIZE,
            ALIGN_CORNERS,
            NEAREST,
        )
    o_out = pair_offsets(i_n, o_c, o_h, i_h * BLOCK_H, o_w, channels, height, width, CHANNELS_LAST)
    m_out = (o_w < width)[:, None] & m_c[None, :]
    store_sum(p_base, p_bias, p_out, b_out, o_out, m_out, o_c, m_c, HAS_BASE, HAS_BIAS, RELU)


@triton.jit
def _store_sums(p_sums, b_sums, m_sums):
    tl.store(p_sums, b_sums.to(p_sums.dtype.element_ty), mask=m_sums)


@triton.jit
def upsample_add_bwd_kernel(
    p_grad,
    p_grad_level,
    rows,
    cols,
    channels,
    height,
    width_quotient,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient [N, rows, cols, k, k, O] of a level's values; grad is [N, O, H, W], and O are
    the channels.

    A program gathers for neighbours in a row of sources, as many as make BLOCK_K pairs with a tap's
    kx. It reads the rows and columns of the map between the neighbouring sources, and one more at
    either side for taps. Programs of the same channels are neighbours: the L2 cache has what
    another read.
    """
    width = width_quotient * WIDTH_DIVISOR
    reach: tl.constexpr = KERNEL_SIZE // 2
    SOURCES: tl.constexpr = BLOCK_K // KERNEL_SIZE
    u, i_v, i_block, i_n = locate_row(rows, tl.cdiv(cols, SOURCES), tl.cdiv(channels, BLOCK_C))
    o_c = i_block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    o_k = tl.arange(0, BLOCK_K)
    v = i_v * SOURCES + o_k // KERNEL_SIZE
    kx = o_k % KERNEL_SIZE

    begin, end = _readers(u, height, rows, ALIGN_CORNERS, NEAREST)
    begin = tl.maximum(begin - reach, 0)
    end = tl.minimum(end + reach, height)
    first_w, _ = _readers(i_v * SOURCES, width, cols, ALIGN_CORNERS, NEAREST)
    last_v = tl.minimum(i_v * SOURCES + SOURCES, cols) - 1
    _, end_w = _readers(last_v, width, cols, ALIGN_CORNERS, NEAREST)
    # No column that is not needed is read, but for whole accesses of a contiguous map.
    first_w = tl.maximum(first_w - reach, 0) // WIDTH_DIVISOR * WIDTH_DIVISOR
    end_quotient = tl.minimum(tl.cdiv(end_w + reach, WIDTH_DIVISOR), width_quotient)
    end_w = end_quotient * WIDTH_DIVISOR

    b_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    if KERNEL_SIZE == 3:
        b_sum_before = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        b_sum_behind = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    for i_w in tl.range(0, tl.cdiv(end_w - first_w, BLOCK_W), num_stages=1):
        o_w = first_w + i_w * BLOCK_W + tl.arange(0, BLOCK_W)
        m_grad = (o_w < end_w)[:, None] & m_c[None, :]
        # Tap ky of row i has the weights of position i + ky - reach.
        b_here = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        if KERNEL_SIZE == 3:
            b_before = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
            b_behind = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        for row in tl.range(begin, end, num_stages=3):
            o_grad = map_offsets(i_n, o_c, row, o_w, channels, height, width, CHANNELS_LAST)
            b_grad = tl.load(p_grad + o_grad, mask=m_grad, other=0.0).to(tl.float32)
            b_here += source_weight(row, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
            if KERNEL_SIZE == 3:
                b_before += source_weight(row - 1, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
                b_behind += source_weight(row + 1, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
        j = o_w[None, :] + (kx - reach)[:, None]
        b_weight = source_weight(j, width, v[:, None], cols, ALIGN_CORNERS, NEAREST)
        b_sum = tl.dot(b_weight, b_here, b_sum, input_precision="ieee")
        if KERNEL_SIZE == 3:
            b_sum_before = tl.dot(b_weight, b_before, b_sum_before, input_precision="ieee")
            b_sum_behind = tl.dot(b_weight, b_behind, b_sum_behind, input_precision="ieee")

    # What does not fill a block of pairs, 32 = 10 * 3 + 2, is of the next program.
    m_tap = ((o_k < SOURCES * KERNEL_SIZE) & (v < cols))[:, None] & m_c[None, :]
    tap = ((u * cols + v) * KERNEL_SIZE * KERNEL_SIZE + kx).to(tl.int64)
    taps = rows * cols * (KERNEL_SIZE * KERNEL_SIZE)
    p_tap = p_grad_level + (i_n * taps + tap)[:, None] * channels + o_c[None, :]
    if KERNEL_SIZE == 3:
        _store_sums(p_tap, b_sum_before, m_tap)
        p_tap += KERNEL_SIZE * channels
    _store_sums(p_tap, b_sum, m_tap)
    if KERNEL_SIZE == 3:
        _store_sums(p_tap + KERNEL_SIZE * channels, b_sum_behind, m_tap)
