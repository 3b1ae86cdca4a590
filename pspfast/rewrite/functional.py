"""In-place operators become ordinary ones where nothing can see the difference, so that rules find
one form of each; what no rule touched becomes in-place again at the end, and convolutions that add
a residual become so."""

from __future__ import annotations

import operator

from torch import fx
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode

from pspfast.ops.common.checks import is_channels_last
from pspfast.rewrite.facts import arguments, aten, difference, evaluate, regions, storages, value
from pspfast.rewrite.onednn import CONV2D, CONV2D_

# Marks what the rules put into a graph.
INSERTED = "pspfast_inserted"
_IN_PLACE = "pspfast_in_place"
_DROPOUTS = (
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
)
_CONVOLUTIONS = (aten.conv2d.default, CONV2D, CONV2D_)


def remove_nothings(graph: fx.Graph) -> None:
    """Dropout outside training, which gives its very input, and results nobody takes."""
    for node in list(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
        elif node.target in _DROPOUTS and arguments(node)["train"] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def make_functional(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """Replaces an in-place operator where its tensor has no other name that is still used, is no
    input, and was made under the same grad mode."""
    outside = [n for n in graph.nodes if n.op in ("placeholder", "get_attr")]
    inputs = set().union(*map(storages, outside))
    numbers, _ = regions(graph)
    for node in list(graph.nodes):
        twin = _twin(node)
        if twin is None:
            continue
        target = node.args[0]
        memory = storages(target)
        if memory & inputs or numbers[target] != numbers[node]:
            continue
        if _has_other_names(graph, node, target, memory):
            continue
        try:
            result = evaluate(mode, twin, node.args, node.kwargs)
        except (TypeError, ValueError, RuntimeError):
            continue
        if difference(value(target), result) or value(target).stride() != result.stride():
            continue
        with graph.inserting_before(node):
            new = graph.call_function(twin, node.args, node.kwargs)
        new.meta = {**node.meta, _IN_PLACE: (node.target, target)}
        numbers[new] = numbers[node]
        node.replace_all_uses_with(new)
        target.replace_all_uses_with(new, delete_user_cb=lambda user, at=new: user > at)
        graph.erase_node(node)


def restore_in_place(graph: fx.Graph, is_inference: bool) -> None:
    """Undoes :func:`make_functional` where the tensor and its users are still those of then, and
    no operator of a rule may have kept the tensor for backward."""
    inserted = [] if is_inference else [n for n in graph.nodes if INSERTED in n.meta]
    kept = [(n, set().union(*map(storages, n.all_input_nodes))) for n in inserted]
    for node in list(graph.nodes):
        in_place, target = node.meta.get(_IN_PLACE, (None, None))
        if in_place is None or node.args[0] is not target:
            continue
        if any(user > node for user in target.users):
            continue
        memory = storages(target)
        if any(user < node and memory & read for user, read in kept):
            continue
        if not _has_other_names(graph, node, target, memory):
            node.target = in_place


def write_into_residuals(graph: fx.Graph) -> None:
    """Lets a convolution of inference write its result into the residual where that is another's
    result and nobody needs it any more: new memory has to be mapped and filled with zeros by the
    system first, which took longer than the convolution in a ResNet's first stage.

    A convolution's result is always new memory, and those that read it keep no part of it. Nothing
    else is let near: whether ``contiguous`` copies can be decided otherwise when the graph runs.
    """
    for node in list(graph.nodes):
        if node.target is not CONV2D:
            continue
        named = arguments(node)
        target = named.pop("residual")
        if target is None or target.target not in _CONVOLUTIONS or target in named.values():
            continue
        if any(user.target not in _CONVOLUTIONS or user > node for user in target.users):
            continue
        if not is_channels_last(value(target)):
            continue
        with graph.inserting_before(node):
            graph.call_function(CONV2D_, (target, *named.values()))
        node.replace_all_uses_with(target)
        graph.erase_node(node)


def _twin(node: fx.Node) -> OpOverload | None:
    """The operator that gives as a new tensor what this one writes into its first argument."""
    in_place = node.target
    if not isinstance(in_place, OpOverload) or in_place.namespace != "aten" or not node.args:
        return None
    writes = [a.is_write for a in in_place._schema.arguments]
    name = in_place._schema.name.split("::")[1]
    if writes[:1] != [True] or any(writes[1:]) or not name.endswith("_"):
        return None
    packet = getattr(aten, name[:-1], None)
    twin = getattr(packet, in_place._overloadname, None) if packet else None
    names = [a.name for a in in_place._schema.arguments]
    if twin is None or [a.name for a in twin._schema.arguments] != names:
        return None
    return twin if isinstance(node.args[0], fx.Node) else None


def _has_other_names(graph: fx.Graph, node: fx.Node, target: fx.Node, memory: set[int]) -> bool:
    """Whether the memory is reached after ``node`` by what was made before it, but ``target``."""
    return any(
        other < node
        and other is not target
        and storages(other) & memory
        and any(user > node for user in other.users)
        for other in graph.nodes
    )
