"""Loss, labels and probabilities of upsampled logits are computed from the logits as they are.

    cross_entropy(interpolate(z), t) → upsample_cross_entropy(z, t)
    argmax(interpolate(z), 1)        → upsample_argmax(z, size)
    softmax(interpolate(z), 1)       → upsample_softmax(z, size)

which interpolate each pixel's numbers when they need them. ``max(dim=1)`` of which only the indices
are used is an argmax, and so is an argmax of the softmax.

Where no pixel counts ``F.cross_entropy`` gives NaN and the operator 0: the rule puts the NaN back.
(Gradients are 0 then; ``F.cross_entropy`` has NaN where the weights of all classes there are 0.)
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from pspfast.ops import upsample_argmax, upsample_cross_entropy, upsample_softmax
from pspfast.rewrite.facts import arguments, aten, value
from pspfast.rewrite.graph import Graph, Unfit
from pspfast.rewrite.rules.matching import Upsampling, upsampled_size, upsampling

NAME = "upsample_logits"
TARGETS = (
    aten.cross_entropy_loss.default,
    aten.argmax.default,
    aten.max.dim,
    aten.softmax.int,
)

_MEAN = 1
_CHANNELS = (1, -3)


def rewrite(graph: Graph, node: fx.Node) -> None:
    """Rule: what reads upsampled logits."""
    if node.target is aten.cross_entropy_loss.default:
        _cross_entropy(graph, node)
    elif arguments(node)["dim"] in _CHANNELS and value(arguments(node)["self"]).dim() == 4:
        if node.target is aten.softmax.int:
            _softmax(graph, node)
        else:
            _labels(graph, node)


def _cross_entropy(graph: Graph, node: fx.Node) -> None:
    named = arguments(node)
    found = upsampling(named["self"])
    if found is None:
        return
    _check_mode(found)
    target = named["target"]
    if named["reduction"] != _MEAN:
        raise Unfit("its reduction is not the mean")
    if value(target).dim() != 3 or value(target).dtype != torch.int64:
        raise Unfit("its target holds no class numbers")
    graph.replace(
        NAME,
        [found.node, node],
        mean_cross_entropy,
        found.source,
        target,
        weight=named["weight"],
        ignore_index=named["ignore_index"],
        align_corners=found.align_corners,
        label_smoothing=named["label_smoothing"],
        dtype=value(node).dtype,
    )


def mean_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    weight: torch.Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    """:func:`upsample_cross_entropy` with the NaN of ``F.cross_entropy`` where no pixel counts, and
    in its dtype: that of half-precision logits."""
    loss = upsample_cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        align_corners=align_corners,
        label_smoothing=label_smoothing,
    )
    assert isinstance(loss, torch.Tensor)
    counts = target != ignore_index
    if weight is not None:
        counts = counts & (weight.detach() != 0)[torch.where(counts, target, 0)]
    return torch.where(counts.any(), loss, torch.nan).to(dtype)


def _labels(graph: Graph, node: fx.Node) -> None:
    """``argmax``, and ``max`` of which the indices alone are used."""
    source, gone = arguments(node)["self"], []
    if source.target is aten.softmax.int and arguments(source)["dim"] in _CHANNELS:
        # It does not change which is the largest.
        source, gone = arguments(source)["self"], [source]
    found = upsampling(source)
    if found is None:
        return
    _check_mode(found)
    root = node
    if node.target is aten.max.dim:
        if [user.target for user in node.users] != [operator.getitem]:
            raise Unfit("more of the maximum is used than its index")
        (root,) = node.users
        gone = [*gone, node]
        if root.args[1] != 1:
            raise Unfit("the maximum itself is used")
    if arguments(node)["keepdim"]:
        raise Unfit("it keeps the dimension")
    matched = [found.node, *gone, root]
    _check_unused_elsewhere(matched)
    options = {"align_corners": found.align_corners, "dtype": torch.int64}
    graph.replace(NAME, matched, upsample_argmax, found.source, upsampled_size(found), **options)


def _softmax(graph: Graph, node: fx.Node) -> None:
    found = upsampling(arguments(node)["self"])
    if found is None:
        return
    if [user.target for user in node.users] == [aten.argmax.default]:
        # The labels are computed without probabilities.
        return
    _check_mode(found)
    _check_unused_elsewhere([found.node, node])
    if not graph.is_inference:
        raise Unfit("gradients may be asked for, which the operator has not")
    options = {"align_corners": found.align_corners}
    size = upsampled_size(found)
    graph.replace(NAME, [found.node, node], upsample_softmax, found.source, size, **options)


def _check_mode(found: Upsampling) -> None:
    if found.mode != "bilinear":
        raise Unfit(f"the logits are upsampled by {found.mode!r}")


def _check_unused_elsewhere(matched: list[fx.Node]) -> None:
    if any(user not in matched for node in matched[:-1] for user in node.users):
        raise Unfit("the upsampled logits are used elsewhere too")
