"""Bilinear upsampling of a pyramid, and its transposition: fixed order, bit-reproducible.

``csrc/pyramid_upsample.h`` has the formula. Its weights A_b[i, u], of position i and source u of b,
are separable: those of rows times those of columns. Forward, rows are common/pyramid_rows.py's.
Backward, a program gathers for one row of bins: it sums rows of the map first, and their columns at
the end by the transposed product.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST. S = Σ b² of BINS, k is KERNEL_SIZE.
The width is a quotient times WIDTH_DIVISOR: the product shows the compiler what divides the offset
of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import (
    interpolation_weight,
    locate_axis_bins,
    locate_row,
    map_offsets,
    weighted_positions,
)
from .common.pyramid_rows import BLOCK_K, upsample_row, upsample_two_rows


@triton.jit
def concat_fwd_kernel(
    p_x,
    p_priors,
    p_out,
    copied_channels,
    channels,
    height,
    width_quotient,
    image_stride,
    channel_stride,
    bin_stride,
    BINS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [N, C + L * R, H, W]: x [N, C, H, W], and behind it every level of priors [N, R, S], of
    these strides, upsampled. C are the copied channels and R the channels. A program copies a block
    of channels of x, or upsamples one of a level."""
    width = width_quotient * WIDTH_DIVISOR
    copied_blocks = tl.cdiv(copied_channels, BLOCK_C)
    level_blocks = tl.cdiv(channels, BLOCK_C)
    row, i_w, i_block, i_n = locate_row(
        height, tl.cdiv(width, BLOCK_W), copied_blocks + len(BINS) * level_blocks
    )
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    out_channels = copied_channels + len(BINS) * channels
    if i_block < copied_blocks:
        o_c = i_block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        m_x = (o_w < width)[:, None] & (o_c < copied_channels)[None, :]
        o_x = map_offsets(i_n, o_c, row, o_w, copied_channels, height, width, CHANNELS_LAST)
        o_out = map_offsets(i_n, o_c, row, o_w, out_channels, height, width, CHANNELS_LAST)
        tl.store(p_out + o_out, tl.load(p_x + o_x, mask=m_x), mask=m_x)
    else:
        i_level = (i_block - copied_blocks) // level_blocks
        i_block = (i_block - copied_blocks) % level_blocks
        o_c = i_block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
        first_bin_column = 0
        end_bin_column = 0
        for level in tl.static_range(len(BINS)):
            first_bin_column += tl.where(level < i_level, BINS[level], 0)
            end_bin_column += tl.where(level <= i_level, BINS[level], 0)
        m_c = o_c < channels
        b_out = upsample_row(
            p_priors + i_n * image_stride,
            (bin_stride, channel_stride),
            (first_bin_column, end_bin_column),
            o_c,
            m_c,
            row,
            o_w,
            (height, width),
            BINS,
            KERNEL_SIZE=1,
            ALIGN_CORNERS=ALIGN_CORNERS,
        )
        m_out = (o_w < width)[:, None] & m_c[None, :]
        o_c += copied_channels + i_level * channels
        o_out = map_offsets(i_n, o_c, row, o_w, out_channels, height, width, CHANNELS_LAST)
        tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


# A single row is no constant: images share rows in every batch by the same code.
@triton.jit(do_not_specialize=["program_rows"])
def add_fwd_kernel(
    p_base,
    p_mixed,
    p_bias,
    p_out,
    channels,
    height,
    width_quotient,
    bin_count,
    program_rows,
    BINS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [N, O, H, W]: base [N, O, H, W], plus bias [O] if HAS_BIAS, plus mixed [N, S, k, k, O],
    float32, of all levels and taps, upsampled and shifted by the tap; with RELU not below zero. O
    are the channels. A program takes ``program_rows`` rows, an even number, two at a time."""
    width = width_quotient * WIDTH_DIVISOR
    i_rows, i_w, i_block, i_n = locate_row(
        tl.cdiv(height, program_rows), tl.cdiv(width, BLOCK_W), tl.cdiv(channels, BLOCK_C)
    )
    first_row = i_rows * program_rows
    end_row = tl.minimum(first_row + program_rows, height)
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    o_c = i_block.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < channels
    bin_columns = 0
    for level in tl.static_range(len(BINS)):
        bin_columns += BINS[level]
    # What rows share is computed again: registers do not hold it.
    for row in tl.range(first_row, end_row, 2, num_stages=1, disable_licm=True):
        b_first, b_second = upsample_two_rows(
            p_mixed + i_n * bin_count * (KERNEL_SIZE * KERNEL_SIZE) * channels,
            channels,
            bin_columns,
            o_c,
            m_c,
            row,
            o_w,
            (height, width),
            BINS,
            KERNEL_SIZE,
            ALIGN_CORNERS,
        )
        m_out = (o_w < width)[:, None] & m_c[None, :]
        o_out = map_offsets(i_n, o_c, row, o_w, channels, height, width, CHANNELS_LAST)
        store_sum(p_base, p_bias, p_out, b_first, o_out, m_out, o_c, m_c, True, HAS_BIAS, RELU)
        o_out = map_offsets(i_n, o_c, row + 1, o_w, channels, height, width, CHANNELS_LAST)
        m_out = m_out & (o_w * 0 + row + 1 < end_row)[:, None]
        store_sum(p_base, p_bias, p_out, b_second, o_out, m_out, o_c, m_c, True, HAS_BIAS, RELU)


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
    """grad_values [segments * column blocks, N, S, k, k, C]: what a segment of rows and a block of
    columns of grad [N, map channels, H, W] give to the values [N, S, k, k, C] that were upsampled.
    From ``first_channel`` on, grad has the C channels of every level, one level behind the other,
    or, if SUM_LEVELS, of their sum.

    A program gathers for a row of bins of a level, over a block of columns of the map. It reads the
    rows of the map between the neighbouring rows of bins, and one more at either side for taps, or
    a segment of these: every level reads the map about twice, a single bin once. Programs of the
    same channels are neighbours: the L2 cache has what another read."""
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

    # Tap ky of row i has the weights of position i + ky - KERNEL_SIZE // 2.
    b_here = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    if KERNEL_SIZE == 3:
        b_before = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
        b_behind = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
    begin, end = weighted_positions(u, height, bins, ALIGN_CORNERS)
    begin = tl.maximum(begin - KERNEL_SIZE // 2, 0)
    end = tl.minimum(end + KERNEL_SIZE // 2, height)
    segment_rows = tl.cdiv(end - begin, segments)
    begin += i_segment * segment_rows
    end = tl.minimum(begin + segment_rows, end)
    for row in tl.range(begin, end, num_stages=3):
        o_grad = map_offsets(i_n, o_map, row, o_w, map_channels, height, width, CHANNELS_LAST)
        b_grad = tl.load(p_grad + o_grad, mask=m_grad, other=0.0).to(tl.float32)
        b_here += interpolation_weight(row, height, u, bins, ALIGN_CORNERS) * b_grad
        if KERNEL_SIZE == 3:
            b_before += interpolation_weight(row - 1, height, u, bins, ALIGN_CORNERS) * b_grad
            b_behind += interpolation_weight(row + 1, height, u, bins, ALIGN_CORNERS) * b_grad

    first_tap = ((i_segment * column_blocks + i_w) * batch + i_n) * bin_count + first_bin + u * bins
    p_taps = p_grad_values + first_tap * (KERNEL_SIZE * KERNEL_SIZE) * channels + o_c[None, :]
    for first_k in tl.range(0, bins * KERNEL_SIZE, BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, BLOCK_K)
        v = o_k // KERNEL_SIZE
        kx = o_k % KERNEL_SIZE
        j = o_w[None, :] + (kx - KERNEL_SIZE // 2)[:, None]
        b_weight = interpolation_weight(j, width, v[:, None], bins, ALIGN_CORNERS)
        p_tap = p_taps + (v * (KERNEL_SIZE * KERNEL_SIZE) + kx).to(tl.int64)[:, None] * channels
        m_tap = (v < bins)[:, None] & m_c[None, :]
        if KERNEL_SIZE == 3:
            _store_sums(p_tap, b_weight, b_before, m_tap)
            p_tap += KERNEL_SIZE * channels
        _store_sums(p_tap, b_weight, b_here, m_tap)
        if KERNEL_SIZE == 3:
            _store_sums(p_tap + KERNEL_SIZE * channels, b_weight, b_behind, m_tap)
