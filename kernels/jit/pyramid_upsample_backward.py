"""The transposition of pyramid_upsample's bilinear upsampling: fixed order, bit-reproducible.

A program gathers for two neighbouring rows of bins from the rows of the map between them: it sums
these first, and their columns at the end, by the transposed product of
``common/upsampled_rows.py``. ``pyramid_upsample.py`` explains the notation.
"""

import triton
import triton.language as tl

from .common.geometry import (
    interpolation_weight,
    locate_axis_bins,
    locate_row,
    map_offsets,
    positions_between,
)


@triton.jit
def _add_row(
    b_before, b_behind, b_grad, i, begin, end, height, u, bins, ALIGN_CORNERS: tl.constexpr
):
    """A row of grad, by the weights of position ``i`` for row ``u`` of bins and the next, is added
    to the sums of either; not if ``i`` is outside of their gap [begin, end)."""
    is_between = (i >= begin) & (i < end)
    before = interpolation_weight(i, height, u, bins, ALIGN_CORNERS)
    behind = interpolation_weight(i, height, u + 1, bins, ALIGN_CORNERS)
    b_before += tl.where(is_between, before, 0.0) * b_grad
    b_behind += tl.where(is_between, behind, 0.0) * b_grad
    return b_before, b_behind


@triton.jit
def _store_sums(p_sums, b_weight, b_rows, m_sums):
    """Weighted sums [pairs, channels] of rows [columns, channels]."""
    b_sums = tl.dot(b_weight, b_rows, input_precision="ieee")
    tl.store(p_sums, b_sums.to(p_sums.dtype.element_ty), mask=m_sums)


@triton.jit
def bwd_kernel(
    p_grad,
    p_grad_values,
    map_channels,
    first_channel,
    channels,
    height,
    width_quotient,
    bin_count,
    batch,
    segments,
    BINS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    SUM_LEVELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_values [2 * segments * column blocks, N, S, k, k, C]: what a segment of rows and a block
    of columns of grad [N, map channels, H, W] give to the values [N, S, k, k, C] that were
    upsampled, of the gap behind a row of bins and of the one before it. From ``first_channel`` on,
    grad has the C channels of every level, one level behind the other, or, if SUM_LEVELS, of their
    sum.

    A program gathers for two neighbouring rows of bins of a level, over a block of columns of the
    map. It reads the rows of the map in their gap, and one more at either side for taps, or a
    segment of these: every level reads the map about once. Behind the last row of bins only that
    row has weight, and before the first there is no gap: the last row's program clears its part.
    Programs of the same channels are neighbours: the L2 cache has what another read."""
    width = width_quotient * WIDTH_DIVISOR
    bin_rows = 0
    for level in tl.static_range(len(BINS)):
        bin_rows += BINS[level]
    column_blocks = tl.cdiv(width, BLOCK_W)
    i_u, i_w, i_block, i_n = locate_row(bin_rows, column_blocks, tl.cdiv(channels, BLOCK_C))
    i_segment = tl.program_id(1)
    i_level, bins, first_bin, u = locate_axis_bins(i_u, BINS)
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    o_c = i_block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    m_grad = (o_w < width)[:, None] & m_c[None, :]
    o_map = o_c + first_channel
    if not SUM_LEVELS:
        o_map += i_level * channels

    # Of both rows of bins. Tap ky of row i has the weights of position i + ky - KERNEL_SIZE // 2.
    b_here = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    b_next = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    if KERNEL_SIZE == 3:
        b_here_0 = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        b_next_0 = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        b_here_2 = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        b_next_2 = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    begin, end = positions_between(u, height, bins, ALIGN_CORNERS)
    gap = (begin, end, height, u, bins)
    first_row = tl.maximum(begin - KERNEL_SIZE // 2, 0)
    end_row = tl.minimum(end + KERNEL_SIZE // 2, height)
    segment_rows = tl.cdiv(end_row - first_row, segments)
    first_row += i_segment * segment_rows
    end_row = tl.minimum(first_row + segment_rows, end_row)
    # With taps a row has half as many channels: twice as many rows are on their way then.
    STAGES: tl.constexpr = 3 if KERNEL_SIZE == 1 else 5
    for row in tl.range(first_row, end_row, num_stages=STAGES):
        o_grad = map_offsets(i_n, o_map, row, o_w, map_channels, height, width, CHANNELS_LAST)
        b_grad = tl.load(p_grad + o_grad, mask=m_grad, other=0.0).to(tl.float32)
        b_here, b_next = _add_row(b_here, b_next, b_grad, row, *gap, ALIGN_CORNERS)
        if KERNEL_SIZE == 3:
            b_here_0, b_next_0 = _add_row(b_here_0, b_next_0, b_grad, row - 1, *gap, ALIGN_CORNERS)
            b_here_2, b_next_2 = _add_row(b_here_2, b_next_2, b_grad, row + 1, *gap, ALIGN_CORNERS)

    part = i_segment * column_blocks + i_w
    next_part = part + segments * column_blocks
    next_u = tl.where(u + 1 < bins, u + 1, 0)
    taps = KERNEL_SIZE * KERNEL_SIZE
    p_values = p_grad_values + o_c[None, :]
    p_here = p_values + ((part * batch + i_n) * bin_count + first_bin + u * bins) * taps * channels
    next_tap = ((next_part * batch + i_n) * bin_count + first_bin + next_u * bins) * taps
    p_next = p_values + next_tap * channels
    # Sums of a round, so many that each of 128 threads stores 16 bytes.
    # What rounds share is computed again: registers do not hold it.
    BLOCK_K: tl.constexpr = 512 // BLOCK_C
    for first_k in tl.range(0, bins * KERNEL_SIZE, BLOCK_K, num_stages=1, disable_licm=True):
        o_k = first_k + tl.arange(0, BLOCK_K)
        v = o_k // KERNEL_SIZE
        kx = o_k % KERNEL_SIZE
        j = o_w[None, :] + (kx - KERNEL_SIZE // 2)[:, None]
        b_weight = interpolation_weight(j, width, v[:, None], bins, ALIGN_CORNERS)
        o_tap = (v * taps + kx).to(tl.int64)[:, None] * channels
        m_tap = (v < bins)[:, None] & m_c[None, :]
        if KERNEL_SIZE == 3:
            _store_sums(p_here + o_tap, b_weight, b_here_0, m_tap)
            _store_sums(p_next + o_tap, b_weight, b_next_0, m_tap)
            o_tap += KERNEL_SIZE * channels
        _store_sums(p_here + o_tap, b_weight, b_here, m_tap)
        _store_sums(p_next + o_tap, b_weight, b_next, m_tap)
        if KERNEL_SIZE == 3:
            o_tap += KERNEL_SIZE * channels
            _store_sums(p_here + o_tap, b_weight, b_here_2, m_tap)
            _store_sums(p_next + o_tap, b_weight, b_next_2, m_tap)
