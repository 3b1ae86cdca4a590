"""Tensors computed from weights alone: once, and again when a weight has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensor

DERIVED = "pspfast_derived"


class Derived:
    """Calls ``module`` on some of the inputs of a compiled graph, if one of them has changed since
    the last call: it is another tensor, lies elsewhere, or was written to.

    Writes are counted by torch in a tensor's version, but not those of BatchNorm to its running
    statistics: buffers of one axis are compared number by number.
    """

    def __init__(self, module: fx.GraphModule, positions: Sequence[int]) -> None:
        self._module = module
        self._positions = tuple(positions)
        self._kept: tuple[list[Any], list[Tensor]] | None = None

    def __call__(self, inputs: Sequence[Any]) -> list[Tensor]:
        sources = [inputs[i] for i in self._positions]
        if any(isinstance(t, FakeTensor) or t.is_inference() for t in sources):
            # Nobody counts what is written to tensors made in inference mode.
            return self._compute(sources)
        kept = self._kept
        if kept is not None and all(map(_is_unchanged, kept[0], sources)):
            return kept[1]
        states = [_state(t) for t in sources]
        results = self._compute(sources)
        self._kept = states, results
        return results

    def _compute(self, sources: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
            return list(self._module(*sources))


def _state(tensor: Tensor) -> tuple[Any, ...]:
    is_statistic = tensor.dim() == 1 and not isinstance(tensor, torch.nn.Parameter)
    numbers = tensor.clone() if is_statistic else None
    return weakref.ref(tensor), tensor._version, tensor.data_ptr(), tensor.stride(), numbers


def _is_unchanged(state: tuple[Any, ...], tensor: Tensor) -> bool:
    reference, *rest, numbers = state
    is_same = reference() is tensor and rest == [
        tensor._version,
        tensor.data_ptr(),
        tensor.stride(),
    ]
    return is_same and (numbers is None or torch.equal(numbers, tensor))


def lift_derived(module: fx.GraphModule) -> Derived | None:
    """Takes the nodes marked with ``DERIVED`` out of the graph, which gets what they give as
    further inputs; None if there are none."""
    graph = module.graph
    marked = [n for n in graph.nodes if DERIVED in n.meta]
    if not marked:
        return None
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    sources = [p for p in placeholders if any(p in n.all_input_nodes for n in marked)]
    prologue = fx.Graph()
    copies = {p: prologue.placeholder(p.name) for p in sources}
    for node in marked:
        copies[node] = prologue.node_copy(node, copies.__getitem__)
    results = [n for n in marked if any(DERIVED not in user.meta for user in n.users)]
    prologue.output([copies[n] for n in results])
    last = placeholders[-1]
    for node in results:
        with graph.inserting_after(last):
            last = graph.placeholder(f"derived_{node.name}")
        last.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(last, delete_user_cb=lambda user: DERIVED not in user.meta)
    for node in reversed(marked):
        graph.erase_node(node)
    return Derived(
        fx.GraphModule(torch.nn.Module(), prologue), [placeholders.index(p) for p in sources]
    )


def with_derived(
    derived: Derived,
    compiler: Callable[..., Callable[..., Any]],
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
) -> Callable[..., Any]:
    """Compiles a graph that needs ``derived``, and calls it with them."""
    results = derived(example_inputs)
    mode = detect_fake_mode(list(example_inputs))
    if mode is not None:
        # Their sizes are numbers, not symbols.
        results = [mode.from_tensor(t, static_shapes=True) for t in results]
    compiled = compiler(module, [*example_inputs, *results])
    return lambda *inputs: compiled(*inputs, *derived(inputs))
