"""What other libraries do in their models that would cut a graph in pieces."""

from __future__ import annotations

import torch
from torch._dynamo.trace_rules import add_module_init_func


def prepare_transformers() -> None:
    """Its models install hooks at their first call, under a lock. Dynamo cannot trace a lock: it
    would split the function that calls the model, and a loss or labels stay apart from the logits.
    The hooks can be installed while it traces, as nothing of that depends on the inputs."""
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:
        return  # A version without these hooks.
    torch.compiler.assume_constant_result(maybe_install_capturing_hooks)


def prepare_libraries() -> None:
    """Prepares a library when Dynamo meets its first function."""
    add_module_init_func("transformers", prepare_transformers)
