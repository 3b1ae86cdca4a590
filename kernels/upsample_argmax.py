"""upsample_argmax in Triton: what the op calls; its kernel is in jit/."""

import torch
from torch import Tensor

from .jit.upsample_argmax import argmax_kernel
from .launch import launches_on_tensor_device, next_power_of_2, wrap_triton
from .upsample_tiles import plan


@launches_on_tensor_device
def upsample_argmax(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """The class of the largest logit of every pixel, ``[N, H, W]``: of NaNs the first, of equal
    logits the first."""
    labels = logits.new_empty((logits.shape[0], height, width), dtype=dtype)
    if labels.numel() > 0:
        # Of each element a program holds the largest logit and its class.
        p = plan(logits, height, width, align_corners, numbers=2)
        tile_width = p.tile_width()
        constants = p.constants | {"BLOCK_W": next_power_of_2(tile_width)}
        wrap_triton(argmax_kernel)[p.grid(tile_width)](
            p.logits, labels, *p.sizes, tile_width, **constants
        )
    return labels
