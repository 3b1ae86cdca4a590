"""What ``torch.compile(model, backend="pspfast")`` does to a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from pspfast.rewrite.report import Applied, Left, Report


class Explanation:
    """What was found in the graphs of a model; printing it gives a table.

    Attributes:
        applied: the rules at work, each with ``rule``, ``where`` (a module's path), ``replaced``
            (functions), ``before`` and ``after`` (multiplications and bytes).
        left: what looked like a match and stayed, each with ``rule``, ``where`` and ``reason``.
    """

    def __init__(self, report: Report) -> None:
        self.applied: list[Applied] = report.applications
        self.left: list[Left] = report.leavings

    def __str__(self) -> str:
        lines = ["no rule applies"]
        if self.applied:
            header = ["rule", "where", "replaces", "multiplications", "MB read and written"]
            lines = _table([header, *(_row(a) for a in self.applied)])
        if self.left:
            lines += ["", "left as it was:"]
            lines += _table([[entry.rule, entry.where, entry.reason] for entry in self.left])
        return "\n".join(lines)


def explain(model: Callable[..., Any], *inputs: Any, **kwargs: Any) -> Explanation:
    """Runs a model once as ``torch.compile(model, backend="pspfast")`` would, without a compiler.

    Call it as the model will be called: under ``torch.no_grad()`` for inference, in training mode
    for training, with inputs of the usual size. Compiled functions are forgotten by it
    (``torch.compiler.reset()``).

    Args:
        model: a module or function.
        inputs: what it is called with.
        kwargs: likewise.

    Returns:
        What the rules replace, with multiplications and bytes before and after, and what they
        leave, with the reason; print it. A module's buffers and torch's random state are afterwards
        what they were.

    Examples:
        >>> upsample = nn.Upsample(scale_factor=4, mode="bilinear")
        >>> network = nn.Sequential(upsample, nn.Conv2d(8, 2, 1))
        >>> with torch.no_grad():
        ...     explanation = explain(network, torch.randn(1, 8, 16, 16))
        >>> [applied.rule for applied in explanation.applied]
        ['pointwise_before_upsample']
    """
    # They import torch's compiler, which takes longer than the rest of pspfast.
    from pspfast.rewrite.backend import rewrite_and_compile
    from pspfast.rewrite.report import Report

    report = Report(counts=True)

    def compiler(module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        return rewrite_and_compile(module, example_inputs, "eager", report)

    buffers = list(model.buffers()) if isinstance(model, nn.Module) else []
    kept = [buffer.clone() for buffer in buffers]
    torch.compiler.reset()
    try:
        with torch.random.fork_rng():
            torch.compile(model, backend=compiler)(*inputs, **kwargs)
    finally:
        torch.compiler.reset()
        with torch.no_grad():
            for buffer, values in zip(buffers, kept, strict=True):
                buffer.copy_(values)
    return Explanation(report)


def _row(applied: Applied) -> list[str]:
    counted = Counter(applied.replaced)
    replaced = " + ".join(f"{n} {name}" if n > 1 else name for name, n in counted.items())
    numbers = ["", ""]
    if applied.before and applied.after:
        before, after = applied.before, applied.after
        numbers = [
            f"{before.multiplications / 1e6:,.1f} → {after.multiplications / 1e6:,.1f} M",
            f"{before.bytes / 1e6:,.1f} → {after.bytes / 1e6:,.1f}",
        ]
    return [applied.rule, applied.where, replaced, *numbers]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
