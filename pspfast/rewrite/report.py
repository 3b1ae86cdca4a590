"""What the rules did to a graph and what they left, for :func:`pspfast.explain`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx
from torch._subclasses import FakeTensorMode

from pspfast.rewrite.costs import Cost, cost_of


@dataclass(frozen=True)
class Applied:
    """A rule at work: ``where`` is a module's path, ``replaced`` the functions that went."""

    rule: str
    where: str
    replaced: tuple[str, ...]
    before: Cost | None
    after: Cost | None


@dataclass(frozen=True)
class Left:
    """What looked like a match and stayed."""

    rule: str
    where: str
    reason: str


@dataclass
class Report:
    """Of all graphs of a model.

    Args:
        counts: whether costs are counted, which takes time.
    """

    counts: bool = False
    applications: list[Applied] = field(default_factory=list)
    leavings: list[Left] = field(default_factory=list)

    def applied(
        self,
        mode: FakeTensorMode,
        rule: str,
        root: fx.Node,
        replaced: Sequence[fx.Node],
        inserted: Sequence[fx.Node],
    ) -> None:
        costs = [cost_of(mode, n) if self.counts else None for n in (replaced, inserted)]
        names = tuple(short_name(node) for node in replaced)
        self.applications.append(Applied(rule, path_of(root), names, *costs))

    def left(self, rule: str, node: fx.Node | None, reason: str) -> None:
        entry = Left(rule, path_of(node) if node else "", reason)
        if entry not in self.leavings:
            self.leavings.append(entry)


def path_of(node: fx.Node) -> str:
    """The path of the module whose forward made the node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    # Dynamo's name of a local or global variable comes first.
    return re.sub(r"^[LG]\['\w+'\]\.?", "", list(stack.values())[-1][0])


def short_name(node: fx.Node) -> str:
    """``conv2d`` of ``aten.conv2d.default``."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet else getattr(node.target, "__name__", str(node.target))
