"""3×3 convolutions of stride 1, padded by their dilation, by Winograd's algorithm.

    conv2d(x, w, b, padding=d, dilation=d) → dilated_conv2d(x, w, b, dilation=d)

Done where :func:`pspfast.ops.dilated_conv2d` says of the sizes that it is faster: on the CPU. In
inference :mod:`~pspfast.rewrite.rules.folded_conv2d` comes before, with weights transformed once.
"""

from __future__ import annotations

import torch
from torch import fx

from pspfast import backends
from pspfast.ops import dilated_conv2d as op
from pspfast.rewrite.facts import arguments, aten, hint, value
from pspfast.rewrite.graph import Graph, Unfit

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
    graph.replace(NAME, [node], op, x, weight, named["bias"], dilation=dilation)


def winograd_dilation(node: fx.Node) -> int | None:
    """The dilation of a 3×3 convolution of stride 1 whose padding it is, without groups."""
    named = arguments(node)
    d = named["dilation"][0]
    is_fit = (
        value(named["input"]).dim() == 4
        and tuple(value(named["weight"]).shape[2:]) == (3, 3)
        and named["groups"] == 1
        and all(s == 1 for s in named["stride"])
        and all(p == d for p in (*named["padding"], *named["dilation"]))
    )
    return d if is_fit else None
