"""The map and all levels of its pyramid, upsampled, in one tensor (arXiv 1612.01105 §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import check_bins, check_map, check_priors, format_of, is_autocast


def pyramid_concat(
    x: Tensor, priors: Tensor, bins: Sequence[int], align_corners: bool = True
) -> Tensor:
    """Upsample every level of ``priors`` to the size of ``x`` and concatenate, in one write.

    Equals ``torch.cat([x, up(level 1), …, up(level L)], 1)`` where up is
    ``F.interpolate(mode="bilinear")``. A convolution over the result need not make it:
    :func:`pyramid_conv2d`.

    Args:
        x: ``[N, C, H, W]``, any strides; float32, float16 or bfloat16, on the CPU float64 too.
        priors: ``[N, R, S]`` with S the sum of b²: levels in the order of ``bins``, each row by
            row, as :func:`pyramid_pool` returns them; dtype and device of ``x``.
        bins: b of each level: one to eight levels whose b sum to at most 64.
        align_corners: as in ``F.interpolate``.

    Returns:
        ``[N, C + L R, H, W]`` for L levels, in the memory format of ``x``. Under autocast, where
        dtypes may differ, in the wider one, as ``torch.cat``.

    Raises:
        ValueError: a shape, device or ``bins`` is not as above.
        TypeError: a dtype is not as above.

    A prior that is not finite makes NaN of its channel of its level, everywhere.

    The gradient of ``x`` is a view of the result's; that of ``priors`` is a gather and
    bit-reproducible.

    Examples:
        >>> x, priors = torch.zeros(2, 8, 9, 13), torch.ones(2, 4, 1 + 4)
        >>> pyramid_concat(x, priors, (1, 2)).shape  # 8 channels and two levels of 4
        torch.Size([2, 16, 9, 13])
    """
    if is_autocast(x):
        dtype = torch.promote_types(x.dtype, priors.dtype)
        x, priors = x.to(dtype), priors.to(dtype)
    match backends.select("pyramid_concat", x):
        case "reference":
            _check_inputs(x, priors, bins)
            return pyramid_concat_reference(x, priors, bins, align_corners)
        case "triton":
            _check_inputs(x, priors, bins)
            return torch.ops.pspfast.pyramid_concat_triton(x, priors, bins, align_corners)
        case _:
            try:
                return torch.ops.pspfast.pyramid_concat(x, priors, bins, align_corners)
            except ValueError:
                _check_inputs(x, priors, bins)
                raise


def pyramid_concat_reference(
    x: Tensor, priors: Tensor, bins: Sequence[int], align_corners: bool = True
) -> Tensor:
    """:func:`pyramid_concat` in plain PyTorch."""
    levels = priors.split([b * b for b in bins], dim=2)
    upsampled = [
        F.interpolate(
            level.unflatten(2, (b, b)), x.shape[2:], mode="bilinear", align_corners=align_corners
        )
        for b, level in zip(bins, levels, strict=True)
    ]
    return torch.cat([x, *upsampled], dim=1)


def _check_inputs(x: Tensor, priors: Tensor, bins: Sequence[int]) -> None:
    check_map("pyramid_concat", "x", x)
    check_bins("pyramid_concat", bins)
    check_priors("pyramid_concat", priors, x, bins)


def _fake(x: Tensor, priors: Tensor, bins: Sequence[int], align_corners: bool) -> Tensor:
    _check_inputs(x, priors, bins)
    return torch.empty(
        (x.shape[0], x.shape[1] + len(bins) * priors.shape[1], *x.shape[2:]),
        dtype=x.dtype,
        device=x.device,
        memory_format=format_of(x),
    )


def _backward_fake(grad: Tensor, bins: Sequence[int], align_corners: bool, channels: int) -> Tensor:
    return grad.new_empty(grad.shape[0], channels, sum(b * b for b in bins))


def _register_autograd(forward_op: str, backward_op: str) -> None:
    """Concatenation is linear: the backward's own backward is a concatenation with zeros."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, priors, ctx.bins, ctx.align_corners = inputs
        ctx.channels = (x.shape[1], priors.shape[1])

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_channels, channels = ctx.channels
        op = getattr(torch.ops.pspfast, backward_op)
        grad_x = grad[:, :x_channels] if ctx.needs_input_grad[0] else None
        grad_priors = None
        if ctx.needs_input_grad[1]:
            grad_priors = op(grad, ctx.bins, ctx.align_corners, channels)
        return grad_x, grad_priors, None, None

    def setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, ctx.bins, ctx.align_corners, channels = inputs
        batch, map_channels, *size = grad.shape
        ctx.shape = (batch, map_channels - len(ctx.bins) * channels, *size)

    def double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor, None, None, None]:
        op = getattr(torch.ops.pspfast, forward_op)
        zeros = grad_grad.new_zeros(ctx.shape)
        return op(zeros, grad_grad, ctx.bins, ctx.align_corners), None, None, None

    torch.library.register_autograd(f"pspfast::{forward_op}", backward, setup_context=setup_context)
    torch.library.register_autograd(
        f"pspfast::{backward_op}", double_backward, setup_context=setup_backward_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::pyramid_concat", _fake)
    torch.library.register_fake("pspfast::pyramid_concat_backward", _backward_fake)
    _register_autograd("pyramid_concat", "pyramid_concat_backward")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import pyramid_upsample as kernels

    @torch.library.triton_op("pspfast::pyramid_concat_triton", mutates_args=())
    def _triton(x: Tensor, priors: Tensor, bins: Sequence[int], align_corners: bool) -> Tensor:
        return kernels.pyramid_concat_forward(x, priors, bins, align_corners)

    @torch.library.triton_op("pspfast::pyramid_concat_backward_triton", mutates_args=())
    def _backward_triton(
        grad: Tensor, bins: Sequence[int], align_corners: bool, channels: int
    ) -> Tensor:
        return kernels.pyramid_concat_backward(grad, bins, align_corners, channels)

    _register_autograd("pyramid_concat_triton", "pyramid_concat_backward_triton")
