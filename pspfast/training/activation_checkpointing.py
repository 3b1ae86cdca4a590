"""Residual blocks that are computed again in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pspfast.models import PSPNet


def residual_blocks(model: PSPNet) -> list[nn.Module]:
    """Those of all stages, in order."""
    return [block for i in range(1, 5) for block in getattr(model, f"layer{i}")]


def checkpoint_activations(model: PSPNet) -> None:
    """Makes the stem and each residual block keep its input only; same results and gradients."""
    for block in (model.layer0, *residual_blocks(model)):
        block.forward = _checkpointed(block, block.forward)
    _keep_what_is_saved(model)


def _keep_what_is_saved(model: PSPNet) -> None:
    """Turns off the model's own way of computing maps again, which steps aside for hooks around it:
    until the end of forward it holds what a block that is computed again need not hold."""
    forward = model.forward

    @wraps(forward)
    def with_hooks(*args: Any, **kwargs: Any) -> Any:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return forward(*args, **kwargs)

    model.forward = with_hooks  # type: ignore[method-assign]


def _checkpointed(block: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(block)

    @wraps(forward)
    def again_in_backward(x: Tensor) -> Tensor:
        # Blocks draw no random numbers.
        return checkpoint(
            forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )

    return again_in_backward


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    """Within, BatchNorm moves copies: it has moved its own when the block was computed first."""
    kept = [
        (norm, name, buffer)
        for norm in block.modules()
        if isinstance(norm, _BatchNorm)
        for name, buffer in norm.named_buffers(recurse=False)
    ]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
