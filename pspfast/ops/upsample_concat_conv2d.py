"""Convolution over maps of several sizes, interpolated to one size and concatenated, without the
interpolated maps and the concatenation.

A tap of a convolution mixes channels and interpolation mixes positions, so they commute. With
A[i, u] the weights that interpolate a map's rows, zero where i lies outside the output, B[j, v] the
same for columns, W the weight's part for the map and r = k // 2, the map m adds

    sum over ky, kx, u, v of A[i + ky - r, u] B[j + kx - r, v] (W[:, :, ky, kx] m[:, u, v])

The products in brackets are computed at the map's own resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import (
    MAX_AXIS_SIZE,
    autocast,
    check_bias,
    check_map,
    check_same,
    format_of,
    is_autocast,
    is_channels_last,
    sum_dtype,
)
from pspfast.ops.common.interpolate import interpolate
from pspfast.ops.common.upsample_add import is_mixed, mix, upsample_add
from pspfast.ops.dilated_conv2d import dilated_conv2d

_OP = "upsample_concat_conv2d"


def upsample_concat_conv2d(
    maps: Sequence[Tensor],
    weight: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    align_corners: bool = False,
    bias: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``conv2d(cat([interpolate(m, size) for m in maps], 1), weight, bias, padding=k // 2)``.

    Neither forward nor backward makes a tensor of the concatenation's size, nor an interpolated
    map; what is kept for backward are the arguments, and the result if ``relu``. It pays where maps
    are upsampled by 2 or more, by s to 1 / s² of the multiplications; on the CPU a 3×3 convolution
    over maps of the full size is Winograd's, as in :func:`dilated_conv2d`. A map larger than
    ``size`` is interpolated first, and so is, on GPUs and for k = 3, one that has more than half of
    the result's positions. On other devices plain PyTorch runs.

    Args:
        maps: ``[N, C_i, H_i, W_i]`` each, at least one, in the order of the weight's input
            channels, any strides, without a copy if channels_last; float32, float16 or bfloat16, on
            the CPU float64 too.
        weight: ``[O, sum of C_i, k, k]``, k = 1 or 3; dtype and device of the maps.
        size: ``(H, W)`` of the result; default is the largest ``H_i`` and the largest ``W_i``.
        mode: ``"bilinear"`` or ``"nearest"``, as in ``F.interpolate``.
        align_corners: of the bilinear interpolation, as in ``F.interpolate``.
        bias: ``[O]``, added where given.
        relu: whether negative results become zero.

    Returns:
        ``[N, O, H, W]``, channels_last if the weight or one of the maps is, else contiguous. Sums
        are kept in float32. Under autocast the arguments are cast as those of ``F.conv2d`` are.

    Raises:
        ValueError: a shape, device, ``size`` or ``mode`` is not as above, or ``align_corners`` is
            set with ``"nearest"``.
        TypeError: a dtype is not as above.

    All gradients are gathers and bit-reproducible. A number of a map that is not finite makes NaN
    of some results around those it reaches.

    Examples:
        >>> fine, coarse = torch.randn(1, 8, 16, 24), torch.randn(1, 8, 4, 6)
        >>> weight = torch.randn(5, 16, 3, 3)
        >>> got = upsample_concat_conv2d([fine, coarse], weight)
        >>> upsampled = F.interpolate(coarse, (16, 24), mode="bilinear")
        >>> expected = F.conv2d(torch.cat([fine, upsampled], 1), weight, padding=1)
        >>> torch.allclose(got, expected, atol=1e-3)
        True
    """
    maps = list(maps)
    if not maps:
        raise ValueError(f"{_OP}: maps: expected at least one, got none")
    if is_autocast(maps[0]):
        weight, bias, *maps = autocast(weight, bias, *maps)
    _check_inputs(maps, weight, size, mode, align_corners, bias)
    size = list(size or [max(m.shape[axis] for m in maps) for axis in (2, 3)])
    nearest = mode == "nearest"
    backend = backends.select(_OP, maps[0])
    options = (size, align_corners, nearest, relu)
    if backend == "reference":
        return upsample_concat_conv2d_reference(maps, weight, bias, *options)
    if backend != "cpu":
        return _on_gpu(backend, maps, weight, bias, *options)
    # Interpolation is separable: an axis that grows is left to the op.
    reduced = [[min(a, b) for a, b in zip(m.shape[2:], size, strict=True)] for m in maps]
    maps = [interpolate(m, s, align_corners, nearest) for m, s in zip(maps, reduced, strict=True)]
    return torch.ops.pspfast.upsample_concat_conv2d(maps, weight, bias, *options)


def _on_gpu(
    backend: str,
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
) -> Tensor:
    """Matrix products mix the smaller maps; a kernel adds them to the others' convolution."""
    convolve = dilated_conv2d if weight.shape[2] == 3 else F.conv2d
    channels_last = format_of(weight, *maps) == torch.channels_last
    base: Tensor | None = None
    mixed = []
    for x, part in zip(maps, weight.split([x.shape[1] for x in maps], dim=1), strict=True):
        if x.shape[1] == 0:
            continue
        if is_mixed(x.shape[2:], size, weight.shape[2]):
            mixed.append(mix(x, part))
            continue
        convolved = convolve(interpolate(x, size, align_corners, nearest), part)
        base = convolved if base is None else base + convolved
    if mixed:
        interpolation = (size, align_corners, nearest)
        return upsample_add(backend, base, mixed, bias, *interpolation, relu, channels_last)
    if base is None:  # There are no channels.
        base = weight.new_zeros((maps[0].shape[0], weight.shape[0], *size))
    return _finish(base if bias is None else base + bias[:, None, None], relu)


def upsample_concat_conv2d_reference(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    relu: bool,
) -> Tensor:
    """:func:`upsample_concat_conv2d` in plain PyTorch, by way of the concatenation."""
    concatenation = torch.cat([interpolate(m, size, align_corners, nearest) for m in maps], 1)
    return _finish(F.conv2d(concatenation, weight, bias, padding=weight.shape[2] // 2), relu)


def _finish(out: Tensor, relu: bool) -> Tensor:
    return out.relu() if relu else out


def _check_inputs(
    maps: Sequence[Tensor],
    weight: Tensor,
    size: Sequence[int] | None,
    mode: str,
    align_corners: bool,
    bias: Tensor | None,
) -> None:
    for x in maps:
        check_map(_OP, "maps", x)
        check_same(_OP, "maps", x, "the first", maps[0])
        if x.shape[0] != maps[0].shape[0]:
            raise ValueError(
                f"{_OP}: maps: expected N = {maps[0].shape[0]} as the first, got {x.shape[0]}"
            )
    channels = sum(x.shape[1] for x in maps)
    kernel = tuple(weight.shape[2:])
    if weight.dim() != 4 or weight.shape[1] != channels or kernel not in ((1, 1), (3, 3)):
        raise ValueError(
            f"{_OP}: weight: expected [O, C, k, k] with C = {channels}, the channels of all maps, "
            f"and k = 1 or 3, got shape {list(weight.shape)}"
        )
    check_same(_OP, "weight", weight, "maps", maps[0])
    if size is not None and (len(size) != 2 or not all(1 <= s <= MAX_AXIS_SIZE for s in size)):
        raise ValueError(f"{_OP}: size: expected (H, W) of 1 to {MAX_AXIS_SIZE}, got {tuple(size)}")
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"{_OP}: mode: expected 'bilinear' or 'nearest', got {mode!r}")
    if mode == "nearest" and align_corners:
        raise ValueError(f"{_OP}: align_corners: expected False for mode 'nearest', got True")
    if bias is not None:
        check_bias(_OP, bias, weight, maps[0])


def _fake(maps: Sequence[Tensor], weight: Tensor, bias: Any, size: Any, *_: Any) -> Tensor:
    shape = (maps[0].shape[0], weight.shape[0], *size)
    return _empty(weight, shape, format_of(weight, *maps))


def _grad_map_fake(
    grad: Tensor,
    weight: Tensor,
    first_channel: int,
    channels: int,
    size: Sequence[int],
    align_corners: bool,
    nearest: bool,
    channels_last: bool,
) -> Tensor:
    return _empty(grad, (grad.shape[0], channels, *size), _format(channels_last))


def _grad_weight_fake(
    grad: Tensor,
    maps: Sequence[Tensor],
    kernel_size: int,
    align_corners: bool,
    nearest: bool,
    channels_last: bool,
) -> Tensor:
    channels = sum(x.shape[1] for x in maps)
    shape = (grad.shape[1], channels, kernel_size, kernel_size)
    return _empty(grad, shape, _format(channels_last), sum_dtype(grad.dtype))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _empty(
    like: Tensor,
    shape: Sequence[Any],
    memory_format: torch.memory_format,
    dtype: torch.dtype | None = None,
) -> Tensor:
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    maps, weight, bias, ctx.size, ctx.align_corners, ctx.nearest, ctx.relu = inputs
    ctx.save_for_backward(weight, bias, output if ctx.relu else None, *maps)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, bias, output, *maps = ctx.saved_tensors
    needs_maps, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    # One for each map, or one for all of them.
    needs_maps = list(needs_maps) if isinstance(needs_maps, Sequence) else [needs_maps] * len(maps)
    if torch.is_grad_enabled():
        # The gradients will be differentiated themselves.
        leaves = {
            i: x
            for i, x in enumerate((weight, bias, *maps))
            if x is not None and (needs_weight, needs_bias, *needs_maps)[i]
        }
        out = upsample_concat_conv2d_reference(
            maps, weight, bias, ctx.size, ctx.align_corners, ctx.nearest, ctx.relu
        )
        grads = torch.autograd.grad(out, list(leaves.values()), grad, create_graph=True)
        of = dict(zip(leaves, grads, strict=True))
        return [of.get(2 + i) for i in range(len(maps))], of.get(0), of.get(1), *[None] * 4
    if ctx.relu:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    grad_weight = grad_bias = None
    if needs_bias:
        grad_bias = grad.sum((0, 2, 3))
    grad = grad.contiguous(memory_format=torch.channels_last)
    interpolation = (ctx.align_corners, ctx.nearest)
    ops = torch.ops.pspfast
    grad_maps: list[Tensor | None] = []
    first = 0
    for x, needed in zip(maps, needs_maps, strict=True):
        grad_maps.append(
            ops.upsample_concat_conv2d_grad_map(
                grad, weight, first, x.shape[1], x.shape[2:], *interpolation, is_channels_last(x)
            )
            if needed
            else None
        )
        first += x.shape[1]
    if needs_weight:
        channels_last = is_channels_last(weight)
        sums = ops.upsample_concat_conv2d_grad_weight(
            grad, maps, weight.shape[2], *interpolation, channels_last
        )
        grad_weight = sums.to(weight.dtype)
    return grad_maps, grad_weight, grad_bias, *[None] * 4


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::upsample_concat_conv2d", _fake)
    torch.library.register_fake("pspfast::upsample_concat_conv2d_grad_map", _grad_map_fake)
    torch.library.register_fake("pspfast::upsample_concat_conv2d_grad_weight", _grad_weight_fake)
    torch.library.register_autograd(
        "pspfast::upsample_concat_conv2d", _backward, setup_context=_setup_context
    )
