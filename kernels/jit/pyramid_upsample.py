"""Bilinear upsampling of a pyramid: fixed order, bit-reproducible.

``csrc/pyramid_upsample.h`` has the formula. Its weights A_b[i, u], of position i and source u of b,
are separable: those of rows times those of columns. common/pyramid_rows.py makes a row of the map.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST. S = Σ b² of BINS, k is KERNEL_SIZE.
The width is a quotient times WIDTH_DIVISOR: the product shows the compiler what divides the offset
of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import locate_row, map_offsets
from .common.pyramid_rows import upsample_row, upsample_two_rows


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
