"""Convolutions of oneDNN with what follows them, for channels_last maps: operators of torch's, of
which it has no fakes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

_LAST = torch.channels_last


@torch.library.custom_op("pspfast::onednn_conv2d", mutates_args=())
def onednn_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """``relu(conv2d(x, …) + residual)``, channels_last."""
    sizes = _sizes(padding, stride, dilation)
    x, op = x.contiguous(memory_format=_LAST), torch.ops.mkldnn._convolution_pointwise
    if residual is None:
        return op.default(x, weight, bias, *sizes, groups, "relu" if relu else "none", [], "")
    residual = residual.contiguous(memory_format=_LAST)
    return op.binary(x, residual, weight, bias, *sizes, *_added(groups, relu))


@onednn_conv2d.register_fake
def _(*arguments: Any) -> Tensor:
    *of_conv2d, _, _ = arguments
    return F.conv2d(*of_conv2d).contiguous(memory_format=_LAST)


@torch.library.custom_op("pspfast::onednn_conv2d_", mutates_args=("residual",))
def onednn_conv2d_(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
) -> None:
    """The same, written into ``residual``, which is channels_last."""
    op = torch.ops.mkldnn._convolution_pointwise_.binary
    x, sizes = x.contiguous(memory_format=_LAST), _sizes(padding, stride, dilation)
    op(residual, x, weight, bias, *sizes, *_added(groups, relu))


CONV2D = torch.ops.pspfast.onednn_conv2d.default
CONV2D_ = torch.ops.pspfast.onednn_conv2d_.default


def _sizes(*sizes: list[int]) -> list[list[int]]:
    """A size for each axis."""
    return [list(s) * (2 // len(s)) for s in sizes]


def _added(groups: int, relu: bool) -> tuple[Any, ...]:
    return groups, "add", 1.0, "relu" if relu else None, [], None


@register_flop_formula(torch.ops.pspfast.onednn_conv2d)
def _flops(x: list[int], weight: list[int], *args: Any, out_shape: list[int], **kwargs: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


@register_flop_formula(torch.ops.pspfast.onednn_conv2d_)
def _flops_(residual: list[int], x: list[int], weight: list[int], *args: Any, **kwargs: Any) -> int:
    return conv_flop_count(x, weight, residual)
