"""Multiplications and bytes of a few nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pspfast.flops  # noqa: F401  registers the formulas of this project's operators
from pspfast.rewrite.facts import evaluate, hint


@dataclass(frozen=True)
class Cost:
    """Multiplications of convolutions and products, and bytes that operators read and write."""

    multiplications: int
    bytes: int


class _Counter(TorchDispatchMode):
    """FLOPs of what is called inside, and bytes of this project's operators and those like them:
    an operator of torch's is counted by its own arguments, however it is decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += hint(flop_registry[packet](*args, **kwargs, out_val=out))
        if not func.is_view and func.namespace != "prim":
            self.bytes += _bytes((args, kwargs, out))
        return out


def cost_of(mode: FakeTensorMode, nodes: Sequence[fx.Node]) -> Cost:
    """What running them costs."""
    flops = moved = 0
    for node in nodes:
        assert callable(node.target)
        with _Counter() as counter:
            out = evaluate(mode, node.target, node.args, node.kwargs)
        flops += counter.flops
        if isinstance(node.target, OpOverload):
            inputs = [n.meta["val"] for n in node.all_input_nodes]
            moved += 0 if node.target.is_view else _bytes((inputs, out))
        else:
            moved += counter.bytes
    return Cost(flops // 2, moved)


def _bytes(values: Any) -> int:
    tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
    return sum(prod(map(hint, t.shape)) * t.element_size() for t in tensors)
