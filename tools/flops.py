"""FLOPs of this project's operators, as ``torch.utils.flop_counter`` counts those of torch's: twice
the multiplications of a direct convolution, whatever algorithm computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count

from pspfast import backends

backends.load_triton_ops()
_ops = torch.ops.pspfast


@torch.library.register_fake("mkldnn::_convolution_pointwise_.binary")
def _convolution_into_fake(residual: Tensor, *args: Any) -> Tensor:
    """torch has none."""
    return residual


def _convolution(x: Tensor, weight: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return conv_flop_count(x.shape, weight.shape, out_val.shape)


def _convolution_into(
    residual: Tensor, x: Tensor, weight: Tensor, *args: Any, out_val: Tensor
) -> int:
    return conv_flop_count(x.shape, weight.shape, residual.shape)


def _grad_input(grad: Tensor, weight: Tensor, dilation: int, out_val: Tensor) -> int:
    return conv_flop_count(out_val.shape, weight.shape, grad.shape)


def _grad_weight(
    grad: Tensor, x: Tensor, dilation: int, channels_last: bool, out_val: Tensor
) -> int:
    return conv_flop_count(x.shape, out_val.shape, grad.shape)


def _upsampling(shape: Sequence[int], bins: Sequence[int], kernel_size: int) -> int:
    """Two rows and two columns of bins reach a pixel at each tap and level: rows first, for every
    bin of a row and tap of a column, then columns."""
    batch, channels, height, width = shape
    taps = 2 * kernel_size
    a_row = kernel_size * sum(bins) * taps + width * len(bins) * taps
    return 2 * batch * channels * height * a_row


def _upsample_add(
    base: Tensor, mixed: Tensor, bias: Any, bins: Sequence[int], *args: Any, out_val: Tensor
) -> int:
    return _upsampling(base.shape, bins, mixed.shape[2])


def _upsample_add_backward(
    grad: Tensor, bins: Sequence[int], align_corners: bool, kernel_size: int, out_val: Tensor
) -> int:
    return _upsampling(grad.shape, bins, kernel_size)


FORMULAS: dict[Any, Callable[..., int]] = {
    _ops.dilated_conv2d_triton: _convolution,
    _ops.dilated_conv2d_grad_input_triton: _grad_input,
    _ops.dilated_conv2d_grad_weight_triton: _grad_weight,
    _ops.pyramid_upsample_add_triton: _upsample_add,
    _ops.pyramid_upsample_add_backward_triton: _upsample_add_backward,
    # With bias, ReLU and residual, as cudnn_convolution_relu and cudnn_convolution_add_relu.
    torch.ops.mkldnn._convolution_pointwise: _convolution,
    torch.ops.mkldnn._convolution_pointwise_: _convolution_into,
}
