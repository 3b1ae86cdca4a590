"""batch_norm_relu in Triton: what the op calls; the kernels are in jit/batch_norm_relu.py.

All maps are channels_last ``[N, C, H, W]`` with at least one element, float32, float16 or bfloat16;
weight and bias ``[C]`` are of any floating dtype, mean and var ``[C]`` float32. P is N * H * W.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .jit.batch_norm_relu import (
    add_sums_kernel,
    apply_kernel,
    grad_input_kernel,
    grad_sums_kernel,
    merge_moments_kernel,
    moments_kernel,
)
from .launch import (
    column_block,
    empty_map,
    launches_on_tensor_device,
    next_power_of_2,
    width_divisor,
    wrap_triton,
)

# Bytes of a tile: four loads of 16 bytes of each of 128 threads, which keep two numbers of each
# element for the moments. Backward loads twice as many maps.
_FORWARD_BYTES = 8192
_BACKWARD_BYTES = 4096
# A single load of each thread, where larger tiles would be too few.
_LEAST_BYTES = 2048
# A large GPU has 132 multiprocessors, and four programs on each leave 128 registers to a thread.
# Kernels that sum have no more programs than that: a single program then adds what they leave.
_PROGRAMS = 132 * 4
# Channels whose sums a program adds: 16 bytes of each of up to 528 programs.
_ADDED_CHANNELS = 4


class _Tiles(NamedTuple):
    """How programs share a matrix [P, C]."""

    sizes: tuple[int, int]
    constants: dict[str, Any]
    channel_blocks: int
    pixel_blocks: int

    def grid(self) -> tuple[int]:
        """A program for every tile."""
        return (self.channel_blocks * self.pixel_blocks,)

    def programs_of_sums(self) -> int:
        """Programs that share the pixels of a block of channels in a kernel that sums them."""
        return min(self.pixel_blocks, max(_PROGRAMS // self.channel_blocks, 1))


def _tiles(x: Tensor, most_bytes: int) -> _Tiles:
    channels = x.shape[1]
    pixels = x.numel() // channels
    block_c = column_block(channels)
    channel_blocks = triton.cdiv(channels, block_c)
    pixel_bytes = block_c * x.element_size()
    block_p, least_p = most_bytes // pixel_bytes, _LEAST_BYTES // pixel_bytes
    while block_p > least_p and channel_blocks * triton.cdiv(pixels, block_p) < _PROGRAMS:
        block_p //= 2
    divisor = width_divisor(channels)
    return _Tiles(
        (pixels, channels // divisor),
        {"CHANNEL_DIVISOR": divisor, "BLOCK_P": block_p, "BLOCK_C": block_c},
        channel_blocks,
        triton.cdiv(pixels, block_p),
    )


def _moments(x: Tensor, tiles: _Tiles) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    programs = tiles.programs_of_sums()
    moments = x.new_empty((2, programs, channels), dtype=torch.float32)
    wrap_triton(moments_kernel)[(tiles.channel_blocks * programs,)](
        x, moments, *tiles.sizes, **tiles.constants
    )
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    wrap_triton(merge_moments_kernel)[(triton.cdiv(channels, _ADDED_CHANNELS),)](
        x,
        moments,
        mean,
        var,
        *tiles.sizes,
        programs,
        BLOCK_R=next_power_of_2(programs),
        **tiles.constants | {"BLOCK_C": _ADDED_CHANNELS},
    )
    return mean, var


@launches_on_tensor_device
def batch_norm_relu_forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x ``[N, C, H, W]`` normalised by its mean and variance over pixels, times weight, plus bias
    and residual, above zero if relu; and this mean and biased variance, float32 ``[C]``."""
    mean, var = _moments(x, _tiles(x, _FORWARD_BYTES))
    return batch_norm_relu_apply(x, mean, var, weight, bias, residual, relu, eps), mean, var


@launches_on_tensor_device
def batch_norm_relu_apply(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> Tensor:
    """The map of :func:`batch_norm_relu_forward` once more, bit for bit, of its mean and var."""
    batch, channels, height, width = x.shape
    out = empty_map(x, (batch, channels, height, width), channels_last=True)
    tiles = _tiles(x, _FORWARD_BYTES)
    wrap_triton(apply_kernel)[tiles.grid()](
        x,
        mean,
        var,
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
def batch_norm_relu_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and residual, ``[0]`` without a residual, for grad, that of
    :func:`batch_norm_relu_forward`'s map. mean and var are functions of x here."""
    batch, channels, height, width = x.shape
    weight, bias = weight.contiguous(), bias.contiguous()
    tiles = _tiles(x, _BACKWARD_BYTES)
    programs = tiles.programs_of_sums()
    sums = x.new_empty((2, programs, channels), dtype=torch.float32)
    if residual is None:
        grad_residual = x.new_empty(0)
    else:
        grad_residual = empty_map(x, (batch, channels, height, width), channels_last=True)
    wrap_triton(grad_sums_kernel)[(tiles.channel_blocks * programs,)](
        grad,
        x,
        mean,
        var,
        weight,
        bias,
        x if residual is None else residual,
        grad_residual,
        sums,
        *tiles.sizes,
        eps,
        HAS_RESIDUAL=residual is not None,
        RELU=relu,
        **tiles.constants,
    )
    grad_weight, grad_bias = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    wrap_triton(add_sums_kernel)[(triton.cdiv(channels, _ADDED_CHANNELS),)](
        sums,
        var,
        grad_bias,
        grad_weight,
        tiles.sizes[1],
        programs,
        eps,
        CHANNEL_DIVISOR=tiles.constants["CHANNEL_DIVISOR"],
        BLOCK_R=next_power_of_2(programs),
        BLOCK_C=_ADDED_CHANNELS,
    )
    grad_x = empty_map(x, (batch, channels, height, width), channels_last=True)
    wrap_triton(grad_input_kernel)[tiles.grid()](
        grad if residual is None else grad_residual,
        x,
        mean,
        var,
        weight,
        bias,
        grad_bias,
        grad_weight,
        grad_x,
        *tiles.sizes,
        eps,
        RELU=relu and residual is None,
        **tiles.constants,
    )
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_residual
