"""A 1×1 convolution or linear layer alone after interpolations goes before them.

    W up_2(up_1(x)) + b = up_2(up_1(W x + b))

The layer mixes channels, interpolation mixes positions, so they commute; the weights of an
interpolation add up to 1, so the bias is interpolated to itself. Two interpolations in a row are no
single one, but the layer passes both: it goes to the smallest map of the chain, with h w instead of
H W pixels. This saves O C (H W - h w) multiplications, and interpolates O channels from there on
instead of C.

It pays, and is done, where that map is smaller than the last, O is at most C and nothing else reads
a map between them. A linear layer is one of ``x.permute(0, 2, 3, 1)``.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from pspfast.rewrite.facts import arguments, aten, pixels, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import Upsampling, convolution, only_user, upsampling

NAME = "pointwise_before_upsample"
TARGETS = (aten.conv2d.default, aten.linear.default)

_CHANNELS_TO_THE_END = [0, 2, 3, 1]


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a 1×1 layer of an upsampled map."""
    named = arguments(node)
    x, weight, bias = named["input"], named["weight"], named["bias"]
    view = None
    if node.target is aten.linear.default:
        # A linear layer's weight may be a vector.
        view = _permuted(x) if value(weight).dim() == 2 else None
        last = upsampling(view.args[0]) if view else None
    else:
        conv = convolution(node)
        last = upsampling(x) if conv and conv.kernel_size == 1 else None
    if last is None:
        return
    chain = _chain_to(last)
    first = min(chain, key=lambda found: pixels(found.source))
    small, large = pixels(first.source), pixels(last.node)
    out_channels, channels = value(weight).shape[:2]
    if small >= large:
        raise Unfit(f"the map does not grow: {small} to {large} pixels")
    if out_channels > channels:
        raise Unfit(f"{out_channels} channels would be interpolated instead of {channels}")
    if only_user(last.node) is None or (view and only_user(view) is None):
        raise Unfit("the upsampled map is used elsewhere too")
    chain = chain[chain.index(first) :]
    kernel = weight
    if view:
        shape = [out_channels, channels, 1, 1]
        kernel = graph.insert_of_weight(node, aten.reshape.default, weight, shape)
    mixed = graph.insert(node, aten.conv2d.default, first.source, kernel, bias)
    calls: list[tuple[Any, list[Any]]] = [
        (found.node.target, list(arguments(found.node).values())[1:]) for found in chain
    ]
    if view:
        calls.append((aten.permute.default, [_CHANNELS_TO_THE_END]))
        calls.append((aten.contiguous.default, []))  # as a linear layer's result is
    for function, rest in calls[:-1]:
        mixed = graph.insert(node, function, mixed, *rest)
    function, rest = calls[-1]
    gone = [*(found.node for found in chain), *([view] if view else []), node]
    graph.replace(NAME, gone, function, mixed, *rest)


def _permuted(node: fx.Node) -> fx.Node | None:
    """The node, if it moves a map's channels to the end."""
    if node.target is not aten.permute.default or value(node).dim() != 4:
        return None
    dims = [d % 4 for d in arguments(node)["dims"]]
    return node if dims == _CHANNELS_TO_THE_END else None


def _chain_to(last: Upsampling) -> list[Upsampling]:
    """The interpolations in a row of which this is the last and nobody reads the others."""
    before = upsampling(last.source) if only_user(last.source) else None
    return [*(_chain_to(before) if before else []), last]
