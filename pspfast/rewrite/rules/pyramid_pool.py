"""Several adaptive average pools of one map read it once.

    adaptive_avg_pool2d(x, b) for each b → a level of pyramid_pool(x, bins)

Done for square pools of up to :func:`pspfast.ops.pyramid_pool`'s levels and bins, where a kernel
serves the device; equal pools share a level.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from pspfast import backends
from pspfast.ops import pyramid_pool
from pspfast.ops.common.checks import format_of
from pspfast.rewrite.facts import arguments, aten, value
from pspfast.rewrite.graph import Graph, Unfit

NAME = "pyramid_pool"
TARGETS = (aten.adaptive_avg_pool2d.default,)


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: a pool and those of the same map after it."""
    x = arguments(node)["self"]
    pools = {n: _bins(n) for n in graph.nodes(*TARGETS) if n.args[0] is x and _bins(n)}
    if len(pools) < 2 or node is not min(pools):
        return
    if backends.default(value(x).device.type) == "reference":
        raise Unfit(f"there is no kernel for {value(x).device.type}")
    graph.check_movable(pools)
    bins = sorted({b for b in pools.values() if b})
    pooled = graph.insert(node, pyramid_pool, x, bins)
    for pool, b in pools.items():
        assert b is not None
        first = sum(smaller**2 for smaller in bins if smaller < b)
        graph.replace(NAME, [pool], level_of, pooled, first, b)


def _bins(node: fx.Node) -> int | None:
    """b of a pool into b by b bins of a map with a batch."""
    size = list(arguments(node)["output_size"])
    is_square = len(size) == 2 and isinstance(size[0], int) and size[0] == size[1]
    return size[0] if is_square and value(node).dim() == 4 else None


def level_of(pooled: Tensor, first: int, b: int) -> Tensor:
    """``[N, C, b, b]`` of ``[N, C, S]``, from bin ``first`` on, in memory of its own: another pool
    may have the same level."""
    level = pooled[:, :, first : first + b * b].unflatten(2, (b, b))
    is_channels_last = pooled.transpose(1, 2).is_contiguous() and not pooled.is_contiguous()
    layout = torch.channels_last if is_channels_last else format_of(level)
    return level.clone(memory_format=layout)
