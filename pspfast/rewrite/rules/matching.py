"""Operators, and chains of them, that several rules look for."""

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
SUMS = (aten.add.Tensor, aten.sum.dim_IntList)


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


def summed(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """The maps of one shape and dtype that are added in ``node``, those of sums in it that nobody
    else reads in their places, and the nodes that do so; None if it is no such sum."""
    found = _summands(node)
    if found is None:
        return None
    members, nodes = found
    if value(node).dim() != 4 or not all(_is_alike(value(node), value(m)) for m in members):
        return None
    maps: list[fx.Node] = []
    for member in members:
        inner = summed(member) if only_user(member) else None
        maps += inner[0] if inner else [member]
        nodes += inner[1] if inner else []
    return maps, nodes


def _summands(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """Of ``a + b``, of ``0 + a``, with which Python's ``sum`` begins, and of
    ``torch.stack(maps, dim).sum(dim)``, whose nodes come second."""
    named: dict[str, Any] = arguments(node) if node.target in SUMS else {}
    if node.target is aten.add.Tensor and named["alpha"] == 1:
        other = named["other"]
        if isinstance(other, fx.Node):
            return [named["self"], other], [node]
        return ([named["self"]], [node]) if other == 0 else None
    if node.target is aten.sum.dim_IntList and not named["keepdim"]:
        stack = named["self"]
        if stack.target is not aten.stack.default or only_user(stack) is not node:
            return None
        dims, dim = named["dim"], arguments(stack)["dim"]
        rank = value(stack).dim()
        if dims is not None and [d % rank for d in dims] == [dim % rank]:
            return list(arguments(stack)["tensors"]), [stack, node]
    return None


def same_size(a: Tensor, b: Tensor) -> bool:
    """Whether two maps are known to have the same H and W."""
    return same(a.shape[2], b.shape[2]) and same(a.shape[3], b.shape[3])


def same_size_dilation(node: fx.Node) -> int | None:
    """The dilation of a convolution of k×k taps, k odd, and stride 1 that keeps the size of its map
    ``[N, C, H, W]``."""
    named = arguments(node)
    weight, d = value(named["weight"]), named["dilation"][0]
    k = weight.shape[2]
    is_fit = (
        value(named["input"]).dim() == 4
        and weight.shape[3] == k
        and k % 2 == 1
        and all(s == 1 for s in named["stride"])
        and all(p == d * (k // 2) for p in named["padding"])
        and all(other == d for other in named["dilation"])
    )
    return d if is_fit else None


class Epilogue(NamedTuple):
    """``relu(node + residual)``, of which either may be missing: its nodes in order, none if both
    are."""

    nodes: list[fx.Node]
    residual: fx.Node | None
    relu: bool


def only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone reads this one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def epilogue(node: fx.Node) -> Epilogue:
    """What is added to a map of the same shape, and the ReLU after it."""
    nodes: list[fx.Node] = []
    residual = None
    last, user = node, only_user(node)
    if user is not None and (other := _added(user, last)) is not None:
        residual = other
        nodes.append(user)
        last, user = user, only_user(user)
    relu = user is not None and user.target is aten.relu.default
    if relu:
        assert user is not None
        nodes.append(user)
    return Epilogue(nodes, residual, relu)


def _added(node: fx.Node, to: fx.Node) -> fx.Node | None:
    """The other summand, a map of the same shape and dtype."""
    if node.target is not aten.add.Tensor or arguments(node)["alpha"] != 1:
        return None
    a, b = arguments(node)["self"], arguments(node)["other"]
    other = b if a is to else a
    if not isinstance(other, fx.Node) or other is to:
        return None
    return other if _is_alike(value(to), value(other)) else None


def _is_alike(a: Any, b: Any) -> bool:
    """Whether two values are tensors known to have the same shape and dtype; a size is none."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.dtype == b.dtype and a.dim() == b.dim() and all(map(same, a.shape, b.shape))
