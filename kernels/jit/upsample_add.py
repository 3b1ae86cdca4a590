"""Interpolation of maps of any sizes, taps and all, into one map, and its transposition: fixed
order, bit-reproducible.

``csrc/upsample_maps.h`` has the formula. Its weights are separable: those of rows times those of
columns. Forward, a program mixes the source rows for few rows of the map, for a block of channels,
and then spreads source columns over the map's columns by a product of matrices. Backward, a program
gathers for some sources of a row of a level: it sums rows of the map first, and their columns at
the end by the transposed product.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST, and values of a level are
[N, rows, cols, k, k, C]; k is KERNEL_SIZE. The width is a quotient times WIDTH_DIVISOR: the product
shows the compiler what divides the offset of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import (
    interpolation_tap,
    interpolation_weight,
    locate_row,
    map_offsets,
    nearest_source,
    weighted_positions,
)

# Forward, a product sums over pairs of a source column and a tap's kx, in rounds of the fewest that
# tl.dot takes.
_BLOCK_K = tl.constexpr(16)


@triton.jit
def _tap(position, size, sources, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr):
    """Low and high source of a position on the axis, and the weight of the high one."""
    if NEAREST:
        low = nearest_source(position, size, sources)
        return low, low, 0.0
    else:
        return interpolation_tap(position, size, sources, ALIGN_CORNERS)


@triton.jit
def _weight(position, size, source, sources, ALIGN_CORNERS: tl.constexpr, NEAREST: tl.constexpr):
    """What ``_tap`` gives to ``source``; 0 at positions that are not on the axis."""
    if NEAREST:
        on_axis = (position >= 0) & (position < size)
        reads = nearest_source(position, size, sources) == source
        return (on_axis & reads).to(tl.float32)
    else:
        return interpolation_weight(position, size, source, sources, ALIGN_CORNERS)


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
def _add_level(
    b_sum,
    p_image,
    sources,
    o_c,
    m_c,
    o_h,
    first_h,
    o_w,
    first_w,
    size,
    channels,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    NEAREST: tl.constexpr,
):
    """Adds a level of ``sources`` (rows, cols) to rows of a map of ``size`` (H, W).

    The sum is [columns, pairs of a row and a channel], which ``o_h`` and ``o_c`` are; rows and
    columns begin at ``first_h`` and ``first_w``.
    """
    height, width = size
    rows, cols = sources
    reach: tl.constexpr = KERNEL_SIZE // 2
    first_col, _, _ = _tap(tl.maximum(first_w - reach, 0), width, cols, ALIGN_CORNERS, NEAREST)
    last_w = tl.minimum(first_w + o_w.shape[0] - 1 + reach, width - 1)
    _, last_col, _ = _tap(last_w, width, cols, ALIGN_CORNERS, NEAREST)
    # Taps of rows below the map are zero. A constant end would unroll the loop, out of registers.
    end_ky = tl.minimum(height - first_h + reach, KERNEL_SIZE)
    end_k = (last_col + 1) * KERNEL_SIZE
    # Few rounds, short of registers: not worth a pipeline.
    for first_k in tl.range(first_col * KERNEL_SIZE, end_k, _BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, _BLOCK_K)
        kx = o_k % KERNEL_SIZE
        v = o_k // KERNEL_SIZE
        o_tap = (v * (KERNEL_SIZE * KERNEL_SIZE) + kx).to(tl.int64) * channels
        b_mixed = tl.zeros([_BLOCK_K, o_c.shape[0]], tl.float32)
        for ky in tl.range(0, end_ky, num_stages=1):
            i = o_h + (ky - reach)
            m_i = m_c & (i >= 0) & (i < height)
            m_value = (o_k < end_k)[:, None] & m_i[None, :]
            position = tl.minimum(tl.maximum(i, 0), height - 1)
            low, high, weight = _tap(position, height, rows, ALIGN_CORNERS, NEAREST)
            low_tap = (low * cols * KERNEL_SIZE + ky) * KERNEL_SIZE
            p_low = p_image + (low_tap.to(tl.int64) * channels + o_c)[None, :] + o_tap[:, None]
            b_low = tl.load(p_low, mask=m_value, other=0.0).to(tl.float32)
            if NEAREST:
                b_mixed += b_low
            else:
                high_tap = (high * cols * KERNEL_SIZE + ky) * KERNEL_SIZE
                p_high = p_image + (high_tap.to(tl.int64) * channels + o_c)[None, :]
                b_high = tl.load(p_high + o_tap[:, None], mask=m_value, other=0.0).to(tl.float32)
                b_mixed += (1.0 - weight)[None, :] * b_low + weight[None, :] * b_high
        j = o_w[:, None] + (kx - reach)[None, :]
        b_weight = _weight(j, width, v[None, :], cols, ALIGN_CORNERS, NEAREST)
        b_sum = tl.dot(b_weight, b_mixed, b_sum, input_precision="ieee")
    return b_sum


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
    # A row's channels stand beside those of the next row, which reads the same sources at once.
    o_hc = tl.arange(0, BLOCK_H * BLOCK_C)
    o_h = i_h * BLOCK_H + o_hc // BLOCK_C
    o_c = i_block.to(tl.int64) * BLOCK_C + o_hc % BLOCK_C
    m_c = (o_c < channels) & (o_h < height)
    p_levels = (p_level0, p_level1, p_level2, p_level3)
    rows = (rows0, rows1, rows2, rows3)
    cols = (cols0, cols1, cols2, cols3)
    b_out = tl.zeros([BLOCK_W, BLOCK_H * BLOCK_C], tl.float32)
    for level in tl.static_range(LEVELS):
        taps = rows[level] * cols[level] * (KERNEL_SIZE * KERNEL_SIZE)
        b_out = _add_level(
            b_out,
            p_levels[level] + i_n * taps * channels,
            (rows[level], cols[level]),
            o_c,
            m_c,
            o_h,
            i_h * BLOCK_H,
            o_w,
            i_w * BLOCK_W,
            (height, width),
            channels,
            KERNEL_SIZE,
            ALIGN_CORNERS,
            NEAREST,
        )
    # A map's memory is a row behind the other, of a channel or of all.
    row_stride = width * channels if CHANNELS_LAST else width
    o_out = map_offsets(i_n, o_c, i_h * BLOCK_H, o_w, channels, height, width, CHANNELS_LAST)
    o_out += ((o_hc // BLOCK_C).to(tl.int64) * row_stride)[None, :]
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
    first_quotient = tl.maximum(first_w - reach, 0) // WIDTH_DIVISOR
    column_blocks = tl.cdiv(end_w + reach - first_quotient * WIDTH_DIVISOR, BLOCK_W)

    b_sum = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    if KERNEL_SIZE == 3:
        b_sum_before = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
        b_sum_behind = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    for i_w in tl.range(0, column_blocks, num_stages=1):
        o_w = first_quotient * WIDTH_DIVISOR + i_w * BLOCK_W + tl.arange(0, BLOCK_W)
        m_grad = (o_w < width)[:, None] & m_c[None, :]
        # Tap ky of row i has the weights of position i + ky - reach.
        b_here = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        if KERNEL_SIZE == 3:
            b_before = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
            b_behind = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        for row in tl.range(begin, end, num_stages=3):
            o_grad = map_offsets(i_n, o_c, row, o_w, channels, height, width, CHANNELS_LAST)
            b_grad = tl.load(p_grad + o_grad, mask=m_grad, other=0.0).to(tl.float32)
            b_here += _weight(row, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
            if KERNEL_SIZE == 3:
                b_before += _weight(row - 1, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
                b_behind += _weight(row + 1, height, u, rows, ALIGN_CORNERS, NEAREST) * b_grad
        j = o_w[None, :] + (kx - reach)[:, None]
        b_weight = _weight(j, width, v[:, None], cols, ALIGN_CORNERS, NEAREST)
        b_sum = tl.dot(b_weight, b_here, b_sum, input_precision="ieee")
        if KERNEL_SIZE == 3:
            b_sum_before = tl.dot(b_weight, b_before, b_sum_before, input_precision="ieee")
            b_sum_behind = tl.dot(b_weight, b_behind, b_sum_behind, input_precision="ieee")

    # What does not fill a block of pairs, 16 = 5 * 3 + 1, is of the next program.
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
