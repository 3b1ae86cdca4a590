"""A model as it is and as the rules rewrite it, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from pspfast.rewrite.backend import rewrite_and_compile
from pspfast.rewrite.report import Report


def rewritten(
    model: Callable[..., Any], rest: str = "eager", **options: Any
) -> tuple[Callable[..., Any], Report]:
    """``torch.compile(model, backend="pspfast")``, and what the rules will have done."""
    torch.compiler.reset()
    report = Report()

    def compiler(module: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        return rewrite_and_compile(module, inputs, rest, report)

    return torch.compile(model, backend=compiler, **options), report


def rules(report: Report) -> list[str]:
    return [a.rule for a in report.applications]


def reasons(report: Report) -> str:
    return "\n".join(f"{left.rule}: {left.reason}" for left in report.leavings)


def relative(ours: Tensor, eager: Tensor) -> float:
    """The norm of the difference over eager's norm."""
    error = (ours.double() - eager.double()).norm()
    return (error / eager.double().norm().clamp_min(1e-300)).item()


def check(
    model: nn.Module,
    *inputs: Any,
    rest: str = "eager",
    tolerance: float = 1e-10,
    **options: Any,
) -> Report:
    """Results, gradients and buffers of a step are eager's, and so are results without gradients;
    in float64 unless the inputs are of another dtype. Returns what the rules did in inference."""
    dtype = next((i.dtype for i in inputs if i.is_floating_point()), torch.float64)
    model = model.to(dtype)
    other = copy.deepcopy(model)
    with torch.no_grad():
        compiled, report = rewritten(other, rest, **options)
        same(compiled(*inputs), copy.deepcopy(model)(*inputs), tolerance)
    other = copy.deepcopy(model)
    compiled, _ = rewritten(other, rest, **options)
    pairs = []
    for function, module in ((compiled, other), (model, model)):
        leaves = [i.clone().requires_grad_(i.is_floating_point()) for i in inputs]
        out = function(*leaves)
        loss = torch.stack([o.double().square().mean() for o in floating(out)]).sum()
        loss.backward()
        gradients = [t.grad for t in (*leaves, *module.parameters()) if t.requires_grad]
        pairs.append((out, gradients, list(module.buffers())))
    for ours, eager in zip(*pairs, strict=True):
        same(ours, eager, tolerance)
    return report


def floating(values: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(values)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def same(ours: Any, eager: Any, tolerance: float) -> None:
    """Values, shapes, dtypes and memory formats of all tensors in both."""
    leaves = [pytree.tree_leaves(values) for values in (ours, eager)]
    for a, b in zip(*leaves, strict=True):
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
        if b.dim() == 4:
            for form in (torch.contiguous_format, torch.channels_last):
                assert a.is_contiguous(memory_format=form) == b.is_contiguous(memory_format=form)
        if not b.is_floating_point():
            assert torch.equal(a, b)
        else:
            assert relative(a, b) <= tolerance or (a.double() - b.double()).norm() < 1e-14
