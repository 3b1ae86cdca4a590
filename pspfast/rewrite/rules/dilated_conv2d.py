"""The gradients of 3×3 convolutions of stride 1, padded by their dilation, by Winograd's algorithm.

    conv2d(x, w, b, padding=d, dilation=d) → itself, with the gradients of dilated_conv2d

Done where :func:`pspfast.ops.dilated_conv2d` says of the sizes that it is faster: on the CPU. The
result stays torch's, bit by bit: Winograd's rounds otherwise, and a ReLU on the other side of zero
changes gradients by a thousand times that. The gradients themselves have no such steps. In
inference :mod:`~pspfast.rewrite.rules.folded_conv2d` comes before, with weights transformed once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pspfast import backends
from pspfast.ops.common.checks import autocast, is_autocast
from pspfast.ops.dilated_conv2d import gradients
from pspfast.rewrite.facts import arguments, aten, hint, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import same_size_dilation

NAME = "dilated_conv2d"
TARGETS = (aten.conv2d.default,)


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a 3×3 convolution."""
    named = arguments(node)
    dilation = winograd_dilation(node)
    if dilation is None:
        return
    x, weight = named["input"], named["weight"]
    device = value(x).device.type
    if device != "cpu" or backends.default("cpu") != "cpu":
        raise Unfit(f"nothing says that it is faster on {device}")
    batch, channels, height, width = map(hint, value(x).shape)
    # Under autocast the result's dtype is what the convolution computes in.
    dtype = value(node).dtype
    sizes = (batch, channels, value(weight).shape[0], height, width)
    if not torch.ops.pspfast.winograd_is_faster(*sizes, dilation, dtype):
        raise Unfit(f"the library is faster with {channels} channels of {height}×{width}")
    graph.replace(NAME, [node], conv2d, x, weight, named["bias"], dilation=dilation)


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        *needed, _ = ctx.needs_input_grad
        return *gradients(grad, x, weight, ctx.dilation, needed), None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)`` with gradients by
    Winograd's algorithm."""
    if is_autocast(x):
        x, weight, bias, _ = autocast(x, weight, bias, None)
    return _Conv2d.apply(x, weight, bias, dilation)


def winograd_dilation(node: fx.Node) -> int | None:
    """The dilation of a 3×3 convolution of stride 1 whose padding it is, without groups."""
    named = arguments(node)
    is_fit = tuple(value(named["weight"]).shape[2:]) == (3, 3) and named["groups"] == 1
    return same_size_dilation(node) if is_fit else None
