"""The kernel of upsample_argmax; common/upsample_tiles.py says how programs work."""

import triton
import triton.language as tl

from .common.upsample_tiles import locate_tile, reduce_classes, rows_of_tile


@triton.jit
def argmax_kernel(
    p_logits,
    p_labels,
    classes_quotient,
    rows,
    cols,
    height,
    width,
    tile_width,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG_AXES: tl.constexpr,
    CLASS_DIVISOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """labels [N, H, W], integers: the class of every pixel's largest logit, of logits
    [N, K, rows, cols] upsampled to H by W."""
    # The product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    shape = (classes, rows, cols)
    i_n, source, begin, end, o_w, columns = locate_tile(
        rows, cols, height, width, ALIGN_CORNERS, LONG_AXES, BLOCK_W, tile_width
    )
    for first_row in tl.range(begin, end, BLOCK_R, num_stages=1):
        o_r, row_weight = rows_of_tile(first_row, height, rows, ALIGN_CORNERS, BLOCK_R)
        _, _, b_label, _ = reduce_classes(
            p_logits,
            shape,
            p_logits,
            i_n,
            source,
            row_weight,
            columns,
            CHANNELS_LAST,
            WITH_SUM=False,
            WITH_LABEL=True,
            WITH_MEAN=False,
            WEIGHTED=False,
            BLOCK_K=BLOCK_K,
        )
        o_labels = (i_n * height + o_r)[:, None] * width + o_w[None, :]
        m_w = (o_w < width) & (tl.arange(0, BLOCK_W) < tile_width)
        m_labels = (o_r < end)[:, None] & m_w[None, :]
        tl.store(p_labels + o_labels, b_label.to(p_labels.dtype.element_ty), mask=m_labels)
