"""Mixed maps of any sizes interpolated into a sum: what a GPU does of ``pyramid_conv2d`` and
``upsample_concat_conv2d`` behind the matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import is_channels_last

# kMaxLevels of csrc/geometry.h.
_MAX_LEVELS = 8


def is_mixed(of_map: Sequence[int], size: Sequence[int], kernel_size: int) -> bool:
    """Whether a map is mixed at its own resolution. With k = 3 the mixed map has nine numbers for
    one of the result's: at less than half of its positions, interpolation costs less memory."""
    if of_map[0] > size[0] or of_map[1] > size[1] or list(of_map) == list(size):
        return False
    return kernel_size == 1 or 2 * of_map[0] * of_map[1] <= size[0] * size[1]


def mix(x: Tensor, weight: Tensor) -> Tensor:
    """``mixed[n, i, j, ky, kx, o]``, the sum over c of ``weight[o, c, ky, kx]`` times
    ``x[n, c, i, j]``: ``[N, H, W, k, k, O]`` of ``[N, C, H, W]`` and ``[O, C, k, k]``."""
    out_channels, channels, k, _ = weight.shape
    filters = weight.permute(2, 3, 0, 1).reshape(-1, channels)
    return F.linear(x.permute(0, 2, 3, 1), filters).unflatten(3, (k, k, out_channels))


def upsample_add(
    backend: str,
    base: Tensor | None,
    mixed: Sequence[Tensor],
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
    channels_last: bool,
) -> Tensor:
    """``base`` plus ``bias`` plus all of ``mixed``, each tap interpolated to ``size`` and moved by
    its place in the kernel, then the ReLU.

    Args:
        backend: ``"cuda"`` or ``"triton"``.
        base: ``[N, O, H, W]`` or nothing; channels_last or contiguous as ``channels_last`` says.
        mixed: ``[N, rows, cols, k, k, O]`` each, at least one, in the dtype of ``base`` or float32.
        bias: ``[O]`` or nothing.
        size: H and W.
        align_corners: of the bilinear interpolation.
        nearest: whether it is "nearest" instead.
        relu: whether negative results become zero.
        channels_last: whether the result is.
    """
    name = "upsample_add_triton" if backend == "triton" else "upsample_add"
    op = getattr(torch.ops.pspfast, name)
    interpolation = (size, align_corners, nearest)
    while len(mixed) > _MAX_LEVELS:
        first, mixed = mixed[:_MAX_LEVELS], mixed[_MAX_LEVELS:]
        base = op(base, first, None, *interpolation, False, channels_last)
    return op(base, mixed, bias, *interpolation, relu, channels_last)


def _fake(
    base: Tensor | None,
    mixed: Sequence[Tensor],
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
    channels_last: bool,
) -> Tensor:
    first = mixed[0]
    return torch.empty(
        (first.shape[0], first.shape[5], *size),
        dtype=first.dtype if base is None else base.dtype,
        device=first.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _backward_fake(
    grad: Tensor,
    sizes: Sequence[int],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
    in_float32: bool,
) -> Tensor:
    batch, channels = grad.shape[:2]
    positions = sum(rows * cols for rows, cols in zip(sizes[::2], sizes[1::2], strict=True))
    numel = batch * positions * kernel_size * kernel_size * channels
    return grad.new_empty(numel, dtype=torch.float32 if in_float32 else grad.dtype)


def _split(
    grads: Tensor, shape: Sequence[int], sizes: Sequence[int], kernel_size: int
) -> list[Tensor]:
    """Gradients of the levels, which lie one behind the other, of a map of this shape."""
    batch, channels = shape[:2]
    shapes = [
        (batch, rows, cols, kernel_size, kernel_size, channels)
        for rows, cols in zip(sizes[::2], sizes[1::2], strict=True)
    ]
    parts = grads.split([torch.Size(s).numel() for s in shapes])
    return [part.view(s) for part, s in zip(parts, shapes, strict=True)]


def _register_autograd(forward_op: str, backward_op: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mixed, _, _, ctx.align_corners, ctx.nearest, ctx.relu, _ = inputs
        ctx.sizes = [s for level in mixed for s in level.shape[1:3]]
        ctx.kernel_size = mixed[0].shape[3]
        ctx.in_float32 = mixed[0].dtype == torch.float32
        ctx.save_for_backward(*([output] if ctx.relu else []))

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, *ctx.saved_tensors, 0)
        needs_base, needs_mixed, needs_bias, *_ = ctx.needs_input_grad
        # One for each level, or one for all of them.
        needed = any(needs_mixed) if isinstance(needs_mixed, Sequence) else needs_mixed
        grad_mixed: Sequence[Tensor | None] = [None] * (len(ctx.sizes) // 2)
        if needed:
            op = getattr(torch.ops.pspfast, backward_op)
            grads = op(
                grad, ctx.sizes, ctx.kernel_size, ctx.align_corners, ctx.nearest, ctx.in_float32
            )
            grad_mixed = _split(grads, grad.shape, ctx.sizes, ctx.kernel_size)
        grad_bias = grad.sum((0, 2, 3)) if needs_bias else None
        return grad if needs_base else None, grad_mixed, grad_bias, *[None] * 5

    def setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, ctx.sizes, ctx.kernel_size, ctx.align_corners, ctx.nearest, _ = inputs
        ctx.shape, ctx.dtype, ctx.channels_last = grad.shape, grad.dtype, is_channels_last(grad)

    def double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Any, ...]:
        op = getattr(torch.ops.pspfast, forward_op)
        mixed = _split(grad_grad.to(ctx.dtype), ctx.shape, ctx.sizes, ctx.kernel_size)
        interpolation = (ctx.shape[2:], ctx.align_corners, ctx.nearest)
        return op(None, mixed, None, *interpolation, False, ctx.channels_last), *[None] * 5

    torch.library.register_autograd(f"pspfast::{forward_op}", backward, setup_context=setup_context)
    torch.library.register_autograd(
        f"pspfast::{backward_op}", double_backward, setup_context=setup_backward_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::upsample_add", _fake)
    torch.library.register_fake("pspfast::upsample_add_backward", _backward_fake)
    _register_autograd("upsample_add", "upsample_add_backward")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import upsample_add as kernels

    @torch.library.triton_op("pspfast::upsample_add_triton", mutates_args=())
    def _triton(
        base: Tensor | None,
        mixed: Sequence[Tensor],
        bias: Tensor | None,
        size: Sequence[int],
        align_corners: bool,
        nearest: bool,
        relu: bool,
        channels_last: bool,
    ) -> Tensor:
        return kernels.upsample_add_forward(
            mixed[0], base, mixed, bias, size, align_corners, nearest, relu, channels_last
        )

    @torch.library.triton_op("pspfast::upsample_add_backward_triton", mutates_args=())
    def _backward_triton(
        grad: Tensor,
        sizes: Sequence[int],
        kernel_size: int,
        align_corners: bool,
        nearest: bool,
        in_float32: bool,
    ) -> Tensor:
        dtype = torch.float32 if in_float32 else grad.dtype
        return kernels.upsample_add_backward(
            grad, sizes, kernel_size, align_corners, nearest, dtype
        )

    _register_autograd("upsample_add_triton", "upsample_add_backward_triton")
