"""``torch.compile(model, backend="pspfast")``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch._dynamo.backends.registry import CompilerFn, lookup_backend

from pspfast.rewrite.derived import lift_derived, with_derived
from pspfast.rewrite.functional import restore_in_place, write_into_residuals
from pspfast.rewrite.graph import Graph
from pspfast.rewrite.libraries import prepare_libraries
from pspfast.rewrite.report import Report
from pspfast.rewrite.rules import RULES
from pspfast.rewrite.tracing import CannotTraceError, trace

_log = logging.getLogger(__name__)
_REST = ("inductor", "eager")

# At import: before the frames of a first model are traced.
prepare_libraries()


def backend(
    module: fx.GraphModule,
    example_inputs: list[Any],
    *,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Rewrites a graph that Dynamo captured onto this project's operators.

    Args:
        module: as Dynamo hands it to a backend.
        example_inputs: likewise.
        options: ``{"rest": "inductor"}``, the default, or ``{"rest": "eager"}``: what compiles the
            rewritten graph; eager is no compiler and starts in seconds.

    Raises:
        ValueError: another option, or another value of ``rest``.
    """
    return rewrite_and_compile(module, example_inputs, _rest(options or {}), Report())


def rewrite_and_compile(
    module: fx.GraphModule, example_inputs: list[Any], rest: str | CompilerFn, report: Report
) -> Callable[..., Any]:
    """:func:`backend` that reports what it does."""
    compiler = lookup_backend(rest)
    try:
        traced, mode = trace(module, example_inputs)
    except CannotTraceError as error:
        _log.warning("a graph stays as it was: %s", error)
        report.left("all", None, str(error))
        return compiler(module, example_inputs)
    graph = Graph(traced, mode, report)
    for rule in RULES:
        graph.apply(rule)
    restore_in_place(traced.graph, graph.is_inference)
    derived = lift_derived(traced)
    write_into_residuals(traced.graph)
    traced.graph.lint()
    traced.recompile()
    if derived is None:
        return compiler(traced, example_inputs)
    return with_derived(derived, compiler, traced, example_inputs)


def _rest(options: Mapping[str, Any]) -> str:
    unknown = [name for name in options if name != "rest"]
    if unknown:
        raise ValueError(f"pspfast: options: expected 'rest', got {unknown[0]!r}")
    rest = options.get("rest", "inductor")
    if rest not in _REST:
        raise ValueError(f"pspfast: options: rest: expected 'inductor' or 'eager', got {rest!r}")
    return rest
