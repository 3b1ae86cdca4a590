"""dilated_conv2d in Triton: what the op calls; the kernels are in jit/dilated_conv2d.py."""

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .jit.dilated_conv2d import (
    conv_ieee_kernel,
    conv_kernel,
    grad_weight_ieee_kernel,
    grad_weight_kernel,
    grad_weight_tf32_kernel,
)
from .jit.dilated_conv2d_boxes import conv_box_kernel
from .launch import (
    empty_map,
    has_tensor_descriptors,
    launches_on_tensor_device,
    next_power_of_2,
    width_divisor,
    wrap_triton,
)

# The weight gradient splits pixels until it has this many programs of 128 by 128, four on each of
# 132 multiprocessors. With fewer pixels than the least, a program's start and sum cost too much.
_ENOUGH_PROGRAMS = 132 * 4
_LEAST_PIXELS = 1024
# From so many channels on, offsets in a block of 256 filters of 9 taps leave int32.
_LONG_CHANNELS = 2**31 // (256 * 9)
# Columns of a tile of pixels, of which the largest tiles have 128: first those that need least
# around them for the taps.
_TILE_COLUMNS = (16, 8, 32, 64)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _ieee(x: Tensor) -> bool:
    """Whether products are exact: of float32, unless torch's own convolutions may round them, as
    AMD's GPUs hardly can."""
    rounds = torch.version.hip is None and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return x.dtype == torch.float32 and not rounds


def _precision(ieee: bool) -> str:
    """Of products, as Triton has it: for AMD's GPUs it refuses the other, for 16 bits too."""
    return "ieee" if ieee or torch.version.hip is not None else "tf32"


def _channel_block(channels: int, x: Tensor, ieee: bool) -> int:
    """Channels that a program adds at a time: at most 128 bytes, the swizzle of tensor cores."""
    most = 16 if ieee else 128 // x.element_size()
    return min(16 if channels <= 16 else 32 if channels <= 32 else 64, most)


def _sizes(
    x: Tensor, channels: int, out_channels: int, dilation: int
) -> tuple[tuple[int, ...], dict[str, object]]:
    """Sizes that both kernels take behind the number of pixels, and their constants that depend on
    the numbers of channels."""
    height, width = x.shape[2:]
    divisor, out_divisor = width_divisor(channels), width_divisor(out_channels)
    sizes = (
        channels // divisor,
        out_channels // out_divisor,
        height,
        width,
        dilation,
        # Numbers of pixels up to the same power of two are tuned at once.
        next_power_of_2(x.shape[0] * height * width),
    )
    constants = {
        "CHANNEL_DIVISOR": divisor,
        "OUT_CHANNEL_DIVISOR": out_divisor,
        "LONG_CHANNELS": bool(max(channels, out_channels) >= _LONG_CHANNELS),
    }
    return sizes, constants


def _grid(rows: int, cols: int, results: int = 1) -> Callable[[dict[str, Any]], tuple[int]]:
    """A program for every block of ``results`` matrices [rows, cols]; tuning chooses the blocks."""

    def grid(meta: dict[str, Any]) -> tuple[int]:
        blocks = triton.cdiv(rows, meta["BLOCK_M"]) * triton.cdiv(cols, meta["BLOCK_N"])
        return (results * blocks,)

    return grid


def _pixels_of_tiles(height: int, width: int, columns: int) -> int:
    """Of those that cover a map."""
    rows = 128 // columns
    return triton.cdiv(height, rows) * rows * triton.cdiv(width, columns) * columns


def _tile_columns(height: int, width: int) -> int:
    return min(_TILE_COLUMNS, key=lambda columns: _pixels_of_tiles(height, width, columns))


def takes_boxes(x: Tensor, out_channels: int) -> bool:
    """Whether a convolution of x ``[N, C, H, W]``, or the gradient of one, can have its kernel of
    tensor descriptors: their rows are multiples of 16 bytes."""
    rows = (x.shape[1] * x.element_size(), out_channels * x.element_size())
    return has_tensor_descriptors(x) and not _ieee(x) and all(row % 16 == 0 for row in rows)


def boxes_by_rule(x: Tensor, out_channels: int) -> bool:
    """Whether a convolution has it where nothing is timed.

    A round of 128 by 256 results keeps the tensor cores of sm_90 busy for 1024 cycles. With
    pointers 8 warps issue 161 instructions each on 4 schedulers, and copy 48 KB by load/store
    units, 128 bytes a cycle; with boxes 130, and nothing. That is 62 + 384 cycles less, of which
    tensor cores hide some: tiles may have an eighth, 128 cycles, more pixels than the map.
    """
    height, width = x.shape[2:]
    of_tiles = _pixels_of_tiles(height, width, _tile_columns(height, width))
    return takes_boxes(x, out_channels) and 8 * of_tiles <= 9 * height * width


def _descriptor(base: Tensor, *sizes: int) -> TensorDescriptor:
    """Of a tensor that has these sizes in the order of its memory. Tuning chooses the boxes."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return TensorDescriptor(base, list(sizes), strides, [1] * (len(sizes) - 1) + [16])


def _convolve_boxes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    dilation: int,
    relu: bool,
    transposed: bool,
) -> None:
    batch, channels, height, width = x.shape
    out_channels = out.shape[1]
    columns = _tile_columns(height, width)

    def grid(meta: dict[str, Any]) -> tuple[int]:
        rows = meta["BLOCK_M"] // columns
        tiles = batch * triton.cdiv(height, rows) * triton.cdiv(width, columns)
        return (tiles * triton.cdiv(out_channels, meta["BLOCK_N"]),)

    filters = (channels, 9, out_channels) if transposed else (out_channels, 9, channels)
    of_out = (batch, height, width, out_channels)
    wrap_triton(conv_box_kernel)[grid](
        _descriptor(x, batch, height, width, channels),
        _descriptor(weight, *filters),
        x if bias is None else bias.contiguous(),
        _descriptor(out if residual is None else residual, *of_out),
        _descriptor(out, *of_out),
        channels,
        out_channels,
        height,
        width,
        dilation,
        next_power_of_2(batch * height * width),
        TRANSPOSED=transposed,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        RELU=relu,
        PRECISION=_precision(ieee=False),
        BLOCK_K=_channel_block(channels, x, ieee=False),
        TILE_W=columns,
    )


def _convolve(
    x: Tensor,
    weight: Tensor,
    out_channels: int,
    dilation: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    transposed: bool = False,
    boxes: bool | None = None,
) -> Tensor:
    x, weight = _channels_last(x), _channels_last(weight)
    residual = None if residual is None else _channels_last(residual)
    batch, channels, height, width = x.shape
    out = empty_map(x, (batch, out_channels, height, width), channels_last=True)
    if out.numel() == 0:
        return out
    boxes = boxes_by_rule(x, out_channels) if boxes is None else boxes
    # A view can begin anywhere, which is for pointers alone.
    if boxes and all(t is None or t.data_ptr() % 16 == 0 for t in (x, weight, residual)):
        _convolve_boxes(x, weight, bias, residual, out, dilation, relu, transposed)
        return out
    pixels = batch * height * width
    ieee = _ieee(x)
    sizes, constants = _sizes(x, channels, out_channels, dilation)
    kernel = conv_ieee_kernel if ieee else conv_kernel
    wrap_triton(kernel)[_grid(pixels, out_channels)](
        x,
        weight,
        x if bias is None else bias.contiguous(),
        x if residual is None else residual,
        out,
        pixels,
        *sizes,
        TRANSPOSED=transposed,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        RELU=relu,
        PRECISION=_precision(ieee),
        BLOCK_K=_channel_block(channels, x, ieee),
        **constants,
    )
    return out


@launches_on_tensor_device
def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    residual: Tensor | None,
    relu: bool,
    boxes: bool | None = None,
) -> Tensor:
    """``[N, O, H, W]`` of x ``[N, C, H, W]`` and weight ``[O, C, 3, 3]``, plus bias ``[O]`` and
    residual ``[N, O, H, W]`` where given; channels_last. ``boxes`` chooses the kernel, where
    :func:`takes_boxes`."""
    return _convolve(x, weight, weight.shape[0], dilation, bias, residual, relu, boxes=boxes)


@launches_on_tensor_device
def dilated_conv2d_grad_input(
    grad: Tensor, weight: Tensor, dilation: int, boxes: bool | None = None
) -> Tensor:
    """Gradient ``[N, C, H, W]`` of x for that of the result; channels_last. ``boxes`` as of
    :func:`dilated_conv2d`."""
    # Tensor cores of sm_90 and later do not transpose 32-bit operands.
    transposed = weight.element_size() < 4
    filters = weight if transposed else weight.transpose(0, 1)
    # The output pixels that read a pixel lie at opposite taps.
    channels = weight.shape[1]
    return _convolve(grad, filters, channels, -dilation, transposed=transposed, boxes=boxes)


@launches_on_tensor_device
def dilated_conv2d_grad_weight(grad: Tensor, x: Tensor, dilation: int) -> Tensor:
    """Gradient ``[O, C, 3, 3]`` of the weight, channels_last, for that of the result."""
    grad, x = _channels_last(grad), _channels_last(x)
    batch, channels, height, width = x.shape
    out_channels = grad.shape[1]
    pixels = batch * height * width
    shape = (out_channels, 3, 3, channels)
    if pixels * out_channels * channels == 0:
        return x.new_zeros(shape).permute(0, 3, 1, 2)

    tiles = 9 * triton.cdiv(out_channels, 128) * triton.cdiv(channels, 128)
    splits = max(min(triton.cdiv(_ENOUGH_PROGRAMS, tiles), pixels // _LEAST_PIXELS), 1)
    ieee = _ieee(x)
    # Pixels at a time. Two warps would spill with 32 of them.
    block_k = 16 if x.element_size() == 4 else 64
    split_pixels = triton.cdiv(triton.cdiv(pixels, splits), block_k) * block_k
    splits = triton.cdiv(pixels, split_pixels)
    # Splits write sums of their own, which are added here.
    grad_weight = x.new_empty((splits, *shape), dtype=x.dtype if splits == 1 else torch.float32)
    sizes, constants = _sizes(x, channels, out_channels, dilation)
    tuned = grad_weight_tf32_kernel if x.element_size() == 4 else grad_weight_kernel
    kernel = grad_weight_ieee_kernel if ieee else tuned
    wrap_triton(kernel)[_grid(out_channels, channels, 9 * splits)](
        grad,
        x,
        grad_weight,
        pixels,
        split_pixels,
        *sizes,
        PRECISION=_precision(ieee),
        BLOCK_K=block_k,
        **constants,
    )
    grad_weight = grad_weight[0] if splits == 1 else grad_weight.sum(0).to(x.dtype)
    return grad_weight.permute(0, 3, 1, 2)
