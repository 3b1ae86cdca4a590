"""Operators that several rules look for."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, fx

from pspfast.rewrite.facts import arguments, aten, same, value
from pspfast.rewrite.graph import Unfit

_UPSAMPLINGS = {
    aten.upsample_bilinear2d.vec: "bilinear",
    aten.upsample_nearest2d.vec: "nearest",
}
UPSAMPLINGS = tuple(_UPSAMPLINGS)


class Upsampling(NamedTuple):
    """``F.interpolate(source, size, mode=mode, align_corners=align_corners)``."""

    node: fx.Node
    source: fx.Node
    mode: str
    align_corners: bool


def upsampling(node: Any) -> Upsampling | None:
    """The node's interpolation, if it is one between sizes, as those that this project's operators
    do: with a scale factor that is not the ratio of the sizes torch takes pixels elsewhere."""
    if not isinstance(node, fx.Node) or node.target not in _UPSAMPLINGS:
        return None
    named = arguments(node)
    mode = _UPSAMPLINGS[node.target]
    align_corners = bool(named.get("align_corners", False))
    factors = named["scale_factors"]
    source, result = value(named["input"]), value(node)
    if factors is not None and not (mode == "bilinear" and align_corners):
        for factor, small, large in zip(factors, source.shape[2:], result.shape[2:], strict=True):
            if not isinstance(factor, float) or not factor.is_integer():
                return None
            if not same(small * int(factor), large):
                return None
    return Upsampling(node, named["input"], mode, align_corners)


def upsampled_size(found: Upsampling) -> list[Any]:
    """H and W of the result for a graph that does not have it: numbers, or the nodes that the
    interpolation was given.

    Raises:
        Unfit: it has symbols and was given as a factor.
    """
    shape = list(value(found.node).shape[2:])
    if all(isinstance(s, int) for s in shape):
        return shape
    size = arguments(found.node)["output_size"]
    if size is None:
        raise Unfit("the size is not known without the upsampled map")
    return list(size)


class Convolution(NamedTuple):
    """``F.conv2d(x, weight, bias, padding=k // 2)`` with kernels of k × k."""

    node: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    kernel_size: int


def convolution(node: fx.Node) -> Convolution | None:
    """The node's convolution, if it is one of stride 1 with k = 1 or 3 whose result has its input's
    size, without groups and dilation."""
    if node.target is not aten.conv2d.default:
        return None
    named = arguments(node)
    weight = value(named["weight"])
    k = weight.shape[2]
    if (
        value(named["input"]).dim() != 4
        or tuple(weight.shape[2:]) not in ((1, 1), (3, 3))
        or any(s != 1 for s in named["stride"])
        or any(p != k // 2 for p in named["padding"])
        or (k == 3 and any(d != 1 for d in named["dilation"]))
        or named["groups"] != 1
    ):
        return None
    return Convolution(node, named["input"], named["weight"], named["bias"], k)


def concatenated(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """The maps that are concatenated along their channels in ``node``, those of concatenations in
    it in their places, and the nodes that do so; None if it is no concatenation."""
    if node.target is not aten.cat.default or value(node).dim() != 4:
        return None
    named = arguments(node)
    if named["dim"] not in (1, -3):
        return None
    maps: list[fx.Node] = []
    nodes = [node]
    for member in named["tensors"]:
        # An empty tensor of one dimension is let pass by torch.cat.
        if value(member).dim() != 4:
            return None
        inner = concatenated(member)
        maps += inner[0] if inner else [member]
        nodes += inner[1] if inner else []
    return maps, nodes


def same_size(a: Tensor, b: Tensor) -> bool:
    """Whether two maps are known to have the same H and W."""
    return same(a.shape[2], b.shape[2]) and same(a.shape[3], b.shape[3])
