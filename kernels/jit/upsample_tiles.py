"""Tiles of logits that are interpolated to pixels on the fly: what the Triton kernels of
upsample_cross_entropy and upsample_argmax share.

The image's rows between two neighbouring rows of logits read these two only. A program takes such
rows and a block of columns: it interpolates both rows of logits to its columns once, and every row
of the image is then a multiplication and an addition away. Tiles are [classes, rows, columns], and
what is summed over classes is summed elementwise first, and over the tile's classes at the end.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import dense, width_divisor
from .geometry import interpolation_tap, weighted_positions

# Of a tile: 8 for each of 128 threads, which hold up to four numbers of each.
_TILE_ELEMENTS = 1024
# Rows that share two rows of logits: of the usual eightfold upsampling all.
_MOST_ROWS = 8
# Index maths has to hold twice the product of positions and sources, and little more.
_INT32_PRODUCT = 2**29

# Smaller than any logit that is finite, and finite: differences to it are never NaN.
_LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def position_of(index, LONG_AXES: tl.constexpr):
    """A position or a source, in the type in which its products are computed."""
    if LONG_AXES:
        # Not .to: a size of 1 is a constant.
        return index + tl.zeros([], tl.int64)
    else:
        return index


@triton.jit
def positions_between(source, size, sources, ALIGN_CORNERS: tl.constexpr):
    """Begin and end of the positions whose low source is ``source``; the end may not be behind the
    begin. All positions are of one source."""
    _, begin = weighted_positions(source - 1, size, sources, ALIGN_CORNERS)
    _, end = weighted_positions(source, size, sources, ALIGN_CORNERS)
    return tl.where(source == 0, 0, begin), end


@triton.jit
def logit_offsets(i_n, o_k, row, o_w, classes, rows, cols, CHANNELS_LAST: tl.constexpr):
    """Offsets [classes, columns] of a row of logits; int64 if ``i_n`` and ``o_k`` are.

    geometry's map_offsets, but columns are innermost. Neighbouring pixels read the same logits,
    which the compiler does not know: it lets neighbouring threads read along the innermost axis.
    """
    if CHANNELS_LAST:
        return ((i_n * rows + row) * cols + o_w)[None, :] * classes + o_k[:, None]
    return ((i_n * classes + o_k) * rows + row)[:, None] * cols + o_w[None, :]


@triton.jit
def _load_row(p_logits, i_n, o_k, row, o_w, classes, rows, cols, CHANNELS_LAST: tl.constexpr):
    """[classes, columns] in float32; 0 where there is no such class."""
    o_logits = logit_offsets(i_n, o_k, row, o_w, classes, rows, cols, CHANNELS_LAST)
    return tl.load(p_logits + o_logits, mask=(o_k < classes)[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_between(
    p_logits,
    i_n,
    o_k,
    source,
    low,
    high,
    weight,
    classes,
    rows,
    cols,
    CHANNELS_LAST: tl.constexpr,
):
    """Rows ``source`` and the one behind it of logits [N, K, rows, cols], interpolated to columns
    that read ``low`` and ``high``: the first [classes, columns], and what leads to the second."""
    behind = tl.minimum(source + 1, rows - 1)
    b_low = _load_row(p_logits, i_n, o_k, source, low, classes, rows, cols, CHANNELS_LAST)
    b_high = _load_row(p_logits, i_n, o_k, source, high, classes, rows, cols, CHANNELS_LAST)
    b_first = b_low + weight[None, :] * (b_high - b_low)
    b_low = _load_row(p_logits, i_n, o_k, behind, low, classes, rows, cols, CHANNELS_LAST)
    b_high = _load_row(p_logits, i_n, o_k, behind, high, classes, rows, cols, CHANNELS_LAST)
    return b_first, b_low + weight[None, :] * (b_high - b_low) - b_first


@triton.jit
def load_tile(
    p_logits,
    i_n,
    o_k,
    source,
    row_weight,
    low,
    high,
    weight,
    classes,
    rows,
    cols,
    CHANNELS_LAST: tl.constexpr,
):
    """Interpolated logits [classes, rows of the image, columns]."""
    b_first, b_step = load_between(
        p_logits, i_n, o_k, source, low, high, weight, classes, rows, cols, CHANNELS_LAST
    )
    return b_first[:, None, :] + row_weight[None, :, None] * b_step[:, None, :]


@triton.jit
def reduce_classes(
    p_logits,
    p_weight,
    i_n,
    source,
    row_weight,
    low,
    high,
    weight,
    classes,
    rows,
    cols,
    CHANNELS_LAST: tl.constexpr,
    WITH_SUM: tl.constexpr,
    WITH_LABEL: tl.constexpr,
    WITH_MEAN: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Of every pixel, [rows, columns]: the largest logit, the sum of exponentials relative to it,
    the first class that has it, and the sum of class weights times logits; only the first is there
    without the flags."""
    b_largest = tl.full([BLOCK_K, row_weight.shape[0], low.shape[0]], _LOWEST, tl.float32)
    b_sum = tl.zeros_like(b_largest)
    b_label = tl.zeros(b_largest.shape, tl.int32)
    b_mean = tl.zeros_like(b_largest)
    for first_k in tl.range(0, classes, BLOCK_K, num_stages=1):
        o_k = first_k + tl.arange(0, BLOCK_K)
        m_k = (o_k < classes)[:, None, None]
        b_value = load_tile(
            p_logits,
            i_n,
            o_k.to(tl.int64),
            source,
            row_weight,
            low,
            high,
            weight,
            classes,
            rows,
            cols,
            CHANNELS_LAST,
        )
        if WITH_MEAN:
            if WEIGHTED:
                b_weight = tl.load(p_weight + o_k, mask=o_k < classes, other=0.0)
                b_mean += b_weight[:, None, None] * b_value
            else:
                b_mean += b_value
        b_value = tl.where(m_k, b_value, -float("inf"))
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
    m_largest = b_largest == b_all_largest[None, :, :]
    b_label = tl.min(tl.where(m_largest, b_label, 2**31 - 1), axis=0)
    return b_all_largest, b_sum, b_label, tl.sum(b_mean, axis=0)


@triton.jit
def locate_tile(
    rows,
    cols,
    height,
    width,
    ALIGN_CORNERS: tl.constexpr,
    LONG_AXES: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """A program's image, in int64 as all addresses are, row of logits, begin and end of the image's
    rows that read it and the one behind it, columns, and the low and high source and the high one's
    weight of these. Columns behind the last repeat it."""
    i_program = tl.program_id(0)
    column_blocks = tl.cdiv(width, BLOCK_W)
    o_w = i_program % column_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    i_program //= column_blocks
    source = position_of(i_program % rows, LONG_AXES)
    begin, end = positions_between(source, height, rows, ALIGN_CORNERS)
    column = position_of(tl.minimum(o_w, width - 1), LONG_AXES)
    low, high, weight = interpolation_tap(column, width, cols, ALIGN_CORNERS)
    return (i_program // rows).to(tl.int64), source, begin, end, o_w, low, high, weight


@triton.jit
def rows_of_tile(first_row, height, rows, ALIGN_CORNERS: tl.constexpr, BLOCK_R: tl.constexpr):
    """Rows of the image, and the weight in each of the second of its two rows of logits."""
    o_r = first_row + tl.arange(0, BLOCK_R)
    _, _, weight = interpolation_tap(tl.minimum(o_r, height - 1), height, rows, ALIGN_CORNERS)
    return o_r, weight


class Plan(NamedTuple):
    """What launches of these kernels share, for logits ``[N, K, rows, cols]``."""

    logits: Tensor  # in a format that kernels read
    channels_last: bool
    sizes: tuple[int, ...]  # classes / divisor, rows, cols, height, width
    constants: dict[str, object]

    def grid(self) -> tuple[int]:
        """Of programs that locate_tile describes."""
        _, rows, _, _, width = self.sizes
        block_w = self.constants["BLOCK_W"]
        assert isinstance(block_w, int)
        return (self.logits.shape[0] * rows * -(-width // block_w),)


def upsampling(size: int, sources: int, align_corners: bool) -> tuple[int, int]:
    """Positions from one source to the next, as a fraction; the denominator is 0 where there is
    nothing but one source."""
    return (max(size - 1, 1), sources - 1) if align_corners else (size, sources)


def _power_of_two(n: int, most: int) -> int:
    """The smallest that is not below n, but at most ``most``."""
    # By comparisons alone, which torch.compile can trace for sizes that vary.
    power = 1
    while power < min(n, most):
        power *= 2
    return power


def plan(logits: Tensor, height: int, width: int, align_corners: bool) -> Plan:
    logits, channels_last = dense(logits)
    _, classes, rows, cols = logits.shape
    positions, sources = upsampling(height, rows, align_corners)
    between = height if sources == 0 else -(-positions // sources)
    # Where classes are innermost in memory, 16 are 32 or 64 bytes, which threads read together; the
    # 19 of Cityscapes or 21 of VOC fill blocks of 8 better. Else neighbouring threads take columns.
    block_k = 4 if not channels_last else 8 if classes <= 24 else 16
    block_r = _power_of_two(between, _MOST_ROWS)
    block_w = _power_of_two(width, _TILE_ELEMENTS // (block_k * block_r))
    # 2, as of 150 classes, and so on: Triton itself finds out about 16 only.
    divisor = width_divisor(classes) if channels_last else 1
    constants = {
        "ALIGN_CORNERS": align_corners,
        "CHANNELS_LAST": channels_last,
        "LONG_AXES": bool(max(rows * height, cols * width) >= _INT32_PRODUCT),
        "CLASS_DIVISOR": divisor,
        "BLOCK_K": block_k,
        "BLOCK_R": block_r,
        "BLOCK_W": block_w,
    }
    sizes = (classes // divisor, rows, cols, height, width)
    return Plan(logits, channels_last, sizes, constants)
