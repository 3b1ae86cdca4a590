"""Bin edges of the pyramid: the one definition for Triton, by the formulas of ``csrc/geometry.h``.

In int32, which holds the products of positions and bins for axes of up to 2**31 / 64 positions.
``BINS`` is a tuple, b of each level.
"""

import triton
import triton.language as tl


@triton.jit
def bin_begin(u, size, bins):
    """First position of bin ``u`` of ``bins`` on an axis of ``size``.

    Covering is symmetric: with ``size`` and ``bins`` swapped this is the first bin that covers
    position ``u``, and :func:`bin_end` the end of those bins.
    """
    return u * size // bins


@triton.jit
def bin_end(u, size, bins):
    """Position behind the last one of bin ``u``; neighbouring bins overlap."""
    return ((u + 1) * size + bins - 1) // bins


@triton.jit
def next_edge(position, size, BINS: tl.constexpr):
    """The nearest bin edge behind ``position``: no bin begins or ends in between."""
    edge = size
    for level in tl.static_range(len(BINS)):
        bins = BINS[level]
        first = bin_begin(position, bins, size)
        behind = bin_end(position, bins, size)
        edge = tl.minimum(edge, bin_end(first, size, bins))
        edge = tl.minimum(edge, bin_begin(behind, size, bins))
    return edge
