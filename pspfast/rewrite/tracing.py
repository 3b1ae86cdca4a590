"""From the graph that Dynamo captured to one of ATen operators, on which the rules are written.

Operators are recorded above autograd and autocast (``pre_dispatch``), as ``torch.export`` does:
every library's way to call a function comes down to one operator, whose schema says what it writes,
autograd differentiates what the rules put in, and training and inference share one form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx.traceback
import torch.utils._pytree as pytree
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, detect_fake_mode
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


class CannotTraceError(Exception):
    """Why a graph is left as it was."""


def trace(
    module: fx.GraphModule, example_inputs: Sequence[Any]
) -> tuple[fx.GraphModule, FakeTensorMode]:
    """The ATen graph of ``module`` with the same inputs and outputs, and the mode that its fake
    values belong to; every node has its value under ``meta["val"]``.

    Raises:
        CannotTraceError: it has an operator on graphs or a transform of torch.func, or tracing it
            failed.
    """
    for node in module.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            raise CannotTraceError(f"the graph has the higher-order operator {node.target}")
    known = detect_fake_mode(list(example_inputs))
    # Tracing writes into its inputs' metadata: a mode of its own, with the same symbols.
    mode = FakeTensorMode(shape_env=known.shape_env if known else None, allow_non_fake_inputs=True)
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    inputs = [fake(mode, *pair) for pair in zip(placeholders, example_inputs, strict=True)]

    def run(*arguments: Any) -> Any:
        with torch.fx.traceback.preserve_node_meta():
            return fx.Interpreter(module).run(*arguments)

    try:
        with as_current(mode), mode, enable_python_dispatcher():
            traced = make_fx(run, pre_dispatch=True)(*inputs)
    except Exception as error:
        # Whatever a library does that cannot be traced again still runs as Dynamo captured it.
        raise CannotTraceError(f"tracing failed: {type(error).__name__}: {error}") from error
    for node in traced.graph.nodes:
        # Their tensors stand for others: of other shapes in vmap, without memory in grad and jvp.
        if any(map(_is_transformed, pytree.tree_leaves(node.meta.get("val")))):
            raise CannotTraceError("the graph has a transform of torch.func")
    return traced, mode


def _is_transformed(value: Any) -> bool:
    is_tensor = isinstance(value, torch.Tensor)
    return is_tensor and torch._C._functorch.is_functorch_wrapped_tensor(value)


def fake(mode: FakeTensorMode, placeholder: fx.Node, value: Any) -> Any:
    """The value of an input without its memory, its sizes with Dynamo's symbols."""
    symbol = placeholder.meta.get("example_value")
    if isinstance(symbol, torch.SymInt | torch.SymFloat):
        return symbol
    if not isinstance(value, torch.Tensor):
        return value
    if isinstance(value, FakeTensor) or (context := TracingContext.try_get()) is None:
        return mode.from_tensor(value)
    symbolic = context.tensor_to_context.get(value)
    source = symbolic.tensor_source if symbolic else None
    return mode.from_tensor(value, symbolic_context=symbolic, source=source, trace=False)


@contextmanager
def as_current(mode: FakeTensorMode) -> Iterator[None]:
    """Inside, torch's own code that asks for the mode of the compilation finds ``mode``."""
    context = TracingContext.try_get()
    if context is None:
        yield
        return
    previous, context.fake_mode = context.fake_mode, mode
    try:
        yield
    finally:
        context.fake_mode = previous
