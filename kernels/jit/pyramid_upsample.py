"""Bilinear upsampling of a pyramid: fixed order, bit-reproducible.

``csrc/pyramid_upsample.h`` has the formula. Its weights A_b[i, u], of position i and source u of b,
are separable: those of rows times those of columns. common/upsampled_rows.py makes rows of the map.

Products are in float32 throughout ("ieee"): tensor cores would round the weights to 11 bits.

Maps [N, C, H, W] are [N, H, W, C] in memory with CHANNELS_LAST. S = Σ b² of BINS, k is KERNEL_SIZE.
The width is a quotient times WIDTH_DIVISOR: the product shows the compiler what divides the offset
of every row.
"""

import triton
import triton.language as tl

from .common.epilogue import store_sum
from .common.geometry import locate_row, map_offsets
from .common.upsampled_rows import add_level, locate_pairs, pair_offsets


@triton.jit
def _locate_level(i_level, BINS: tl.constexpr):
    """A level's b, and the first one of its bins of [0, S)."""
    bins = 0
    first_bin = 0
    for level in tl.static_range(len(BINS)):
        bins = tl.where(level == i_level, BINS[level], bins)
        first_bin += tl.where(level < i_level, BINS[level] * BINS[level], 0)
    return bins, first_bin


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
        m_c = o_c < channels
        bins, first_bin = _locate_level(i_level, BINS)
        b_out = add_level(
            tl.zeros([BLOCK_W, BLOCK_C], tl.float32),
            p_priors + i_n * image_stride + first_bin.to(tl.int64) * bin_stride,
            (bin_stride, channel_stride),
            (bins, bins),
            o_c,
            m_c,
            row + tl.zeros([BLOCK_C], tl.int32),
            row,
            o_w,
            i_w * BLOCK_W,
            (height, width),
            KERNEL_SIZE=1,
            ALIGN_CORNERS=ALIGN_CORNERS,
            NEAREST=False,
        )
        m_out = (o_w < width)[:, None] & m_c[None, :]
        o_c += copied_channels + i_level * channels
        o_out = map_offsets(i_n, o_c, row, o_w, out_channels, height, width, CHANNELS_LAST)
        tl.store(p_out + o_out, b_out.to(p_out.dtype.element_ty), mask=m_out)


@triton.jit
def add_fwd_kernel(
    p_base,
    p_mixed,
    p_bias,
    p_out,
    channels,
    height,
    width_quotient,
    BINS: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out [N, O, H, W]: base [N, O, H, W], plus bias [O] if HAS_BIAS, plus mixed [N, S, k, k, O],
    float32, of all levels and taps, upsampled and shifted by the tap; with RELU not below zero. O
    are the channels."""
    width = width_quotient * WIDTH_DIVISOR
    i_h, i_w, i_block, i_n = locate_row(
        tl.cdiv(height, BLOCK_H), tl.cdiv(width, BLOCK_W), tl.cdiv(channels, BLOCK_C)
    )
    o_w = i_w * BLOCK_W + tl.arange(0, BLOCK_W)
    o_h, o_c = locate_pairs(i_h, i_block, BLOCK_H, BLOCK_C)
    m_c = (o_c < channels) & (o_h < height)
    bin_count = 0
    for level in tl.static_range(len(BINS)):
        bin_count += BINS[level] * BINS[level]
    b_out = tl.zeros([BLOCK_W, BLOCK_H * BLOCK_C], tl.float32)
    # What levels share is computed again: registers do not hold it.
    for i_level in tl.range(len(BINS), num_stages=1, disable_licm=True):
        bins, first_bin = _locate_level(i_level, BINS)
        b_out = add_level(
            b_out,
            p_mixed + (i_n * bin_count + first_bin) * (KERNEL_SIZE * KERNEL_SIZE) * channels,
            (channels, 1),
            (bins, bins),
            o_c,
            m_c,
            o_h,
            i_h * BLOCK_H,
            o_w,
            i_w * BLOCK_W,
            (height, width),
            KERNEL_SIZE,
            ALIGN_CORNERS,
            NEAREST=False,
        )
    o_out = pair_offsets(i_n, o_c, o_h, i_h * BLOCK_H, o_w, channels, height, width, CHANNELS_LAST)
    m_out = (o_w < width)[:, None] & m_c[None, :]
    store_sum(p_base, p_bias, p_out, b_out, o_out, m_out, o_c, m_c, True, HAS_BIAS, RELU)
