"""Tiles of logits that are interpolated to pixels on the fly: what the kernels of upsample_argmax,
upsample_softmax and upsample_cross_entropy share.

The image's rows between two neighbouring rows of logits read these two only. A program takes such
rows and a block of columns: it interpolates both rows of logits to its columns once, and every row
of the image is then a multiplication and an addition away. Tiles are [classes, rows, columns]. A
program reduces classes elementwise first, and those of a tile at the end.

Two tuples go through all functions. ``shape`` is (K, rows, cols) of logits [N, K, rows, cols].
``columns`` has three numbers of every column of the image: (low source, high source, weight of the
high one). They are no named tuples: torch.compile copies the functions and constants that a kernel
names into a file of its own, but no classes. They hold no constants, which Triton makes numbers of
the running program where a tuple is taken apart; and no pointers, because torch.compile believes
that a store to an offset writes all that the offset comes from.
"""

import torch
import triton
import triton.language as tl

from .geometry import interpolation_tap, positions_between

# Smaller than any logit that is finite, and finite: differences to it are never NaN.
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_NO_LABEL = tl.constexpr(torch.iinfo(torch.int32).max)
_SIGN_BIT = tl.constexpr(torch.iinfo(torch.int32).min)


@triton.jit
def position_of(index, LONG_AXES: tl.constexpr):
    """A position or a source, in the type in which its products are computed."""
    if LONG_AXES:
        # Not .to: a size of 1 is a constant.
        return index + tl.zeros([], tl.int64)
    else:
        return index


@triton.jit
def logit_offsets(shape, i_n, o_k, row, o_w, CHANNELS_LAST: tl.constexpr):
    """Offsets [classes, columns] of a row of logits; int64 if ``i_n`` and ``o_k`` are.

    geometry's map_offsets, but columns are innermost. Neighbouring pixels read the same logits,
    which the compiler does not know: it lets neighbouring threads read along the innermost axis.
    """
    classes, rows, cols = shape
    if CHANNELS_LAST:
        return ((i_n * rows + row) * cols + o_w)[None, :] * classes + o_k[:, None]
    return ((i_n * classes + o_k) * rows + row)[:, None] * cols + o_w[None, :]


@triton.jit
def _load_row(
    p_logits, shape, i_n, o_k, row, o_w, CHANNELS_LAST: tl.constexpr, ALONG_COLUMNS: tl.constexpr
):
    """[classes, columns] in float32; 0 where there is no such class. Of minus infinity it makes the
    lowest number: differences of infinities are NaN, which would win over all other classes."""
    classes, _, _ = shape
    o_logits = logit_offsets(shape, i_n, o_k, row, o_w, CHANNELS_LAST)
    m_row = (o_k < classes)[:, None]
    if ALONG_COLUMNS:
        # Of one axis there is one order of threads, whatever is contiguous.
        size: tl.constexpr = o_logits.shape[0] * o_logits.shape[1]
        m_row = tl.reshape(tl.broadcast_to(m_row, o_logits.shape), [size])
        b_row = tl.load(p_logits + tl.reshape(o_logits, [size]), mask=m_row, other=0.0)
        b_row = tl.reshape(b_row, o_logits.shape).to(tl.float32)
    else:
        b_row = tl.load(p_logits + o_logits, mask=m_row, other=0.0).to(tl.float32)
    return tl.maximum(b_row, _LOWEST, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def load_between(
    p_logits,
    shape,
    i_n,
    o_k,
    source,
    columns,
    CHANNELS_LAST: tl.constexpr,
    ALONG_COLUMNS: tl.constexpr,
):
    """Rows ``source`` and ``source + 1`` of logits, interpolated to columns: the first, and the
    second minus the first, [classes, columns] each. ALONG_COLUMNS gives neighbouring threads
    neighbouring columns."""
    _, rows, _ = shape
    low, high, weight = columns
    b_low = _load_row(p_logits, shape, i_n, o_k, source, low, CHANNELS_LAST, ALONG_COLUMNS)
    b_high = _load_row(p_logits, shape, i_n, o_k, source, high, CHANNELS_LAST, ALONG_COLUMNS)
    b_first = b_low + weight[None, :] * (b_high - b_low)
    second = tl.minimum(source + 1, rows - 1)
    b_low = _load_row(p_logits, shape, i_n, o_k, second, low, CHANNELS_LAST, ALONG_COLUMNS)
    b_high = _load_row(p_logits, shape, i_n, o_k, second, high, CHANNELS_LAST, ALONG_COLUMNS)
    return b_first, b_low + weight[None, :] * (b_high - b_low) - b_first


@triton.jit
def load_tile(p_logits, shape, i_n, o_k, source, row_weight, columns, CHANNELS_LAST: tl.constexpr):
    """Interpolated logits [classes, rows of the image, columns]."""
    b_first, b_step = load_between(p_logits, shape, i_n, o_k, source, columns, CHANNELS_LAST, False)
    return b_first[:, None, :] + row_weight[None, :, None] * b_step[:, None, :]


@triton.jit
def reduce_classes(
    p_logits,
    shape,
    p_weight,
    i_n,
    source,
    row_weight,
    columns,
    CHANNELS_LAST: tl.constexpr,
    WITH_SUM: tl.constexpr,
    WITH_LABEL: tl.constexpr,
    WITH_MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Four numbers of every pixel, [rows, columns]: the largest logit; the sum of exponentials
    relative to it; the first class that is NaN or else that has the largest logit; and the sum of
    logits, each times its class's weight [K] if WEIGHTED. Each but the first needs its flag."""
    classes, _, _ = shape
    b_largest = tl.full([BLOCK_K, row_weight.shape[0], columns[0].shape[0]], _LOWEST, tl.float32)
    b_sum = tl.zeros_like(b_largest)
    b_label = tl.zeros(b_largest.shape, tl.int32)
    b_mean = tl.zeros_like(b_largest)
    for first_k in tl.range(0, classes, BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, BLOCK_K)
        m_k = (o_k < classes)[:, None, None]
        b_value = load_tile(
            p_logits, shape, i_n, o_k.to(tl.int64), source, row_weight, columns, CHANNELS_LAST
        )
        if WITH_MEAN:
            if WEIGHTED:
                b_weight = tl.load(p_weight + o_k, mask=o_k < classes, other=0.0)
                b_mean += b_weight[:, None, None] * b_value
            else:
                b_mean += b_value
        b_value = tl.where(m_k, b_value, -float("inf"))
        if WITH_LABEL:
            # The first NaN is the largest, as in torch: it is not below anything, nothing above it.
            m_larger = ~(b_value <= b_largest) & (b_largest == b_largest)
        else:
            m_larger = b_value > b_largest
        if WITH_SUM:
            # One exponential serves both cases: of the value, or of the largest so far.
            b_power = tl.exp(-tl.abs(b_value - b_largest))
            b_sum = tl.where(m_larger, b_sum * b_power + 1.0, b_sum + b_power)
        if WITH_LABEL:
            b_label = tl.where(m_larger, o_k[:, None, None], b_label)
        b_largest = tl.where(m_larger, b_value, b_largest)

    b_all_largest = tl.max(b_largest, axis=0)
    b_sum = tl.sum(b_sum * tl.exp(b_largest - b_all_largest[None, :, :]), axis=0)
    b_key = tl.where(b_largest == b_all_largest[None, :, :], b_label, _NO_LABEL)
    # The sign bit sorts classes of NaN before all others.
    b_key = tl.where(b_largest == b_largest, b_key, b_label | _SIGN_BIT)
    return b_all_largest, b_sum, tl.min(b_key, axis=0) & ~_SIGN_BIT, tl.sum(b_mean, axis=0)


@triton.jit
def locate_tile(
    rows,
    cols,
    height,
    width,
    ALIGN_CORNERS: tl.constexpr,
    LONG_AXES: tl.constexpr,
    BLOCK_W: tl.constexpr,
    tile_width=None,
):
    """A program's image, in int64 as all addresses are; its row of logits; begin and end of the
    image's rows that lie between this row and the next; its columns of the image, and the tuple
    ``columns`` of these. Of the BLOCK_W columns the first ``tile_width`` are the program's, all if
    it is None; in ``columns`` those behind the program's last or the image's repeat it."""
    step = BLOCK_W if tile_width is None else tile_width
    i_program = tl.program_id(0)
    column_blocks = tl.cdiv(width, step)
    first = i_program % column_blocks * step
    o_w = first + tl.arange(0, BLOCK_W)
    i_program //= column_blocks
    source = position_of(i_program % rows, LONG_AXES)
    begin, end = positions_between(source, height, rows, ALIGN_CORNERS)
    last = (width if tile_width is None else tl.minimum(first + tile_width, width)) - 1
    position = position_of(tl.minimum(o_w, last), LONG_AXES)
    columns = interpolation_tap(position, width, cols, ALIGN_CORNERS)
    return (i_program // rows).to(tl.int64), source, begin, end, o_w, columns


@triton.jit
def rows_of_tile(first_row, height, rows, ALIGN_CORNERS: tl.constexpr, BLOCK_R: tl.constexpr):
    """BLOCK_R rows of the image from ``first_row`` on, and the weight that each gives to the second
    of its two rows of logits."""
    o_r = first_row + tl.arange(0, BLOCK_R)
    _, _, weight = interpolation_tap(tl.minimum(o_r, height - 1), height, rows, ALIGN_CORNERS)
    return o_r, weight
