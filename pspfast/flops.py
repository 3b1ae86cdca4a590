"""FLOPs of this project's operators for ``torch.utils.flop_counter.FlopCounterMode``.

As that counts torch's operators: twice the multiplications of a direct convolution, whatever
algorithm computes it. Importing this module registers the formulas, and ``import pspfast`` does.

Examples:
    >>> import pspfast
    >>> from torch.utils.flop_counter import FlopCounterMode
    >>> x, weight = torch.randn(1, 8, 16, 16), torch.randn(4, 8, 3, 3)
    >>> with FlopCounterMode(display=False) as counter:
    ...     _ = pspfast.ops.dilated_conv2d(x, weight)
    >>> counter.get_total_flops() == 2 * 8 * 9 * 4 * 16 * 16
    True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from pspfast import backends


def _convolution(x: Tensor, weight: Tensor, *args: Any, out_val: Tensor, **kwargs: Any) -> int:
    return conv_flop_count([*x.shape], [*weight.shape], [*out_val.shape])


def _convolution_into(
    residual: Tensor, x: Tensor, weight: Tensor, *args: Any, out_val: Tensor, **kwargs: Any
) -> int:
    return conv_flop_count([*x.shape], [*weight.shape], [*residual.shape])


def _winograd(
    x: Tensor, transformed: Tensor, out_channels: int, *args: Any, out_val: Tensor
) -> int:
    return conv_flop_count([*x.shape], [out_channels, x.shape[1], 3, 3], [*out_val.shape])


def _grad_input(grad: Tensor, weight: Tensor, dilation: int, out_val: Tensor) -> int:
    return conv_flop_count([*out_val.shape], [*weight.shape], [*grad.shape])


def _grad_weight(
    grad: Tensor, x: Tensor, dilation: int, channels_last: bool, out_val: Tensor
) -> int:
    return conv_flop_count([*x.shape], [*out_val.shape], [*grad.shape])


def _mix(
    priors: Tensor,
    weight: Tensor,
    bins: Sequence[int],
    levels_first: bool,
    out_val: tuple[Tensor, Tensor],
) -> int:
    """A product of R numbers for each result."""
    return 2 * priors.shape[1] * prod(out_val[0].shape)


def _mix_backward(
    grad_mixed: Tensor, grad_weight_x: Tensor, priors: Tensor, *args: Any, out_val: Any
) -> int:
    """The gradients of priors and of the weight."""
    return 2 * 2 * priors.shape[1] * prod(grad_mixed.shape)


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


def _mixed(source: Sequence[int], result: Sequence[int], kernel_size: int, nearest: bool) -> int:
    """A map ``[N, C, h, w]``'s share of a result ``[N, O, H, W]``: products at its own size, then
    interpolation from them, rows first, for every column of the map and tap of a column."""
    batch, out_channels, height, width = result
    channels, rows, cols = source[1:]
    products = 2 * batch * rows * cols * kernel_size**2 * channels * out_channels
    if (rows, cols) == (height, width):
        return products
    taps = kernel_size * (1 if nearest else 2)
    return products + 2 * batch * out_channels * height * taps * (kernel_size * cols + width)


def _upsample_concat(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Any,
    size: Any,
    align_corners: bool,
    nearest: bool,
    relu: bool,
    out_val: Tensor,
) -> int:
    return sum(_mixed(m.shape, out_val.shape, weight.shape[2], nearest) for m in maps)


def _upsample_concat_grad_map(
    grad: Tensor,
    weight: Tensor,
    first_channel: int,
    channels: int,
    size: Any,
    align_corners: bool,
    nearest: bool,
    channels_last: bool,
    out_val: Tensor,
) -> int:
    return _mixed(out_val.shape, grad.shape, weight.shape[2], nearest)


def _upsample_concat_grad_weight(
    grad: Tensor,
    maps: Sequence[Tensor],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
    channels_last: bool,
    out_val: Tensor,
) -> int:
    return sum(_mixed(m.shape, grad.shape, kernel_size, nearest) for m in maps)


_FORMULAS: dict[str, Callable[..., int]] = {
    "dilated_conv2d": _convolution,
    "dilated_conv2d_grad_input": _grad_input,
    "dilated_conv2d_grad_weight": _grad_weight,
    "pyramid_upsample_add": _upsample_add,
    "pyramid_upsample_add_backward": _upsample_add_backward,
}
# Of the CPU alone.
_CPU_FORMULAS: dict[str, Callable[..., int]] = {
    "winograd_conv2d": _winograd,
    "depthwise_conv2d": _convolution,
    "upsample_concat_conv2d": _upsample_concat,
    "upsample_concat_conv2d_grad_map": _upsample_concat_grad_map,
    "upsample_concat_conv2d_grad_weight": _upsample_concat_grad_weight,
    "pyramid_mix": _mix,
    "pyramid_mix_backward": _mix_backward,
}
# torch's own, which the network for inference calls, and torch has no formula for.
_MKLDNN_FORMULAS: dict[str, Callable[..., int]] = {
    "_convolution_pointwise": _convolution,
    "_convolution_pointwise_": _convolution_into,
}


def _register(namespace: Any, formulas: dict[str, Callable[..., int]], suffix: str = "") -> None:
    for name, formula in formulas.items():
        op = getattr(namespace, name + suffix)
        if op not in flop_registry:
            register_flop_formula(op, get_raw=True)(formula)


@backends.registers_triton_ops
def _register_triton_formulas() -> None:
    _register(torch.ops.pspfast, _FORMULAS, "_triton")
    convolution = {name: f for name, f in _FORMULAS.items() if name.startswith("dilated_conv2d")}
    _register(torch.ops.pspfast, convolution, "_fastest")


if "cpu" not in backends.MISSING:
    _register(torch.ops.pspfast, _FORMULAS | _CPU_FORMULAS)
if torch.backends.mkldnn.is_available():
    _register(torch.ops.mkldnn, _MKLDNN_FORMULAS)
