"""Facts about single nodes of a graph of ATen operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true

from pspfast.rewrite.tracing import as_current

aten = torch.ops.aten

# What make_fx records besides operators: changes of a mode, and arithmetic on sizes.
_AUTOCAST = (torch.amp._enter_autocast, torch.amp._exit_autocast)
MODE_CHANGES = (torch._C._set_grad_enabled, *_AUTOCAST)
_SIZE_ARITHMETIC = ("_operator", "math", "torch", "torch.fx.experimental.symbolic_shapes")


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's call by name, with the schema's defaults."""
    assert isinstance(node.target, OpOverload)
    named = {a.name: a.default_value for a in node.target._schema.arguments}
    named.update(zip(list(named), node.args, strict=False))
    named.update(node.kwargs)
    return named


def value(node: fx.Node) -> Any:
    """What the node gives, without memory."""
    return node.meta["val"]


def storages(node: fx.Node) -> set[int]:
    """The memory that a node's value lies in."""
    values = pytree.tree_leaves(node.meta.get("val"))
    return {v.untyped_storage()._cdata for v in values if isinstance(v, Tensor)}


def written_by(node: fx.Node) -> set[int] | None:
    """The memory that a node writes; None for any."""
    if node.op != "call_function" or node.target in MODE_CHANGES:
        return set()
    if not isinstance(node.target, OpOverload):
        module = getattr(node.target, "__module__", None)
        return set() if module in _SIZE_ARITHMETIC else None
    named = arguments(node)
    written = [named[a.name] for a in node.target._schema.arguments if a.is_write]
    if updates_running_statistics(node):
        written += [named["running_mean"], named["running_var"]]
    nodes = [n for n in pytree.tree_leaves(written) if isinstance(n, fx.Node)]
    return set().union(*map(storages, nodes))


def updates_running_statistics(node: fx.Node) -> bool:
    """What the schema of BatchNorm does not say."""
    return node.target is aten.batch_norm.default and bool(arguments(node)["training"])


def reads_real_numbers(node: fx.Node) -> bool:
    """Whether floating-point tensors are among what the node reads, and no complex ones."""
    values = [v for v in map(value, node.all_input_nodes) if isinstance(v, Tensor)]
    return any(v.is_floating_point() for v in values) and not any(v.is_complex() for v in values)


def regions(graph: fx.Graph) -> tuple[dict[fx.Node, int], set[fx.Node]]:
    """A number for each node that changes where autocast or the grad mode does, and the nodes
    within an autocast region."""
    numbers: dict[fx.Node, int] = {}
    in_autocast: set[fx.Node] = set()
    number = depth = 0
    for node in graph.nodes:
        if node.target in MODE_CHANGES:
            number += 1
        if node.target in _AUTOCAST:
            depth += 1 if node.target is _AUTOCAST[0] else -1
        numbers[node] = number
        if depth:
            in_autocast.add(node)
    return numbers, in_autocast


def evaluate(
    mode: FakeTensorMode, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> Any:
    """What a call would give, without memory."""
    args, kwargs = fx.node.map_arg((args, kwargs), value)
    with as_current(mode), mode, enable_python_dispatcher(), torch.no_grad():
        return function(*args, **kwargs)


def name_of(node: fx.Node) -> str:
    """A node's function, for a reason."""
    target = node.target
    return (
        str(target) if isinstance(target, OpOverload) else getattr(target, "__name__", str(target))
    )


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal, without a guard."""
    return statically_known_true(a == b)


def hint(size: Any) -> int:
    """A size as it was when the graph was captured, to judge what pays."""
    if isinstance(size, int):
        return size
    # The function for it has another name in every few versions of torch. A size that depends on
    # data has no hint: it counts as a small map's.
    known = size.node.hint
    return 64 if known is None else known


def difference(old: Any, new: Any) -> str | None:
    """What two values differ in, of shape, dtype and device."""
    olds, news = pytree.tree_leaves(old), pytree.tree_leaves(new)
    if len(olds) != len(news):
        return f"there would be {len(news)} results instead of {len(olds)}"
    for a, b in zip(olds, news, strict=True):
        is_same = (a.dtype, a.device, a.dim()) == (b.dtype, b.device, b.dim()) and all(
            map(same, a.shape, b.shape)
        )
        if not is_same:
            was, is_now = (f"{t.dtype} {list(t.shape)} on {t.device}" for t in (a, b))
            return f"the result would be {is_now} instead of {was}"
    return None


def pixels(node: fx.Node) -> int:
    """H W of a map, as :func:`hint`."""
    height, width = value(node).shape[2:]
    return hint(height) * hint(width)
