"""A 1×1 convolution alone after an interpolation goes before it.

The convolution mixes channels, interpolation mixes positions, so they commute; the weights of an
interpolation add up to 1, so the bias is interpolated to itself. From h w to H W pixels this saves
O C (H W - h w) multiplications, and interpolates O channels instead of C.

It pays, and is done, where the map grows, O is at most C and nothing else reads the large map.
"""

from __future__ import annotations

from torch import fx

from pspfast.rewrite.facts import arguments, aten, pixels, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import convolution, upsampling

NAME = "pointwise_before_upsample"
TARGETS = (aten.conv2d.default,)


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a 1×1 convolution of an upsampled map."""
    conv = convolution(node)
    found = upsampling(conv.x) if conv and conv.kernel_size == 1 else None
    if conv is None or found is None:
        return
    small, large = pixels(found.source), pixels(found.node)
    out_channels, channels = value(conv.weight).shape[:2]
    if small >= large:
        raise Unfit(f"the map does not grow: {small} to {large} pixels")
    if out_channels > channels:
        raise Unfit(f"{out_channels} channels would be interpolated instead of {channels}")
    if len(found.node.users) > 1:
        raise Unfit("the upsampled map is used elsewhere too")
    mixed = graph.insert(node, aten.conv2d.default, found.source, conv.weight, conv.bias)
    rest = list(arguments(found.node).values())[1:]
    assert callable(found.node.target)
    graph.replace(NAME, [found.node, node], found.node.target, mixed, *rest)
