"""In inference two 1×1 layers in a row become one, where that is fewer multiplications.

    W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)

For C to D to O channels that is C O instead of C D + D O a pixel. Both are 1×1 convolutions or
both linear layers; or the first is a linear layer of tokens that become a map; or the second is a
convolution over upsampled and concatenated maps (``upsample_concat_conv2d``, k = 1), each with a
first layer or without: SegFormer's ``linear_c`` and its share of ``linear_fuse``. The weights of an
interpolation add up to 1, so b1 passes through it. Nothing else reads what is between the two.

The products are computed in float64, and again when a weight changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pspfast.ops import upsample_concat_conv2d
from pspfast.ops.common.checks import format_of
from pspfast.rewrite.facts import arguments, aten, evaluate, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import convolution, only_user

NAME = "merged_pointwise"
TARGETS = (upsample_concat_conv2d, aten.conv2d.default, aten.linear.default)


class _Layer(NamedTuple):
    """``nodes`` compute a map from ``x`` by ``weight`` and ``bias``; ``size`` reshapes tokens."""

    nodes: list[fx.Node]
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    size: list[Any] | None


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: 1×1 layers in front of the maps of a 1×1 fusion, convolution or linear layer."""
    is_fusion = node.target is upsample_concat_conv2d
    is_linear = node.target is aten.linear.default
    bias: Any
    if is_fusion:
        call: tuple[Any, ...] = node.args
        maps, weight, size = call
        bias = node.kwargs["bias"]
    else:
        named = arguments(node)
        maps, weight, bias = [named["input"]], named["weight"], named["bias"]
    is_pointwise = is_linear or tuple(value(weight).shape[2:]) == (1, 1)
    if not is_pointwise or (node.target is aten.conv2d.default and convolution(node) is None):
        return
    find = _linear if is_linear else _layer
    layers = [find(m) if only_user(m) is node else None for m in maps]
    layers = [_if_it_pays(layer, value(weight).shape[0]) for layer in layers]
    if not any(layers):
        return
    if not graph.is_inference:
        raise Unfit("gradients may be asked for")
    if torch.is_autocast_enabled(value(node).device.type):
        raise Unfit("under autocast each layer rounds")
    channels = [value(m).shape[-1 if is_linear else 1] for m in maps]
    firsts = [layer and layer.weight for layer in layers]
    merged = graph.derive(node, merged_weight, weight, firsts, channels)
    biases = [layer and layer.bias for layer in layers]
    if any(biases):
        bias = graph.derive(node, merged_bias, weight, bias, biases, channels)
    gone = [*(n for layer in layers if layer for n in layer.nodes), node]
    if is_linear:
        (layer,) = layers
        assert layer is not None
        merged = graph.derive(node, aten.flatten.using_ints, merged, 1)
        _replace_linear(graph, gone, layer.x, merged, bias)
        return
    new_maps = [
        _source(graph, node, layer) if layer else m for layer, m in zip(layers, maps, strict=True)
    ]
    if is_fusion:
        options = dict(node.kwargs) | {"bias": bias}
        graph.replace(NAME, gone, upsample_concat_conv2d, new_maps, merged, size, **options)
    else:
        graph.replace(NAME, gone, aten.conv2d.default, *new_maps, merged, bias)


def _replace_linear(
    graph: Graph, gone: list[fx.Node], x: fx.Node, weight: fx.Node, bias: fx.Node | None
) -> None:
    """Views that follow depend on the strides of the result, which depend on those of ``x``."""
    result = evaluate(graph.mode, aten.linear.default, (x, weight, bias), {})
    if result.stride() != value(gone[-1]).stride():
        raise Unfit("the result would have other strides")
    graph.replace(NAME, gone, aten.linear.default, x, weight, bias)


def _linear(node: fx.Node) -> _Layer | None:
    if node.target is not aten.linear.default:
        return None
    named = arguments(node)
    return _Layer([node], named["input"], named["weight"], named["bias"], None)


def _layer(node: fx.Node) -> _Layer | None:
    conv = convolution(node)
    if conv is not None:
        return (
            _Layer([node], conv.x, conv.weight, conv.bias, None) if conv.kernel_size == 1 else None
        )
    if node.target not in (aten.reshape.default, aten.view.default):
        return None
    call: tuple[Any, ...] = node.args
    copy, size = call[0], list(call[1])
    rows = copy.args[0] if copy.target is aten.contiguous.default else copy
    linear: Any = rows.args[0] if _swaps_last_two(rows) else None
    if linear is None or linear.target is not aten.linear.default:
        return None
    channels = value(linear).shape[-1]
    is_map = len(size) == 4 and value(linear).dim() == 3 and value(node).shape[1] == channels
    is_alone = len(linear.users) == len(rows.users) == len(copy.users) == 1
    if not is_map or not is_alone:
        return None
    named = arguments(linear)
    nodes = list(dict.fromkeys([linear, rows, copy, node]))
    return _Layer(nodes, named["input"], named["weight"], named["bias"], size)


def _swaps_last_two(node: fx.Node) -> bool:
    call: tuple[Any, ...] = node.args
    if node.target is aten.permute.default:
        return list(call[1]) == [0, 2, 1]
    return node.target is aten.transpose.int and {d % 3 for d in call[1:]} == {1, 2}


def _if_it_pays(layer: _Layer | None, out_channels: int) -> _Layer | None:
    # A linear layer's weight may be a vector.
    if layer is None or value(layer.weight).dim() == 1:
        return None
    inner, channels = value(layer.weight).shape[:2]
    return layer if out_channels * channels < inner * (channels + out_channels) else None


def _source(graph: Graph, node: fx.Node, layer: _Layer) -> fx.Node:
    """The map that the layer reads, in the memory format of the one it makes, which decides about
    that of the result."""
    source = layer.x
    if layer.size is not None:
        rows = graph.insert(node, aten.transpose.int, source, 1, 2)
        size = [layer.size[0], value(source).shape[2], *layer.size[2:]]
        source = graph.insert(node, aten.reshape.default, rows, size)
    wanted = format_of(value(layer.nodes[-1]))
    if format_of(value(source)) == wanted:
        return source
    return graph.insert(node, aten.contiguous.default, source, memory_format=wanted)


def merged_weight(weight: Tensor, firsts: list[Tensor | None], channels: list[int]) -> Tensor:
    """``[O, sum of C_i, 1, 1]`` of ``[O, sum of D_i, 1, 1]`` and each map's ``[D_i, C_i]``."""
    parts = [
        part if first is None else (part.flatten(1).double() @ first.flatten(1).double())
        for part, first in zip(weight.split(channels, 1), firsts, strict=True)
    ]
    return torch.cat([part.flatten(1).to(weight.dtype) for part in parts], 1)[:, :, None, None]


def merged_bias(
    weight: Tensor, bias: Tensor | None, firsts: list[Tensor | None], channels: list[int]
) -> Tensor:
    """``[O]``: the bias, and the layers' biases through the weight."""
    total = weight.new_zeros(weight.shape[0], dtype=torch.float64)
    if bias is not None:
        total = total + bias.double()
    for part, first in zip(weight.split(channels, 1), firsts, strict=True):
        if first is not None:
            total = total + part.flatten(1).double() @ first.double()
    return total.to(weight.dtype)
