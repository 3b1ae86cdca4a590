"""Kernels of pyramid_pool: one read of x, backward one write; fixed order, bit-reproducible.

A program takes a block of channels and a segment of rows of one image. In a band, the rows between
two neighbouring row edges of the pyramid, every bin holds all rows or none: rows are summed
elementwise first, and the columns of a bin once a band. Backward likewise gathers the gradient of a
band once and writes it to the band's rows. Where segments meet in a band, they cut it in two.

The width is a quotient times WIDTH_DIVISOR: the product shows the compiler what divides the offset
of every row.
"""

import triton
import triton.language as tl

from .common.geometry import bin_edges, locate_bins, map_offsets, next_edge


@triton.jit
def _pooled_offsets(i_n, o_c, o_s, channels, bin_count, CHANNELS_LAST: tl.constexpr):
    """Offsets [bins, channels] of a pooled tensor [N, C, S]."""
    if CHANNELS_LAST:
        return (i_n * bin_count + o_s)[:, None] * channels + o_c[None, :]
    return ((i_n * channels + o_c) * bin_count)[None, :] + o_s[:, None]


@triton.jit
def _locate(i_program, channels, BLOCK_C: tl.constexpr):
    """A program's image, its channels and their mask; int64, as all addresses are."""
    i_program = i_program.to(tl.int64)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    o_c = i_program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return i_program // channel_blocks, o_c, o_c < channels


@triton.jit
def pool_fwd_kernel(
    p_x,
    p_pooled,
    channels,
    height,
    width_quotient,
    bin_count,
    batch,
    segment_rows,
    BINS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """What a segment of rows of x [N, C, H, W] gives to its pools: pooled [segments, N, C, S],
    S = Σ b² of BINS; with CHANNELS_LAST, x and pools have channels innermost in memory."""
    width = width_quotient * WIDTH_DIVISOR
    i_n, o_c, m_c = _locate(tl.program_id(0), channels, BLOCK_C)
    o_s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    row_begin, row_end, column, area = locate_bins(o_s, height, width, BINS)
    i_segment = tl.program_id(2)
    end_segment = tl.minimum((i_segment + 1) * segment_rows, height)
    b_sum = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first_w in range(0, width, BLOCK_W):
        o_w = first_w + tl.arange(0, BLOCK_W)
        m_x = (o_w < width)[:, None] & m_c[None, :]
        row = i_segment * segment_rows
        while row < end_segment:
            end = tl.minimum(next_edge(row, height, BINS), end_segment)
            b_band = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
            for r in tl.range(row, end, num_stages=3):
                o_x = map_offsets(i_n, o_c, r, o_w, channels, height, width, CHANNELS_LAST)
                b_band += tl.load(p_x + o_x, mask=m_x, other=0.0).to(tl.float32)
            m_rows = (row_begin <= row) & (row < row_end)
            first = 0
            for level in tl.static_range(len(BINS)):
                bins = BINS[level]
                for v in range(bins):
                    col_begin, col_end = bin_edges(v, width, bins)
                    m_w = (col_begin <= o_w) & (o_w < col_end)
                    b_bin = tl.sum(tl.where(m_w[:, None], b_band, 0.0), axis=0)
                    m_s = m_rows & (column == first + v)
                    b_sum += tl.where(m_s[:, None], b_bin[None, :], 0.0)
                first += bins
            row = end

    # The pools of a segment are a batch of their own.
    o_pooled = _pooled_offsets(
        i_segment * batch + i_n, o_c, o_s, channels, bin_count, CHANNELS_LAST
    )
    b_pooled = (b_sum / area[:, None]).to(p_pooled.dtype.element_ty)
    tl.store(p_pooled + o_pooled, b_pooled, mask=(o_s < bin_count)[:, None] & m_c[None, :])


@triton.jit
def pool_bwd_kernel(
    p_grad,
    p_grad_x,
    channels,
    height,
    width_quotient,
    bin_count,
    segment_rows,
    BINS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_x [N, C, H, W] for grad [N, C, S], the gradient of the pools; with CHANNELS_LAST, both
    have channels innermost in memory."""
    width = width_quotient * WIDTH_DIVISOR
    i_n, o_c, m_c = _locate(tl.program_id(0), channels, BLOCK_C)
    i_segment = tl.program_id(1)
    end_segment = tl.minimum((i_segment + 1) * segment_rows, height)
    for first_w in range(0, width, BLOCK_W):
        o_w = first_w + tl.arange(0, BLOCK_W)
        m_x = (o_w < width)[:, None] & m_c[None, :]
        row = i_segment * segment_rows
        while row < end_segment:
            end = tl.minimum(next_edge(row, height, BINS), end_segment)
            b_band = tl.zeros([BLOCK_W, BLOCK_C], tl.float32)
            first = 0
            for level in tl.static_range(len(BINS)):
                bins = BINS[level]
                u_begin, u_end = bin_edges(row, bins, height)
                for u in range(u_begin, u_end):
                    row_begin, row_end = bin_edges(u, height, bins)
                    for v in range(bins):
                        col_begin, col_end = bin_edges(v, width, bins)
                        o_s = first + u * bins + v + tl.arange(0, 1)
                        o_pooled = _pooled_offsets(
                            i_n, o_c, o_s, channels, bin_count, CHANNELS_LAST
                        )
                        b_grad = tl.load(p_grad + o_pooled, mask=m_c[None, :], other=0.0)
                        area = (row_end - row_begin).to(tl.float32) * (col_end - col_begin)
                        m_w = (col_begin <= o_w) & (o_w < col_end)
                        b_band += tl.where(m_w[:, None], b_grad.to(tl.float32) / area, 0.0)
                first += bins * bins
            b_grad_x = b_band.to(p_grad_x.dtype.element_ty)
            for r in range(row, end):
                o_x = map_offsets(i_n, o_c, r, o_w, channels, height, width, CHANNELS_LAST)
                tl.store(p_grad_x + o_x, b_grad_x, mask=m_x)
            row = end
