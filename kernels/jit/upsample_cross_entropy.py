"""Kernels of upsample_cross_entropy: cross-entropy of logits that are interpolated on the fly, and
its gradient by a gather; fixed order, bit-reproducible.

``csrc/upsample_cross_entropy.h`` has the formula, common/upsample_tiles.py how forward programs
work.
Backward, a program gathers for a tile of logits, a block of classes by rows and columns. It goes
down the rows of the image that read them, sums rows elementwise, and spreads their columns to the
columns of logits by a product of matrices. What rows of the image give to the row of logits behind
them is carried to the next round, so exponentials are computed again at the borders of tiles only.
"""

import triton
import triton.language as tl

from .common.geometry import interpolation_tap, interpolation_weight, weighted_positions
from .common.upsample_tiles import (
    load_between,
    locate_tile,
    logit_offsets,
    position_of,
    positions_between,
    reduce_classes,
    rows_of_tile,
)


@triton.jit
def _sum_of_weights(p_weight, classes, WEIGHTED: tl.constexpr):
    """The sum of all classes' weights [K], or K if these are all 1."""
    if WEIGHTED:
        b_sum = tl.zeros([128], tl.float32)
        for first_k in tl.range(0, classes, 128, num_stages=1):
            o_k = first_k + tl.arange(0, 128)
            b_sum += tl.load(p_weight + o_k, mask=o_k < classes, other=0.0)
        return tl.sum(b_sum)
    else:
        return tl.zeros([], tl.float32) + classes


@triton.jit
def _load_targets(
    p_target, p_weight, o_pixel, m_pixel, classes, ignore_index, WEIGHTED: tl.constexpr
):
    """Of every pixel: its class in int32, -1 where ignored or wrong; whether it is wrong; and the
    class's weight, 0 without a class. targets are [N, H, W], weights [K]."""
    b_target = tl.load(p_target + o_pixel, mask=m_pixel, other=0)
    m_given = m_pixel & (b_target != ignore_index)
    m_class = m_given & (b_target >= 0) & (b_target < classes)
    if WEIGHTED:
        b_weight = tl.load(p_weight + b_target, mask=m_class, other=0.0)
    else:
        b_weight = m_class.to(tl.float32)
    return tl.where(m_class, b_target, -1).to(tl.int32), m_given & ~m_class, b_weight


@triton.jit
def _target_logits(
    p_logits, shape, i_n, b_target, source, row_weight, columns, CHANNELS_LAST: tl.constexpr
):
    """The logit of every pixel's own class, [rows, columns], interpolated as load_tile does."""
    classes, rows, cols = shape
    low, high, weight = columns
    second = tl.minimum(source + 1, rows - 1)
    if CHANNELS_LAST:
        p_first = p_logits + (i_n * rows + source) * cols * classes + b_target
        p_second = p_logits + (i_n * rows + second) * cols * classes + b_target
        stride = classes
    else:
        p_first = p_logits + ((i_n * classes + b_target) * rows + source) * cols
        p_second = p_logits + ((i_n * classes + b_target) * rows + second) * cols
        stride = 1
    o_low = (low.to(tl.int64) * stride)[None, :]
    o_high = (high.to(tl.int64) * stride)[None, :]
    b_low = tl.load(p_first + o_low).to(tl.float32)
    b_high = tl.load(p_first + o_high).to(tl.float32)
    b_first = b_low + weight[None, :] * (b_high - b_low)
    b_low = tl.load(p_second + o_low).to(tl.float32)
    b_high = tl.load(p_second + o_high).to(tl.float32)
    b_step = b_low + weight[None, :] * (b_high - b_low) - b_first
    return b_first + row_weight[:, None] * b_step


@triton.jit
def loss_fwd_kernel(
    p_logits,
    p_target,
    p_weight,
    p_lse,
    p_labels,
    p_sums,
    classes_quotient,
    rows,
    cols,
    height,
    width,
    ignore_index,
    LABEL_SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WITH_LABELS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG_AXES: tl.constexpr,
    CLASS_DIVISOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Cross-entropy of logits [N, K, rows, cols], upsampled to H by W, and target [N, H, W], int64;
    weight [K], float32, is read if WEIGHTED.

    lse [N, H, W], float32: every pixel's logsumexp. labels [N, H, W], integers: the class of its
    largest logit, if WITH_LABELS. sums [programs, 3], float64: of losses, of weights, and of wrong
    labels, each over the pixels of a program.
    """
    # The product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    shape = (classes, rows, cols)
    i_n, source, begin, end, o_w, columns = locate_tile(
        rows, cols, height, width, ALIGN_CORNERS, LONG_AXES, BLOCK_W
    )
    if LABEL_SMOOTHING > 0:
        weight_sum = _sum_of_weights(p_weight, classes, WEIGHTED)
    sum_of_losses = tl.zeros([], tl.float64)
    sum_of_weights = tl.zeros([], tl.float64)
    wrong_labels = tl.zeros([], tl.float64)
    for first_row in tl.range(begin, end, BLOCK_R, num_stages=1):
        o_r, row_weight = rows_of_tile(first_row, height, rows, ALIGN_CORNERS, BLOCK_R)
        b_largest, b_sum, b_label, b_mean = reduce_classes(
            p_logits,
            shape,
            p_weight,
            i_n,
            source,
            row_weight,
            columns,
            CHANNELS_LAST,
            WITH_SUM=True,
            WITH_LABEL=WITH_LABELS,
            WITH_MEAN=LABEL_SMOOTHING > 0,
            WEIGHTED=WEIGHTED,
            BLOCK_K=BLOCK_K,
        )
        b_lse = b_largest + tl.log(b_sum)
        o_pixel = (i_n * height + o_r)[:, None] * width + o_w[None, :]
        m_pixel = (o_r < end)[:, None] & (o_w < width)[None, :]
        tl.store(p_lse + o_pixel, b_lse, mask=m_pixel)
        if WITH_LABELS:
            tl.store(p_labels + o_pixel, b_label.to(p_labels.dtype.element_ty), mask=m_pixel)

        b_target, m_wrong, b_weight = _load_targets(
            p_target, p_weight, o_pixel, m_pixel, classes, ignore_index, WEIGHTED
        )
        # The target's logit is interpolated once more: cheaper than a look at every class.
        o_class = tl.maximum(b_target, 0).to(tl.int64)
        b_value = _target_logits(
            p_logits, shape, i_n, o_class, source, row_weight, columns, CHANNELS_LAST
        )
        b_loss = (1.0 - LABEL_SMOOTHING) * b_weight * (b_lse - b_value)
        if LABEL_SMOOTHING > 0:
            b_loss += LABEL_SMOOTHING / classes * (b_lse * weight_sum - b_mean)
        sum_of_losses += tl.sum(tl.where(b_target >= 0, b_loss, 0.0)).to(tl.float64)
        sum_of_weights += tl.sum(b_weight).to(tl.float64)
        wrong_labels += tl.sum(m_wrong.to(tl.int32)).to(tl.float64)

    p_sums += tl.program_id(0).to(tl.int64) * 3
    tl.store(p_sums, sum_of_losses)
    tl.store(p_sums + 1, sum_of_weights)
    tl.store(p_sums + 2, wrong_labels)


@triton.jit
def loss_bwd_kernel(
    p_scale,
    p_logits,
    p_target,
    p_weight,
    p_lse,
    p_grad_logits,
    classes_quotient,
    rows,
    cols,
    height,
    width,
    ignore_index,
    LABEL_SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG_AXES: tl.constexpr,
    CLASS_DIVISOR: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_logits [N, K, rows, cols]: scale [] times the gradient of the sum of losses with respect
    to logits, in memory as these are. lse [N, H, W] is what loss_fwd_kernel writes; target, weight
    and logits are what it takes."""
    # The product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    shape = (classes, rows, cols)
    # Classes innermost: programs that run together read the same targets and lse.
    i_program = tl.program_id(0)
    class_blocks = tl.cdiv(classes, BLOCK_K)
    o_k = (i_program % class_blocks).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    i_program //= class_blocks
    col_tiles = tl.cdiv(cols, TILE_COLS)
    first_col = position_of(i_program % col_tiles * TILE_COLS, LONG_AXES)
    i_program //= col_tiles
    row_tiles = tl.cdiv(rows, TILE_ROWS)
    first_source = position_of(i_program % row_tiles * TILE_ROWS, LONG_AXES)
    i_n = (i_program // row_tiles).to(tl.int64)

    o_col = first_col + tl.arange(0, BLOCK_COLS)
    end_col = tl.minimum(first_col + TILE_COLS, cols)
    end_source = tl.minimum(first_source + TILE_ROWS, rows)
    begin_w, _ = weighted_positions(first_col, width, cols, ALIGN_CORNERS)
    _, end_w = weighted_positions(end_col - 1, width, cols, ALIGN_CORNERS)

    scale = tl.load(p_scale)
    if LABEL_SMOOTHING > 0:
        smooth_sum = LABEL_SMOOTHING / classes * _sum_of_weights(p_weight, classes, WEIGHTED)
        b_smooth = tl.full([BLOCK_K], LABEL_SMOOTHING, tl.float32) / classes
        if WEIGHTED:
            b_smooth *= tl.load(p_weight + o_k, mask=o_k < classes, other=0.0)
    b_carry = tl.zeros([BLOCK_K, BLOCK_COLS], tl.float32)
    for source in tl.range(tl.maximum(first_source - 1, 0), end_source, num_stages=1):
        begin, end = positions_between(source, height, rows, ALIGN_CORNERS)
        b_here = b_carry
        b_carry = tl.zeros([BLOCK_K, BLOCK_COLS], tl.float32)
        # Where logits have more rows than the image, no row of it lies behind many of theirs.
        end_round = tl.where(begin < end, end_w, begin_w)
        for first_w in tl.range(begin_w, end_round, BLOCK_W, num_stages=1):
            o_w = first_w + tl.arange(0, BLOCK_W)
            m_w = o_w < end_w
            columns = interpolation_tap(tl.minimum(o_w, width - 1), width, cols, ALIGN_CORNERS)
            low, high, weight = columns
            # Threads must not lie along classes, not even where these are innermost in memory: a
            # thread has one column, whose targets and lse serve all of its classes.
            b_first, b_step = load_between(
                p_logits, shape, i_n, o_k, source, columns, CHANNELS_LAST, ALONG_COLUMNS=True
            )
            b_upper = tl.zeros([BLOCK_K, BLOCK_W], tl.float32)
            b_lower = tl.zeros([BLOCK_K, BLOCK_W], tl.float32)
            if LABEL_SMOOTHING > 0:
                # Weights of the rows of pixels that count: the same for all classes.
                b_upper_count = tl.zeros([BLOCK_W], tl.float32)
                b_lower_count = tl.zeros([BLOCK_W], tl.float32)
            for row in tl.range(begin, end, num_stages=1):
                # At the last row of logits this is 1: there is no row behind it to get the rest.
                upper_weight = interpolation_weight(
                    row, height, source, position_of(rows, LONG_AXES), ALIGN_CORNERS
                )
                row_weight = 1.0 - upper_weight
                o_pixel = (i_n * height + row) * width + o_w
                b_target, _m_wrong, b_weight = _load_targets(
                    p_target, p_weight, o_pixel, m_w, classes, ignore_index, WEIGHTED
                )
                m_class = b_target >= 0
                # Without a class, lse is infinite: the exponential is then 0, whatever the logit.
                b_lse = tl.load(p_lse + o_pixel, mask=m_w, other=0.0)
                b_lse = tl.where(m_class, b_lse, float("inf"))
                b_target_weight = (1.0 - LABEL_SMOOTHING) * b_weight
                b_sum_weight = b_target_weight
                if LABEL_SMOOTHING > 0:
                    b_sum_weight += tl.where(m_class, smooth_sum, 0.0)
                b_grad = tl.exp(b_first + row_weight * b_step - b_lse[None, :])
                b_grad *= b_sum_weight[None, :]
                m_target = o_k.to(tl.int32)[:, None] == b_target[None, :]
                b_grad -= tl.where(m_target, b_target_weight[None, :], 0.0)
                b_upper += upper_weight * b_grad
                b_lower += row_weight * b_grad
                if LABEL_SMOOTHING > 0:
                    b_upper_count += tl.where(m_class, upper_weight, 0.0)
                    b_lower_count += tl.where(m_class, row_weight, 0.0)

            if LABEL_SMOOTHING > 0:
                b_upper -= b_smooth[:, None] * b_upper_count[None, :]
                b_lower -= b_smooth[:, None] * b_lower_count[None, :]
            m_low = m_w[:, None] & (low[:, None] == o_col[None, :])
            m_high = m_w[:, None] & (high[:, None] == o_col[None, :])
            b_spread = tl.where(m_low, 1.0 - weight[:, None], 0.0)
            b_spread += tl.where(m_high, weight[:, None], 0.0)
            b_here = tl.dot(b_upper, b_spread, b_here, input_precision="ieee")
            b_carry = tl.dot(b_lower, b_spread, b_carry, input_precision="ieee")

        # The first round of most programs only gathers what it carries to the next.
        if source >= first_source:
            o_grad = logit_offsets(shape, i_n, o_k, source, o_col, CHANNELS_LAST)
            m_grad = (o_k < classes)[:, None] & (o_col < end_col)[None, :]
            b_grad_logits = (scale * b_here).to(p_grad_logits.dtype.element_ty)
            tl.store(p_grad_logits + o_grad, b_grad_logits, mask=m_grad)
