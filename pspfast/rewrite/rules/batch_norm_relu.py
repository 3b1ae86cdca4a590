"""BatchNorm of training, a residual and ReLU in one operator, which keeps only BatchNorm's input.

    relu(batch_norm(x, …, training=True) + residual) → batch_norm_relu(x, …, residual)

Backward computes the result again from x: :func:`pspfast.ops.batch_norm_relu`.

Done where a ReLU follows that nobody else's reading comes before, for an affine BatchNorm whose
``momentum`` and ``eps`` are numbers.
"""

from __future__ import annotations

from torch import fx

from pspfast.ops import batch_norm_relu as op
from pspfast.ops.batch_norm_relu import has_kernel
from pspfast.rewrite.facts import arguments, aten, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import epilogue

NAME = "batch_norm_relu"
TARGETS = (aten.batch_norm.default,)


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: BatchNorm of training before a ReLU."""
    named = arguments(node)
    rest = epilogue(node)
    if not named["training"] or not rest.relu:
        return
    x, weight, bias = named["input"], named["weight"], named["bias"]
    if value(x).dim() != 4 or weight is None or bias is None:
        raise Unfit("expected an affine BatchNorm of maps")
    if not all(isinstance(named[name], float) for name in ("momentum", "eps")):
        raise Unfit("its momentum and eps are no numbers")
    if not has_kernel(value(x)):
        raise Unfit(f"there is no kernel for {value(x).device.type}")
    matched = [node, *rest.nodes]
    running = [named["running_mean"], named["running_var"]]
    for statistic in running:
        if statistic is not None and any(
            node < user < matched[-1] for user in statistic.users if user not in matched
        ):
            raise Unfit("its running statistics are read before the ReLU")
    graph.replace(
        NAME,
        matched,
        op,
        x,
        *running,
        weight,
        bias,
        rest.residual,
        momentum=named["momentum"],
        eps=named["eps"],
    )
