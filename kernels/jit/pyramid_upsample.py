"""Bilinear upsampling of a pyramid: fixed order, bit-reproducible.

``csrc/pyramid_upsample.h`` has the formula. Its weights A_b[i, u], of position i and source u of b,
are separable: those of rows times those of columns. Forward, a program mixes the rows of bins for
one row of the map, for a block of channels, and then spreads the columns of bins over the map's
columns by a product of matrices.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST. S = Σ b² of BINS, k is KERNEL_SIZE.
The width is a quotient times WIDTH_DIVISOR: the product shows the compiler what divides the offset
of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import (
    interpolation_tap,
    interpolation_weight,
    locate_axis_bins,
    locate_row,
    map_offsets,
)

# A product sums over pairs of a column of bins and a tap's kx, in rounds of the fewest that tl.dot
# takes: (1, 2, 3, 6) has 12 * 3 pairs, its last level 6 * 3.
_BLOCK_K = tl.constexpr(16)


@triton.jit
def _upsample(
    p_image,
    strides,
    bin_columns,
    o_c,
    m_c,
    row,
    o_w,
    size,
    BINS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
):
    """Upsampled [columns, channels] of a row of a map of ``size`` (H, W).

    It is the sum over columns of bins, ``bin_columns`` (first, end), counted over all levels. The
    values are an image's [S, k, k, C] with ``strides`` (of a tap, of a channel).
    """
    tap_stride, channel_stride = strides
    first_bin_column, end_bin_column = bin_columns
    height, width = size
    b_sum = tl.zeros([o_w.shape[0], o_c.shape[0]], tl.float32)
    o_value = (o_c * channel_stride)[None, :]
    # What a tap reads above or below the map is zero.
    first_i = tl.maximum(row - KERNEL_SIZE // 2, 0)
    end_i = tl.minimum(row + KERNEL_SIZE // 2 + 1, height)
    end_k = end_bin_column * KERNEL_SIZE
    # Few rounds, short of registers: not worth a pipeline.
    for first_k in tl.range(first_bin_column * KERNEL_SIZE, end_k, _BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, _BLOCK_K)
        kx = o_k % KERNEL_SIZE
        _, bins, first_bin, v = locate_axis_bins(o_k // KERNEL_SIZE, BINS)
        m_value = (o_k < end_k)[:, None] & m_c[None, :]
        b_mixed = tl.zeros([_BLOCK_K, o_c.shape[0]], tl.float32)
        for i in tl.range(first_i, end_i, num_stages=1):
            ky = i - row + KERNEL_SIZE // 2
            low, high, weight = interpolation_tap(i, height, bins, ALIGN_CORNERS)
            low_tap = ((first_bin + low * bins + v) * KERNEL_SIZE + ky) * KERNEL_SIZE + kx
            high_tap = ((first_bin + high * bins + v) * KERNEL_SIZE + ky) * KERNEL_SIZE + kx
            p_low = p_image + low_tap.to(tl.int64)[:, None] * tap_stride
            p_high = p_image + high_tap.to(tl.int64)[:, None] * tap_stride
            b_low = tl.load(p_low + o_value, mask=m_value, other=0.0).to(tl.float32)
            b_high = tl.load(p_high + o_value, mask=m_value, other=0.0).to(tl.float32)
            b_mixed += (1.0 - weight)[:, None] * b_low + weight[:, None] * b_high
        j = o_w[:, None] + (kx - KERNEL_SIZE // 2)[None, :]
        b_weight = interpolation_weight(j, width, v[None, :], bins[None, :], ALIGN_CORNERS)
        b_sum = tl.dot(b_weight, b_mixed, b_sum, input_precision="ieee")
    return b_sum


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
        b_out = _upsample(
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
    are the channels. A program takes ``program_rows`` rows, which share bins in the L1 cache."""
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
    for row in tl.range(first_row, end_row, num_stages=1, disable_licm=True):
        b_out = _upsample(
            p_mixed + i_n * bin_count * (KERNEL_SIZE * KERNEL_SIZE) * channels,
            (channels, 1),
            (0, bin_columns),
            o_c,
            m_c,
            row,
            o_w,
            (height, width),
            BINS,
            KERNEL_SIZE,
            ALIGN_CORNERS,
        )
        o_out = map_offsets(i_n, o_c, row, o_w, channels, height, width, CHANNELS_LAST)
        m_out = (o_w < width)[:, None] & m_c[None, :]
        store_sum(p_base, p_bias, p_out, b_out, o_out, m_out, o_c, m_c, True, HAS_BIAS, RELU)
