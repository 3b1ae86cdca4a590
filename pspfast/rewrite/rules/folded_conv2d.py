"""In inference BatchNorm is folded into the convolution before it, and bias, residual and ReLU are
added where the convolution writes its result.

    relu(batch_norm(conv(x, W, b)) + residual) = relu(conv(x, s W, s (b - μ) + β) + residual)

with s = γ / sqrt(σ² + ε), computed in float64, and again when a weight changes. A 3×3 convolution
is Winograd's where that is faster, its weight transformed once. For channels_last maps a depthwise
one with taps too far apart for oneDNN's depthwise kernels is depthwise_conv2d, and others are
oneDNN's with an epilogue. Where neither is there, BatchNorm is folded and the rest stays.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from pspfast import backends
from pspfast.ops import upsample_concat_conv2d
from pspfast.ops.common.checks import is_channels_last
from pspfast.rewrite.facts import arguments, aten, hint, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.onednn import CONV2D
from pspfast.rewrite.rules.dilated_conv2d import winograd_dilation
from pspfast.rewrite.rules.matching import epilogue, only_user, same_size_dilation

NAME = "folded_conv2d"
TARGETS = (aten.conv2d.default, upsample_concat_conv2d)

# The widest padding in float32 of the depthwise kernels of oneDNN 3, by what torch calls the
# processor's vectors. Beyond it oneDNN takes each channel for a group of 16, nearly all zeros:
# measured with 2 cores at 16 to 2048 channels, depthwise_conv2d is then 2.5 to 30 times as fast, at
# these paddings 0.8 times. In other dtypes the limits depend on more than the vectors.
_WIDEST_PADDING = {"AVX2": 4, "AVX512": 6}


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a convolution and what follows it."""
    if not graph.is_inference or torch.is_autocast_enabled(value(node).device.type):
        return
    is_fusion = node.target is upsample_concat_conv2d
    if is_fusion:
        weight, bias = cast(fx.Node, node.args[1]), node.kwargs["bias"]
        if node.kwargs.get("relu"):
            return
    else:
        named = arguments(node)
        weight, bias = named["weight"], named["bias"]
    if value(node).dim() != 4 or value(node).device.type != "cpu":
        # BatchNorm writes to its running statistics without a trace in their versions, and they
        # cannot be compared on a GPU without waiting for it. Inductor has epilogues there.
        return
    gone = [node]
    user = only_user(node)
    norm = user if user and user.target is aten.batch_norm.default else None
    if norm is not None and not arguments(norm)["training"]:
        weight, bias = _folded(graph, node, norm, weight, bias)
        gone.append(norm)
    if is_fusion:
        _fusion(graph, gone, weight, bias)
    elif (dilation := _winograd_dilation(node)) is not None:
        rest = epilogue(gone[-1])
        out_channels = value(weight).shape[0]
        transformed = graph.derive(node, winograd_weight, weight)
        arguments_ = (out_channels, bias, dilation, rest.residual, rest.relu)
        op = torch.ops.pspfast.winograd_conv2d.default
        graph.replace(NAME, [*gone, *rest.nodes], op, named["input"], transformed, *arguments_)
    elif (dilation := _depthwise_dilation(node)) is not None:
        relu = _relu_after(gone[-1])
        op = torch.ops.pspfast.depthwise_conv2d.default
        tensors = (named["input"], weight, bias)
        graph.replace(NAME, [*gone, *relu], op, *tensors, dilation, bool(relu))
    else:
        rest = epilogue(gone[-1])
        sizes = [named[name] for name in ("stride", "padding", "dilation", "groups")]
        if rest.nodes and _onednn_takes(node):
            matched = [*gone, *rest.nodes]
            tensors = (named["input"], weight, bias)
            graph.replace(NAME, matched, CONV2D, *tensors, *sizes, rest.residual, rest.relu)
        elif len(gone) > 1:
            graph.replace(NAME, gone, aten.conv2d.default, named["input"], weight, bias, *sizes)


def _folded(
    graph: Graph, node: fx.Node, norm: fx.Node, weight: Any, bias: Any
) -> tuple[fx.Node, fx.Node]:
    named = arguments(norm)
    mean, var, eps = named["running_mean"], named["running_var"], named["eps"]
    if not isinstance(eps, float):
        raise Unfit("the eps of its BatchNorm is no number")
    if value(norm).dtype != value(weight).dtype:
        raise Unfit("its BatchNorm has another dtype")
    return (
        graph.derive(node, folded_weight, weight, var, named["weight"], eps),
        graph.derive(
            node, folded_bias, bias, mean, var, named["weight"], named["bias"], eps, weight
        ),
    )


def _fusion(graph: Graph, gone: list[fx.Node], weight: Any, bias: Any) -> None:
    node = gone[0]
    relu = _relu_after(gone[-1])
    matched = [*gone, *relu]
    if len(matched) == 1:
        return
    options = dict(node.kwargs) | {"bias": bias, "relu": bool(relu)}
    maps, _, size = node.args
    graph.replace(NAME, matched, upsample_concat_conv2d, maps, weight, size, **options)


def _relu_after(node: fx.Node) -> list[fx.Node]:
    """The ReLU that alone reads it, if there is one."""
    user = only_user(node)
    return [user] if user is not None and user.target is aten.relu.default else []


def _winograd_dilation(node: fx.Node) -> int | None:
    """Where Winograd's algorithm is faster with a weight that is transformed already: for these
    channels on a large map, and its tiles of 4×4 are more than half full on this one."""
    d = winograd_dilation(node)
    x, out = value(arguments(node)["input"]), value(node)
    if d is None or x.device.type != "cpu" or backends.default("cpu") != "cpu":
        return None
    if out.dtype == torch.float64 or min(hint(x.shape[2]), hint(x.shape[3])) < 3 * d:
        return None
    size = 64 * d
    sizes = (1, x.shape[1], out.shape[1], size, size)
    return d if torch.ops.pspfast.winograd_is_faster(*sizes, d, out.dtype) else None


def _depthwise_dilation(node: fx.Node) -> int | None:
    """The dilation of a depthwise convolution that keeps the size of its map, where oneDNN has no
    depthwise kernel."""
    named, d = arguments(node), same_size_dilation(node)
    weight = value(named["weight"])
    if d is None or tuple(weight.shape[:2]) != (named["groups"], 1):
        return None
    if backends.default("cpu") != "cpu" or not _onednn_takes(node):
        return None
    widest = _WIDEST_PADDING.get(torch.backends.cpu.get_cpu_capability())
    return d if widest is not None and named["padding"][0] > widest else None


def _onednn_takes(node: fx.Node) -> bool:
    out = value(node)
    return (
        out.device.type == "cpu"
        and out.dtype == torch.float32
        and is_channels_last(out)
        and torch.backends.mkldnn.is_available()
    )


def winograd_weight(weight: Tensor) -> Tensor:
    """As ``winograd_conv2d`` reads it."""
    return torch.ops.pspfast.winograd_weight(weight)


def folded_weight(weight: Tensor, var: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    """``s W``, ``[O, C, k, k]``."""
    return (weight.double() * _scale(var, scale, eps)[:, None, None, None]).to(weight.dtype)


def folded_bias(
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    weight: Tensor,
) -> Tensor:
    """``s (b - μ) + β``, ``[O]`` in the weight's dtype."""
    centred = (0 if bias is None else bias.double()) - mean.double()
    total = _scale(var, scale, eps) * centred
    return (total if shift is None else total + shift.double()).to(weight.dtype)


def _scale(var: Tensor, scale: Tensor | None, eps: float) -> Tensor:
    inverse = (var.double() + eps).rsqrt()
    return inverse if scale is None else scale.double() * inverse
