"""batch_norm_relu in Triton: what the op calls; the kernels are in jit/batch_norm_relu.py.

All maps are channels_last ``[N, C, H, W]``, float32, float16 or bfloat16; weight and bias ``[C]``
are of any floating dtype. Statistics are ``[2 C + 1]`` in float32: the mean of every channel, its
biased variance, and of how many values they are. P is N * H * W.
"""

import torch
import triton
from torch import Tensor

from .batch_norm_statistics import ADDED_CHANNELS, BACKWARD_BYTES, FORWARD_BYTES, Tiles
from .jit.batch_norm_relu import add_sums_kernel, apply_kernel, grad_input_kernel, grad_sums_kernel
from .launch import empty_map, launches_on_tensor_device, next_power_of_2, wrap_triton


@launches_on_tensor_device
def batch_norm_relu(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> Tensor:
    """x ``[N, C, H, W]`` normalised by statistics, times weight, plus bias and residual, above zero
    if relu."""
    batch, channels, height, width = x.shape
    out = empty_map(x, (batch, channels, height, width), channels_last=True)
    if x.numel() == 0:
        return out
    tiles = Tiles.of(x, FORWARD_BYTES)
    wrap_triton(apply_kernel)[tiles.grid()](
        x,
        statistics,
        weight.contiguous(),
        bias.contiguous(),
        x if residual is None else residual,
        out,
        *tiles.sizes,
        eps,
        HAS_RESIDUAL=residual is not None,
        RELU=relu,
        **tiles.constants,
    )
    return out


@launches_on_tensor_device
def batch_norm_relu_grad_sums(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """For grad, that of :func:`batch_norm_relu`'s map: sums over its pixels ``[2, C]`` in float32,
    which are the gradients of bias and weight, and that of residual, ``[0]`` without one."""
    batch, channels, height, width = x.shape
    if residual is None:
        grad_residual = x.new_empty(0)
    else:
        grad_residual = empty_map(x, (batch, channels, height, width), channels_last=True)
    if x.numel() == 0:
        return x.new_zeros((2, channels), dtype=torch.float32), grad_residual
    tiles = Tiles.of(x, BACKWARD_BYTES)
    programs = tiles.programs_of_sums()
    sums = x.new_empty((2, programs, channels), dtype=torch.float32)
    wrap_triton(grad_sums_kernel)[(tiles.channel_blocks * programs,)](
        grad,
        x,
        statistics,
        weight.contiguous(),
        bias.contiguous(),
        x if residual is None else residual,
        grad_residual,
        sums,
        *tiles.sizes,
        eps,
        HAS_RESIDUAL=residual is not None,
        RELU=relu,
        **tiles.constants,
    )
    total = x.new_empty((2, channels), dtype=torch.float32)
    wrap_triton(add_sums_kernel)[(triton.cdiv(channels, ADDED_CHANNELS),)](
        sums,
        statistics,
        total,
        tiles.sizes[1],
        programs,
        eps,
        CHANNEL_DIVISOR=tiles.constants["CHANNEL_DIVISOR"],
        BLOCK_R=next_power_of_2(programs),
        BLOCK_C=ADDED_CHANNELS,
    )
    return total, grad_residual


@launches_on_tensor_device
def batch_norm_relu_grad_input(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    sums: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    eps: float,
) -> Tensor:
    """The gradient of x, of which statistics are functions. sums are those of
    :func:`batch_norm_relu_grad_sums`, over all pixels that statistics are of. With a residual, grad
    is the residual's gradient and relu is False."""
    batch, channels, height, width = x.shape
    grad_x = empty_map(x, (batch, channels, height, width), channels_last=True)
    if x.numel() == 0:
        return grad_x
    tiles = Tiles.of(x, BACKWARD_BYTES)
    wrap_triton(grad_input_kernel)[tiles.grid()](
        grad,
        x,
        statistics,
        weight.contiguous(),
        bias.contiguous(),
        sums,
        grad_x,
        *tiles.sizes,
        eps,
        RELU=relu,
        **tiles.constants,
    )
    return grad_x


@launches_on_tensor_device
def batch_norm_relu_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x, and what :func:`batch_norm_relu_grad_sums` returns, where statistics are
    of x alone."""
    sums, grad_residual = batch_norm_relu_grad_sums(
        grad, x, statistics, weight, bias, residual, relu, eps
    )
    if residual is not None:
        grad, relu = grad_residual, False
    grad_x = batch_norm_relu_grad_input(grad, x, statistics, sums, weight, bias, relu, eps)
    return grad_x, sums, grad_residual
