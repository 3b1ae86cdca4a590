"""Whether others watch or change what a module does."""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as of_all_modules


def is_watched(module: nn.Module) -> bool:
    """Whether calling it does more than its class's ``forward``: it has hooks of any kind, or all
    modules have, or its ``forward`` has been replaced."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or of_all_modules._global_forward_hooks
        or of_all_modules._global_forward_pre_hooks
        or of_all_modules._global_backward_hooks
        or of_all_modules._global_backward_pre_hooks
        or "forward" in module.__dict__
    )
