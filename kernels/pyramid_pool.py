"""pyramid_pool in Triton: one read of x, backward one write; fixed order, bit-reproducible.

A program takes a block of channels of one image. In a band, the rows between two neighbouring row
edges of the pyramid, every bin holds all rows or none: rows are summed elementwise first, and the
columns of a bin once a band. Backward likewise gathers the gradient of a band once and writes it to
the band's rows.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from .jit.geometry import bin_edges, locate_bins, map_offsets, next_edge
from .launch import column_block, dense, empty_map, on_the_device_of_the_first, width_divisor


@triton.jit
def _pooled_offsets(i_n, o_c, o_s, channels, bin_count, CHANNELS_LAST: tl.constexpr):
    """Offsets [bins, channels] of a pooled tensor [N, C, S]."""
    if CHANNELS_LAST:
        return (i_n * bin_count + o_s)[:, None] * channels + o_c[None, :]
    return ((i_n * channels + o_c) * bin_count)[None, :] + o_s[:, None]


@triton.jit
def _place(i_program, channels, BLOCK_C: tl.constexpr):
    """Image, channels and their mask of a program; int64, as all addresses are."""
    i_program = i_program.to(tl.int64)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    o_c = i_program % channel_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return i_program // channel_blocks, o_c, o_c < channels


@triton.jit
def _fwd_kernel(
    p_x,
    p_pooled,
    channels,
    height,
    width_quotient,
    bin_count,
    BINS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    # A product shows the compiler what divides the offset of every row.
    width = width_quotient * WIDTH_DIVISOR
    i_n, o_c, m_c = _place(tl.program_id(0), channels, BLOCK_C)
    o_s = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    row_begin, row_end, column, area = locate_bins(o_s, height, width, BINS)
    b_sum = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for first_w in range(0, width, BLOCK_W):
        o_w = first_w + tl.arange(0, BLOCK_W)
        m_x = (o_w < width)[:, None] & m_c[None, :]
        row = 0
        while row < height:
            end = next_edge(row, height, BINS)
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

    o_pooled = _pooled_offsets(i_n, o_c, o_s, channels, bin_count, CHANNELS_LAST)
    b_pooled = (b_sum / area[:, None]).to(p_pooled.dtype.element_ty)
    tl.store(p_pooled + o_pooled, b_pooled, mask=(o_s < bin_count)[:, None] & m_c[None, :])


@triton.jit
def _bwd_kernel(
    p_grad,
    p_grad_x,
    channels,
    height,
    width_quotient,
    bin_count,
    BINS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDTH_DIVISOR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    # A product shows the compiler what divides the offset of every row.
    width = width_quotient * WIDTH_DIVISOR
    i_n, o_c, m_c = _place(tl.program_id(0), channels, BLOCK_C)
    for first_w in range(0, width, BLOCK_W):
        o_w = first_w + tl.arange(0, BLOCK_W)
        m_x = (o_w < width)[:, None] & m_c[None, :]
        row = 0
        while row < height:
            end = next_edge(row, height, BINS)
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


def _channels(batch: int, channels: int, channels_last: bool) -> int:
    """Channels of a program."""
    # 64 or 128 consecutive bytes where channels are consecutive in memory; fewer channels where
    # programs of 32 would not fill a large GPU.
    return 32 if channels_last and batch * channels >= 32 * 256 else 16


def _columns(x: Tensor, width: int, channels_last: bool, forward: bool) -> int:
    """Columns of a program: 64 of 16 bits would reach the stack in some cases, of channels on
    sm_100, of rows that begin at no multiple of 16 bytes on sm_90."""
    most = 64
    if channels_last:
        most = 32 if forward and x.element_size() == 2 else 64
    elif width_divisor(width) * x.element_size() < 16:
        # Of float16's forward, half as many would reach it instead.
        most = 64 if forward and x.dtype == torch.float16 else 32
    return min(column_block(width), most)


@on_the_device_of_the_first
def pyramid_pool_forward(x: Tensor, bins: Sequence[int]) -> Tensor:
    """All adaptive average pools of x ``[N, C, H, W]``: ``[N, C, S]``, in memory as x is."""
    x, channels_last = dense(x)
    batch, channels, height, width = x.shape
    bin_count = sum(b * b for b in bins)
    if channels_last:
        pooled = x.new_empty((batch, bin_count, channels)).transpose(1, 2)
    else:
        pooled = x.new_empty((batch, channels, bin_count))
    block_c, divisor = _channels(batch, channels, channels_last), width_divisor(width)
    # All bins of (1, 2, 3, 6) are one block of 64. More bins than 128 would not fit a program's
    # registers: x is then read once for every 128.
    block_s = 16 if bin_count <= 16 else 64 if bin_count <= 64 else 128
    grid = (batch * -(-channels // block_c), -(-bin_count // block_s))
    wrap_triton(_fwd_kernel)[grid](
        x,
        pooled,
        channels,
        height,
        width // divisor,
        bin_count,
        BINS=tuple(bins),
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_C=block_c,
        BLOCK_W=_columns(x, width, channels_last, forward=True),
        BLOCK_S=block_s,
    )
    return pooled


@on_the_device_of_the_first
def pyramid_pool_backward(
    grad: Tensor, bins: Sequence[int], height: int, width: int, channels_last: bool
) -> Tensor:
    """Gradient ``[N, C, H, W]`` of x for the gradient ``[N, C, S]`` of its pools."""
    batch, channels, bin_count = grad.shape
    grad = (grad.transpose(1, 2) if channels_last else grad).contiguous()
    grad_x = empty_map(grad, (batch, channels, height, width), channels_last)
    block_c, divisor = _channels(batch, channels, channels_last), width_divisor(width)
    grid = (batch * -(-channels // block_c),)
    wrap_triton(_bwd_kernel)[grid](
        grad,
        grad_x,
        channels,
        height,
        width // divisor,
        bin_count,
        BINS=tuple(bins),
        CHANNELS_LAST=channels_last,
        WIDTH_DIVISOR=divisor,
        BLOCK_C=block_c,
        BLOCK_W=_columns(grad, width, channels_last, forward=False),
    )
    return grad_x
