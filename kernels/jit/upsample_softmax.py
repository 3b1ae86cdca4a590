"""The kernel of upsample_softmax; common/upsample_tiles.py says how programs work."""

import triton
import triton.language as tl

from .common.upsample_tiles import load_tile, locate_tile, reduce_classes, rows_of_tile


@triton.jit
def softmax_kernel(
    p_logits,
    p_out,
    classes_quotient,
    rows,
    cols,
    height,
    width,
    image_stride,
    class_stride,
    row_stride,
    col_stride,
    factor,
    FLIP: tl.constexpr,
    ADD: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG_AXES: tl.constexpr,
    CLASS_DIVISOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """out [N, K, H, W], float32, of these strides: factor times the softmax over classes of logits
    [N, K, rows, cols] upsampled to H by W, or, if ADD, that much more than before. With FLIP,
    columns are in reverse."""
    # The product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    shape = (classes, rows, cols)
    i_n, source, begin, end, o_w, columns = locate_tile(
        rows, cols, height, width, ALIGN_CORNERS, LONG_AXES, BLOCK_W
    )
    o_col = (width - 1 - o_w if FLIP else o_w).to(tl.int64) * col_stride
    for first_row in tl.range(begin, end, BLOCK_R, num_stages=1):
        o_r, row_weight = rows_of_tile(first_row, height, rows, ALIGN_CORNERS, BLOCK_R)
        b_largest, b_sum, _, _ = reduce_classes(
            p_logits,
            shape,
            p_logits,
            i_n,
            source,
            row_weight,
            columns,
            CHANNELS_LAST,
            WITH_SUM=True,
            WITH_LABEL=False,
            WITH_MEAN=False,
            WEIGHTED=False,
            BLOCK_K=BLOCK_K,
        )
        b_scale = factor / b_sum
        m_pixel = (o_r < end)[:, None] & (o_w < width)[None, :]
        o_pixel = i_n * image_stride + (o_r.to(tl.int64) * row_stride)[:, None] + o_col[None, :]
        for first_k in tl.range(0, classes, BLOCK_K, num_stages=1):
            o_k = (first_k + tl.arange(0, BLOCK_K)).to(tl.int64)
            b_value = load_tile(
                p_logits, shape, i_n, o_k, source, row_weight, columns, CHANNELS_LAST
            )
            b_out = tl.exp(b_value - b_largest[None, :, :]) * b_scale[None, :, :]
            p_tile = p_out + (o_k * class_stride)[:, None, None] + o_pixel[None, :, :]
            m_tile = (o_k < classes)[:, None, None] & m_pixel[None, :, :]
            if ADD:
                b_out += tl.load(p_tile, mask=m_tile, other=0.0)
            tl.store(p_tile, b_out, mask=m_tile)
