"""upsample_softmax in Triton: what the ops call; its kernel is in jit/."""

import torch
from torch import Tensor

from .jit.upsample_softmax import softmax_kernel
from .launch import launches_on_tensor_device, wrap_triton
from .upsample_tiles import plan


@launches_on_tensor_device
def upsample_softmax(
    logits: Tensor, height: int, width: int, align_corners: bool, flip: bool, factor: float
) -> Tensor:
    """Probabilities ``[N, K, H, W]`` times a factor, in float32 and contiguous; with ``flip``,
    columns are in reverse."""
    out = logits.new_empty((*logits.shape[:2], height, width), dtype=torch.float32)
    _softmax(out, logits, align_corners, flip, factor, add=False)
    return out


@launches_on_tensor_device
def upsample_softmax_add(
    out: Tensor, logits: Tensor, align_corners: bool, flip: bool, factor: float
) -> None:
    """Adds what :func:`upsample_softmax` returns to ``out``, of any strides."""
    _softmax(out, logits, align_corners, flip, factor, add=True)


def _softmax(
    out: Tensor, logits: Tensor, align_corners: bool, flip: bool, factor: float, add: bool
) -> None:
    if out.numel() == 0:
        return
    p = plan(logits, *out.shape[2:], align_corners)
    wrap_triton(softmax_kernel)[p.grid()](
        p.logits, out, *p.sizes, *out.stride(), factor, FLIP=flip, ADD=add, **p.constants
    )
