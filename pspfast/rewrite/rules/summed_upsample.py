"""Maps of one size that are interpolated alike and added are added before they are interpolated.

    up(a) + up(b) + c = up(a + b) + c

because interpolation is linear: one interpolation instead of one for each map, and the additions
are of small maps. smp's FPN merges three maps of half the size with one of the full size.

Done in sums by ``+``, ``sum`` or ``stack`` and ``sum(dim)`` of maps of one shape and dtype, where
the maps grow and nothing else reads an upsampled one. A convolution over what is left of the sum is
:mod:`~pspfast.rewrite.rules.upsample_concat_conv2d`'s.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from pspfast.rewrite.facts import arguments, aten, pixels, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import (
    SUMS,
    Upsampling,
    only_user,
    same_size,
    summed,
    upsampling,
)

NAME = "summed_upsample"
TARGETS = SUMS


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a sum of maps that are interpolated alike."""
    found = summed(node)
    if found is None:
        return
    maps, nodes = found
    groups: list[list[Upsampling]] = []
    members: list[fx.Node] = []
    for member in maps:
        up = upsampling(member) if only_user(member) else None
        if up is None:
            members.append(member)
            continue
        group = next((g for g in groups if _is_alike(g[0], up)), None)
        if group is None:
            groups.append([up])
        else:
            group.append(up)
    several = [group for group in groups if len(group) > 1]
    if not several:
        return
    if not all(pixels(group[0].source) < pixels(node) for group in several):
        raise Unfit("the maps do not grow")
    members += [group[0].node for group in groups if len(group) == 1]
    gone = [*nodes, *(up.node for group in several for up in group)]
    calls: list[tuple[Any, ...]] = []
    for group in several:
        total = _added(graph, node, [up.source for up in group])
        calls.append((group[0].node.target, total, *list(arguments(group[0].node).values())[1:]))
    if len(calls) > 1 or members:
        members += [graph.insert(node, *call) for call in calls]
        calls = [(aten.add.Tensor, _added(graph, node, members[:-1]), members[-1])]
    graph.replace(NAME, gone, *calls[0])


def _is_alike(a: Upsampling, b: Upsampling) -> bool:
    is_same_way = (a.mode, a.align_corners) == (b.mode, b.align_corners)
    return is_same_way and same_size(value(a.source), value(b.source))


def _added(graph: Graph, before: fx.Node, maps: list[fx.Node]) -> fx.Node:
    total = maps[0]
    for other in maps[1:]:
        total = graph.insert(before, aten.add.Tensor, total, other)
    return total
