"""upsample_argmax and upsample_softmax in Triton; upsample_tiles.py says how programs work."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from .jit.upsample_tiles import load_tile, locate_tile, plan, reduce_classes, rows_of_tile
from .launch import on_the_device_of_the_first


@triton.jit
def argmax_kernel(
    p_logits,
    p_labels,
    classes_quotient,
    rows,
    cols,
    height,
    width,
    ALIGN_CORNERS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LONG_AXES: tl.constexpr,
    CLASS_DIVISOR: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    # A product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    i_n, source, begin, end, o_w, low, high, weight = locate_tile(
        rows, cols, height, width, ALIGN_CORNERS, LONG_AXES, BLOCK_W
    )
    for first_row in tl.range(begin, end, BLOCK_R, num_stages=1):
        o_r, row_weight = rows_of_tile(first_row, height, rows, ALIGN_CORNERS, BLOCK_R)
        _, _, b_label, _ = reduce_classes(
            p_logits,
            p_logits,
            i_n,
            source,
            row_weight,
            low,
            high,
            weight,
            classes,
            rows,
            cols,
            CHANNELS_LAST,
            False,
            True,
            False,
            False,
            BLOCK_K,
        )
        o_labels = (i_n * height + o_r)[:, None] * width + o_w[None, :]
        m_labels = (o_r < end)[:, None] & (o_w < width)[None, :]
        tl.store(p_labels + o_labels, b_label.to(p_labels.dtype.element_ty), mask=m_labels)


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
    # A product shows the compiler what divides the offset of every pixel's classes.
    classes = classes_quotient * CLASS_DIVISOR
    i_n, source, begin, end, o_w, low, high, weight = locate_tile(
        rows, cols, height, width, ALIGN_CORNERS, LONG_AXES, BLOCK_W
    )
    o_col = (width - 1 - o_w if FLIP else o_w).to(tl.int64) * col_stride
    for first_row in tl.range(begin, end, BLOCK_R, num_stages=1):
        o_r, row_weight = rows_of_tile(first_row, height, rows, ALIGN_CORNERS, BLOCK_R)
        b_largest, b_sum, _, _ = reduce_classes(
            p_logits,
            p_logits,
            i_n,
            source,
            row_weight,
            low,
            high,
            weight,
            classes,
            rows,
            cols,
            CHANNELS_LAST,
            True,
            False,
            False,
            False,
            BLOCK_K,
        )
        b_scale = factor / b_sum
        m_pixel = (o_r < end)[:, None] & (o_w < width)[None, :]
        o_pixel = i_n * image_stride + (o_r.to(tl.int64) * row_stride)[:, None] + o_col[None, :]
        for first_k in tl.range(0, classes, BLOCK_K, num_stages=1):
            o_k = (first_k + tl.arange(0, BLOCK_K)).to(tl.int64)
            b_value = load_tile(
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
                CHANNELS_LAST,
            )
            b_out = tl.exp(b_value - b_largest[None, :, :]) * b_scale[None, :, :]
            p_tile = p_out + (o_k * class_stride)[:, None, None] + o_pixel[None, :, :]
            m_tile = (o_k < classes)[:, None, None] & m_pixel[None, :, :]
            if ADD:
                b_out += tl.load(p_tile, mask=m_tile, other=0.0)
            tl.store(p_tile, b_out, mask=m_tile)


@on_the_device_of_the_first
def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """The class of the largest logit of every pixel, the first of equal ones: ``[N, H, W]``."""
    labels = logits.new_empty((logits.shape[0], height, width), dtype=dtype)
    if labels.numel() > 0:
        p = plan(logits, height, width, align_corners)
        wrap_triton(argmax_kernel)[p.grid()](p.logits, labels, *p.sizes, **p.constants)
    return labels


@on_the_device_of_the_first
def upsample_softmax(
    logits: Tensor, height: int, width: int, align_corners: bool, flip: bool, factor: float
) -> Tensor:
    """Probabilities ``[N, K, H, W]`` times a factor, in float32 and contiguous; with ``flip``,
    columns are in reverse."""
    out = logits.new_empty((*logits.shape[:2], height, width), dtype=torch.float32)
    _softmax(out, logits, align_corners, flip, factor, False)
    return out


@on_the_device_of_the_first
def upsample_softmax_add(
    out: Tensor, logits: Tensor, align_corners: bool, flip: bool, factor: float
) -> None:
    """Adds them to ``out``, of any strides."""
    _softmax(out, logits, align_corners, flip, factor, True)


def _softmax(
    out: Tensor, logits: Tensor, align_corners: bool, flip: bool, factor: float, add: bool
) -> None:
    if out.numel() == 0:
        return
    p = plan(logits, *out.shape[2:], align_corners)
    wrap_triton(softmax_kernel)[p.grid()](
        p.logits, out, *p.sizes, *out.stride(), factor, FLIP=flip, ADD=add, **p.constants
    )
