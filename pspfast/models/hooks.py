"""Whether others watch or change what a module does."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook


def is_watched(module: nn.Module) -> bool:
    """Whether calling it does more than its class's ``forward``: it has hooks of any kind, or all
    modules have, or its ``forward`` has been replaced."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
        or "forward" in module.__dict__
    )
