"""Bin edges of the pyramid: the one definition for Triton, by the formulas of ``csrc/geometry.h``.

In int32, which holds the products of positions and bins for axes of up to 2**31 / 64 positions.
``BINS`` is a tuple, b of each level.
"""

import triton
import triton.language as tl


@triton.jit
def bin_edges(u, size, bins):
    """Begin and end of bin ``u`` of ``bins`` on an axis of ``size``; neighbouring bins overlap.

    Covering is symmetric: ``bin_edges(position, bins, size)`` are the begin and end of the bins
    that cover ``position``.
    """
    return u * size // bins, ((u + 1) * size + bins - 1) // bins


@triton.jit
def next_edge(position, size, BINS: tl.constexpr):
    """The nearest bin edge behind ``position``: no bin begins or ends in between."""
    edge = size
    for level in tl.static_range(len(BINS)):
        first, behind = bin_edges(position, BINS[level], size)
        _, first_end = bin_edges(first, size, BINS[level])
        behind_begin, _ = bin_edges(behind, size, BINS[level])
        edge = tl.minimum(edge, tl.minimum(first_end, behind_begin))
    return edge


@triton.jit
def locate_bins(o_s, height, width, BINS: tl.constexpr):
    """Of bins ``o_s`` of [0, S): first row, row behind the last, place among the columns of all
    levels, and area."""
    row_begin = o_s * 0
    row_end = o_s * 0
    column = o_s * 0
    area = o_s.to(tl.float32)
    first = 0
    first_column = 0
    for level in tl.static_range(len(BINS)):
        bins = BINS[level]
        u = (o_s - first) // bins
        v = (o_s - first) % bins
        u_begin, u_end = bin_edges(u, height, bins)
        v_begin, v_end = bin_edges(v, width, bins)
        m_s = o_s >= first
        row_begin = tl.where(m_s, u_begin, row_begin)
        row_end = tl.where(m_s, u_end, row_end)
        column = tl.where(m_s, first_column + v, column)
        area = tl.where(m_s, (u_end - u_begin).to(tl.float32) * (v_end - v_begin), area)
        first += bins * bins
        first_column += bins
    return row_begin, row_end, column, area
