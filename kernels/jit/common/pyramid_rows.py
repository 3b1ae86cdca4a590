"""Rows of a map, bilinearly upsampled from a pyramid, for the kernels of pyramid_upsample.

A program mixes the rows of bins for a row of the map, for a block of channels, and then spreads the
columns of bins over the map's columns by a product of matrices. S = Σ b² of BINS, k is KERNEL_SIZE.

Masks compare vectors: with comparisons of numbers the addition spills on sm_100.
"""

import triton
import triton.language as tl

from .geometry import interpolation_tap, interpolation_weight, locate_axis_bins

# A product sums over pairs of a column of bins and a tap's kx, in rounds of the fewest that tl.dot
# takes: (1, 2, 3, 6) has 12 * 3 pairs, its last level 6 * 3.
BLOCK_K = tl.constexpr(16)


@triton.jit
def upsample_row(
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
    for first_k in tl.range(first_bin_column * KERNEL_SIZE, end_k, BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, BLOCK_K)
        kx = o_k % KERNEL_SIZE
        _, bins, first_bin, v = locate_axis_bins(o_k // KERNEL_SIZE, BINS)
        m_value = (o_k < end_k)[:, None] & m_c[None, :]
        b_mixed = tl.zeros([BLOCK_K, o_c.shape[0]], tl.float32)
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
def _mix_bin_rows(
    p_values,
    tap_stride,
    pairs,
    end_k,
    m_c,
    row,
    ky,
    height,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
):
    """[pairs, channels]: rows of bins mixed for tap ``ky`` of a row of the map, zero where the tap
    reads above or below it. ``pairs`` are their numbers below ``end_k``, b, first bin, column of
    bins and kx."""
    o_k, bins, first_bin, v, kx = pairs
    i = row + ky - KERNEL_SIZE // 2
    m_row = (o_k * 0 + i >= 0) & (o_k * 0 + i < height)
    m_value = ((o_k < end_k) & m_row)[:, None] & m_c[None, :]
    low, high, weight = interpolation_tap(i, height, bins, ALIGN_CORNERS)
    low_tap = ((first_bin + low * bins + v) * KERNEL_SIZE + ky) * KERNEL_SIZE + kx
    high_tap = ((first_bin + high * bins + v) * KERNEL_SIZE + ky) * KERNEL_SIZE + kx
    p_low = p_values + low_tap.to(tl.int64)[:, None] * tap_stride
    p_high = p_values + high_tap.to(tl.int64)[:, None] * tap_stride
    b_low = tl.load(p_low, mask=m_value, other=0.0)
    b_high = tl.load(p_high, mask=m_value, other=0.0)
    return (1.0 - weight)[:, None] * b_low + weight[:, None] * b_high


@triton.jit
def upsample_two_rows(
    p_image,
    channels,
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
    """Upsampled [columns, channels] of ``row`` and of the next of a map of ``size`` (H, W), summed
    over all ``bin_columns`` and over taps. The values are an image's [S, k, k, C], float32. Tap by
    tap, both rows mix nearly the same bins: the second finds them in the L1 cache."""
    height, width = size
    b_first = tl.zeros([o_w.shape[0], o_c.shape[0]], tl.float32)
    b_second = tl.zeros([o_w.shape[0], o_c.shape[0]], tl.float32)
    p_values = p_image + o_c[None, :]
    end_k = bin_columns * KERNEL_SIZE
    for first_k in tl.range(0, end_k, BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, BLOCK_K)
        kx = o_k % KERNEL_SIZE
        _, bins, first_bin, v = locate_axis_bins(o_k // KERNEL_SIZE, BINS)
        pairs = (o_k, bins, first_bin, v, kx)
        b_mixed = tl.zeros([BLOCK_K, o_c.shape[0]], tl.float32)
        b_mixed_next = tl.zeros([BLOCK_K, o_c.shape[0]], tl.float32)
        for ky in tl.range(0, KERNEL_SIZE, num_stages=1):
            b_mixed += _mix_bin_rows(
                p_values,
                channels,
                pairs,
                end_k,
                m_c,
                row,
                ky,
                height,
                KERNEL_SIZE,
                ALIGN_CORNERS,
            )
            b_mixed_next += _mix_bin_rows(
                p_values,
                channels,
                pairs,
                end_k,
                m_c,
                row + 1,
                ky,
                height,
                KERNEL_SIZE,
                ALIGN_CORNERS,
            )
        j = o_w[:, None] + (kx - KERNEL_SIZE // 2)[None, :]
        b_weight = interpolation_weight(j, width, v[None, :], bins[None, :], ALIGN_CORNERS)
        b_first = tl.dot(b_weight, b_mixed, b_first, input_precision="ieee")
        b_second = tl.dot(b_weight, b_mixed_next, b_second, input_precision="ieee")
    return b_first, b_second
