"""What other libraries do in their models that would cut a graph in pieces."""

from __future__ import annotations

import torch
from torch._dynamo.comptime import ComptimeContext, comptime
from torch._dynamo.trace_rules import add_module_init_func


def prepare_transformers() -> None:
    """Its models install hooks at their first call, under a lock. Dynamo cannot trace a lock: it
    would split the function that calls the model, and a loss or labels stay apart from the logits.
    The hooks can be installed while it traces, as nothing of that depends on the inputs."""
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks as install
    except ImportError:
        return  # A version without these hooks.

    def install_on_traced(context: ComptimeContext) -> None:
        # The model itself; what Dynamo knows of it is private.
        traced = context.get_local("model")._i_will_not_complain_if_bc_breaks_VariableTracker()
        install(traced.value)  # type: ignore[attr-defined]

    @torch.compiler.substitute_in_graph(install, skip_signature_check=True)
    def install_while_tracing(model: object) -> None:
        comptime(install_on_traced)


def prepare_libraries() -> None:
    """Prepares a library when Dynamo meets its first function."""
    add_module_init_func("transformers", prepare_transformers)
