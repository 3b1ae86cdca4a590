"""All adaptive average pools of the pyramid in one read of the map (arXiv 1612.01105 §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import check_bins, check_map, is_channels_last


def pyramid_pool(x: Tensor, bins: Sequence[int]) -> Tensor:
    """Pool ``x`` into b by b bins for every b in ``bins``.

    Level b is ``F.adaptive_avg_pool2d(x, b)``: its bin (u, v) is the mean over the rows
    floor(u H / b) to ceil((u + 1) H / b) and likewise over the columns. Sums are kept in float32
    (float64 for float64 input).

    Args:
        x: ``[N, C, H, W]`` with H, W >= 1, any strides; float32, float16 or bfloat16, on the CPU
            float64 too. Contiguous and channels_last maps are read in place, others are copied.
        bins: one to eight levels whose b sum to at most 64.

    Returns:
        ``[N, C, S]`` with S the sum of b²: levels in the order of ``bins``, each row by row. It has
        ``[N, S, C]`` order in memory if ``x`` is channels_last.

    Raises:
        ValueError: the shape of ``x`` or ``bins`` is not as above.
        TypeError: ``x`` is of another dtype.

    The backward is a gather and writes each element once: it is bit-reproducible.

    Examples:
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> pyramid_pool(x, (1, 2))
        tensor([[[ 7.5000,  2.5000,  4.5000, 10.5000, 12.5000]]])
    """
    match backends.select("pyramid_pool", x):
        case "reference":
            _check_inputs(x, bins)
            return pyramid_pool_reference(x, bins)
        case "triton":
            _check_inputs(x, bins)
            return torch.ops.pspfast.pyramid_pool_triton(x, bins)
        case _:
            try:
                return torch.ops.pspfast.pyramid_pool(x, bins)
            except ValueError:
                _check_inputs(x, bins)
                raise


def pyramid_pool_reference(x: Tensor, bins: Sequence[int]) -> Tensor:
    """:func:`pyramid_pool` in plain PyTorch."""
    return torch.cat([F.adaptive_avg_pool2d(x, b).flatten(2) for b in bins], dim=2)


def _check_inputs(x: Tensor, bins: Sequence[int]) -> None:
    check_map("pyramid_pool", "x", x)
    check_bins("pyramid_pool", bins)


def _fake(x: Tensor, bins: Sequence[int]) -> Tensor:
    _check_inputs(x, bins)
    batch, channels = x.shape[:2]
    bin_count = sum(b * b for b in bins)
    if is_channels_last(x):
        return x.new_empty(batch, bin_count, channels).transpose(1, 2)
    return x.new_empty(batch, channels, bin_count)


def _backward_fake(
    grad: Tensor, bins: Sequence[int], height: int, width: int, channels_last: bool
) -> Tensor:
    return torch.empty(
        (grad.shape[0], grad.shape[1], height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _register_autograd(forward_op: str, backward_op: str) -> None:
    """Pooling is linear: its backward is the transposed map, whose own backward is pooling."""

    def setup_context(ctx: Any, inputs: tuple[Tensor, list[int]], output: Tensor) -> None:
        x, ctx.bins = inputs
        ctx.size = x.shape[2:]
        ctx.channels_last = is_channels_last(x)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        op = getattr(torch.ops.pspfast, backward_op)
        return op(grad, ctx.bins, *ctx.size, ctx.channels_last), None

    def setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.bins = inputs[1]

    def double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        op = getattr(torch.ops.pspfast, forward_op)
        return op(grad_grad, ctx.bins), None, None, None, None

    torch.library.register_autograd(f"pspfast::{forward_op}", backward, setup_context=setup_context)
    torch.library.register_autograd(
        f"pspfast::{backward_op}", double_backward, setup_context=setup_backward_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::pyramid_pool", _fake)
    torch.library.register_fake("pspfast::pyramid_pool_backward", _backward_fake)
    _register_autograd("pyramid_pool", "pyramid_pool_backward")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import pyramid_pool as kernels

    @torch.library.triton_op("pspfast::pyramid_pool_triton", mutates_args=())
    def _triton(x: Tensor, bins: Sequence[int]) -> Tensor:
        return kernels.pyramid_pool_forward(x, bins)

    @torch.library.triton_op("pspfast::pyramid_pool_backward_triton", mutates_args=())
    def _backward_triton(
        grad: Tensor, bins: Sequence[int], height: int, width: int, channels_last: bool
    ) -> Tensor:
        return kernels.pyramid_pool_backward(grad, bins, height, width, channels_last)

    _register_autograd("pyramid_pool_triton", "pyramid_pool_backward_triton")
