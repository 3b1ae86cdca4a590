"""Index maths of the pyramid for Triton, by the formulas of ``csrc/geometry.h``.

In int32, which holds the products of positions and 64 bins for axes of up to 2**31 / 64 positions,
and those of interpolation for axes of up to 2**23. ``BINS`` is a tuple, b of each level.
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


@triton.jit
def locate_axis_bins(o_u, BINS: tl.constexpr):
    """Of rows or columns of bins, counted over all levels: the level, its b, the first one of its
    bins of [0, S), and the place in the level."""
    i_level = o_u * 0
    bins = o_u * 0
    first_bin = o_u * 0
    u = o_u
    first = 0
    first_u = 0
    for level in tl.static_range(len(BINS)):
        m_u = o_u >= first_u
        i_level = tl.where(m_u, level, i_level)
        bins = tl.where(m_u, BINS[level], bins)
        first_bin = tl.where(m_u, first, first_bin)
        u = tl.where(m_u, o_u - first_u, u)
        first += BINS[level] * BINS[level]
        first_u += BINS[level]
    return i_level, bins, first_bin, u


@triton.jit
def locate_row(rows, column_blocks, channel_blocks):
    """Row, blocks of columns and of channels, and image of a program, rows innermost: programs that
    run together read the same memory. The image is int64, as all addresses are."""
    i_program = tl.program_id(0)
    row = i_program % rows
    i_program //= rows
    i_w = i_program % column_blocks
    i_program //= column_blocks
    return row, i_w, i_program % channel_blocks, (i_program // channel_blocks).to(tl.int64)


@triton.jit
def map_offsets(i_n, o_c, row, o_w, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Offsets [columns, channels] of a row of a map [N, C, H, W]; int64 if ``i_n``, ``o_c`` are."""
    if CHANNELS_LAST:
        return ((i_n * height + row) * width + o_w)[:, None] * channels + o_c[None, :]
    return ((i_n * channels + o_c) * height + row)[None, :] * width + o_w[:, None]


@triton.jit
def _coordinate(size, sources, ALIGN_CORNERS: tl.constexpr):
    """Step, offset and denominator: a position of an axis of ``size`` has the coordinate
    (step * position + offset) / denominator among ``sources``, as in F.interpolate."""
    if ALIGN_CORNERS:
        step = sources - 1
        offset = 0
        denominator = tl.maximum(size - 1, 1)
    else:
        step = 2 * sources
        offset = sources - size
        denominator = 2 * size
    return step, offset, denominator


@triton.jit
def interpolation_tap(position, size, sources, ALIGN_CORNERS: tl.constexpr):
    """Low and high source of ``position``, which is on the axis, and the weight of the high one."""
    step, offset, denominator = _coordinate(size, sources, ALIGN_CORNERS)
    numerator = tl.maximum(step * position + offset, 0)
    low = numerator // denominator
    weight = (numerator - low * denominator).to(tl.float32) / denominator
    return low, tl.minimum(low + 1, sources - 1), weight


@triton.jit
def interpolation_weight(position, size, source, sources, ALIGN_CORNERS: tl.constexpr):
    """What ``interpolation_tap`` gives to ``source``; 0 at positions that are not on the axis.

    One minus the distance to the source: no division of integers, which is slow for every column.
    """
    step, offset, denominator = _coordinate(size, sources, ALIGN_CORNERS)
    numerator = tl.maximum(step * position + offset, 0)
    numerator = tl.minimum(numerator, (sources - 1) * denominator)
    # Off the axis: two away from the first source.
    on_axis = (position >= 0) & (position < size)
    numerator = tl.where(on_axis, numerator, -2 * denominator)
    distance = tl.abs(numerator - source * denominator).to(tl.float32) * (1.0 / denominator)
    return tl.maximum(1.0 - distance, 0.0)


@triton.jit
def weighted_positions(source, size, sources, ALIGN_CORNERS: tl.constexpr):
    """Begin and end of the positions at which ``source`` has weight; the end may not be behind the
    begin."""
    step, offset, denominator = _coordinate(size, sources, ALIGN_CORNERS)
    # Numerators lie strictly between those of the neighbouring sources; with the corners of one
    # source aligned, all are 0.
    begin = tl.maximum((source - 1) * denominator - offset + step, 0) // tl.maximum(step, 1)
    end = tl.maximum((source + 1) * denominator - offset + step - 1, 0) // tl.maximum(step, 1)
    # Behind the last source's coordinate, weights stay.
    end = tl.where(source == sources - 1, size, end)
    return begin, tl.minimum(end, size)


@triton.jit
def positions_between(source, size, sources, ALIGN_CORNERS: tl.constexpr):
    """Begin and end of the positions whose low source is ``source``, none where the end is not
    behind the begin. A single source has all positions."""
    _, begin = weighted_positions(source - 1, size, sources, ALIGN_CORNERS)
    _, end = weighted_positions(source, size, sources, ALIGN_CORNERS)
    return tl.where(source == 0, 0, begin), end


@triton.jit
def nearest_source(position, size, sources):
    """The source of a position in mode "nearest" of F.interpolate, rounded as there: in float32."""
    # A size of one is a constant.
    scale = tl.div_rn(tl.cast(sources, tl.float32), tl.cast(size, tl.float32))
    rounded = (tl.cast(position, tl.float32) * scale).to(tl.int32)
    source = tl.where(size == 2 * sources, position // 2, tl.minimum(rounded, sources - 1))
    return tl.where(size == sources, position, source)
