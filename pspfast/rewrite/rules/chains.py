"""What follows a convolution or BatchNorm and nobody else reads."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx

from pspfast.rewrite.facts import arguments, aten, same, value


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
    this, that = value(to), value(other)
    if this.dtype != that.dtype or this.dim() != that.dim():
        return None
    return other if all(map(same, this.shape, that.shape)) else None
