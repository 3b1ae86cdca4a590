"""Convolution over a map and its upsampled pyramid, without the concatenation.

A tap of a convolution mixes channels and bilinear upsampling mixes positions, so they commute. With
A[i, u] the weights that interpolate the b bins of a level along an axis, zero outside the map, and
r = k // 2, the levels' share of ``conv2d(concatenation, weight)`` is

    sum over levels, ky, kx, u, v of A[i + ky - r, u] A[j + kx - r, v] (W[:, :, ky, kx] p[u, v])

The mixing ``W p`` touches the S bins of the pyramid instead of H W pixels. What is left of the
convolution is the map's own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import (
    autocast,
    check_bias,
    check_bins,
    check_map,
    check_priors,
    check_same,
    format_of,
    is_autocast,
    sum_dtype,
)
from pspfast.ops.dilated_conv2d import dilated_conv2d
from pspfast.ops.pyramid_concat import pyramid_concat_reference
from pspfast.ops.pyramid_mix import pyramid_mix


def pyramid_conv2d(
    x: Tensor,
    priors: Tensor,
    weight: Tensor,
    bins: Sequence[int],
    align_corners: bool = True,
    *,
    bias: Tensor | None = None,
    levels_first: bool = False,
    relu: bool = False,
) -> Tensor:
    """``conv2d(pyramid_concat(x, priors, bins, align_corners), weight, bias, padding=k // 2)``.

    Neither forward nor backward makes a tensor of the concatenation's size, nor one of the
    upsampled levels.

    Args:
        x: ``[N, C, H, W]``, any strides; float32, float16 or bfloat16, on the CPU float64 too.
        priors: ``[N, R, S]`` with S the sum of b²: levels in the order of ``bins``, each row by
            row; dtype and device of ``x``.
        weight: ``[O, C + L R, k, k]`` for L levels, k = 1 or 3; dtype and device of ``x``.
        bins: b of each level: one to eight levels whose b sum to at most 64.
        align_corners: of the bilinear upsampling, as in ``F.interpolate``.
        bias: ``[O]``, added where given.
        levels_first: whether the weight's input channels are those of the levels, then those of
            ``x``; default is ``x`` first.
        relu: whether negative results become zero.

    Returns:
        ``[N, O, H, W]`` in the memory format that ``F.conv2d(x, weight)`` chooses. Under autocast
        the arguments are cast as those of ``F.conv2d`` are.

    Raises:
        ValueError: a shape, device or ``bins`` is not as above.
        TypeError: a dtype is not as above.

    A prior that is not finite makes NaN of its image.

    All gradients of the pyramid's share are gathers and bit-reproducible.

    Examples:
        >>> from pspfast.ops import pyramid_concat
        >>> x, priors = torch.randn(2, 8, 9, 13), torch.randn(2, 4, 5)
        >>> weight = torch.randn(6, 16, 3, 3)
        >>> got = pyramid_conv2d(x, priors, weight, (1, 2))
        >>> expected = F.conv2d(pyramid_concat(x, priors, (1, 2)), weight, padding=1)
        >>> torch.allclose(got, expected, atol=1e-3)
        True
    """
    if is_autocast(x):
        x, priors, weight, bias = autocast(x, priors, weight, bias)
    _check_inputs(x, priors, weight, bins, bias)
    backend = backends.select("pyramid_conv2d", x)
    if backend == "reference":
        return pyramid_conv2d_reference(
            x, priors, weight, bins, align_corners, bias, levels_first, relu
        )
    mixed, weight_x = pyramid_mix(backend, priors, weight, bins, levels_first)
    base = dilated_conv2d(x, weight_x) if weight.shape[2] == 3 else F.conv2d(x, weight_x)
    return _upsample_add(backend, base, mixed, bias, bins, align_corners, relu)


def add_pyramid(
    base: Tensor,
    priors: Tensor,
    weight: Tensor,
    bins: Sequence[int],
    align_corners: bool,
    bias: Tensor,
    relu: bool,
) -> Tensor:
    """:func:`pyramid_conv2d` where the convolution over the map, ``base [N, O, H, W]``, is there
    already; ``weight [O, L R, k, k]`` is the rest."""
    backend = backends.select("pyramid_conv2d", base)
    if backend == "reference":
        # A map without channels.
        nothing = base.new_empty((base.shape[0], 0, *base.shape[2:]))
        levels = pyramid_concat_reference(nothing, priors, bins, align_corners)
        out = base + F.conv2d(levels, weight, bias, padding=weight.shape[2] // 2)
        return out.relu() if relu else out
    mixed, _ = pyramid_mix(backend, priors, weight, bins, levels_first=False)
    return _upsample_add(backend, base, mixed, bias, bins, align_corners, relu)


def _upsample_add(
    backend: str,
    base: Tensor,
    mixed: Tensor,
    bias: Tensor | None,
    bins: Sequence[int],
    align_corners: bool,
    relu: bool,
) -> Tensor:
    op = "pyramid_upsample_add_triton" if backend == "triton" else "pyramid_upsample_add"
    return getattr(torch.ops.pspfast, op)(base, mixed, bias, bins, align_corners, relu)


def pyramid_conv2d_reference(
    x: Tensor,
    priors: Tensor,
    weight: Tensor,
    bins: Sequence[int],
    align_corners: bool,
    bias: Tensor | None,
    levels_first: bool,
    relu: bool,
) -> Tensor:
    """:func:`pyramid_conv2d` in plain PyTorch, by way of the concatenation."""
    channels = x.shape[1]
    maps = pyramid_concat_reference(x, priors, bins, align_corners)
    if levels_first:
        maps = torch.cat([maps[:, channels:], maps[:, :channels]], dim=1)
    out = F.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)
    return out.relu() if relu else out


def _check_inputs(
    x: Tensor, priors: Tensor, weight: Tensor, bins: Sequence[int], bias: Tensor | None
) -> None:
    op = "pyramid_conv2d"
    check_map(op, "x", x)
    check_bins(op, bins)
    check_priors(op, priors, x, bins)
    channels = x.shape[1] + len(bins) * priors.shape[1]
    if x.shape[1] < 1:
        raise ValueError(f"{op}: x: expected C of at least 1, got 0")
    kernel = tuple(weight.shape[2:])
    if weight.dim() != 4 or weight.shape[1] != channels or kernel not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{op}: weight: expected [O, C + L R, k, k] with C + L R = {channels} and k = 1 or 3, "
            f"got shape {list(weight.shape)}"
        )
    if weight.shape[0] < 1:
        raise ValueError(f"{op}: weight: expected O of at least 1, got 0")
    check_same(op, "weight", weight, "x", x)
    if bias is not None:
        check_bias(op, bias, weight, x)


def _upsample_add_fake(base: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(base, memory_format=format_of(base))


def _upsample_add_backward_fake(
    grad: Tensor, bins: Sequence[int], align_corners: bool, kernel_size: int
) -> Tensor:
    batch, channels = grad.shape[:2]
    bin_count = sum(b * b for b in bins)
    return grad.new_empty(
        (batch, bin_count, kernel_size, kernel_size, channels), dtype=sum_dtype(grad.dtype)
    )


def _register_upsample_add_autograd(forward_op: str, backward_op: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mixed, _, ctx.bins, ctx.align_corners, ctx.relu = inputs
        ctx.kernel_size = mixed.shape[2]
        ctx.save_for_backward(*([output] if ctx.relu else []))

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, *ctx.saved_tensors, 0)
        grad_mixed = grad_bias = None
        if ctx.needs_input_grad[1]:
            op = getattr(torch.ops.pspfast, backward_op)
            grad_mixed = op(grad, ctx.bins, ctx.align_corners, ctx.kernel_size)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad, grad_mixed, grad_bias, None, None, None

    def setup_backward_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, ctx.bins, ctx.align_corners, _ = inputs
        ctx.shape, ctx.dtype = grad.shape, grad.dtype

    def double_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor, None, None, None]:
        op = getattr(torch.ops.pspfast, forward_op)
        zeros = grad_grad.new_zeros(ctx.shape, dtype=ctx.dtype)
        return op(zeros, grad_grad, None, ctx.bins, ctx.align_corners, False), None, None, None

    torch.library.register_autograd(f"pspfast::{forward_op}", backward, setup_context=setup_context)
    torch.library.register_autograd(
        f"pspfast::{backward_op}", double_backward, setup_context=setup_backward_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::pyramid_upsample_add", _upsample_add_fake)
    torch.library.register_fake(
        "pspfast::pyramid_upsample_add_backward", _upsample_add_backward_fake
    )
    _register_upsample_add_autograd("pyramid_upsample_add", "pyramid_upsample_add_backward")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import pyramid_upsample as kernels

    @torch.library.triton_op("pspfast::pyramid_upsample_add_triton", mutates_args=())
    def _triton(
        base: Tensor,
        mixed: Tensor,
        bias: Tensor | None,
        bins: Sequence[int],
        align_corners: bool,
        relu: bool,
    ) -> Tensor:
        return kernels.pyramid_upsample_add_forward(base, mixed, bias, bins, align_corners, relu)

    @torch.library.triton_op("pspfast::pyramid_upsample_add_backward_triton", mutates_args=())
    def _backward_triton(
        grad: Tensor, bins: Sequence[int], align_corners: bool, kernel_size: int
    ) -> Tensor:
        return kernels.pyramid_upsample_add_backward(grad, bins, align_corners, kernel_size)

    _register_upsample_add_autograd(
        "pyramid_upsample_add_triton", "pyramid_upsample_add_backward_triton"
    )
