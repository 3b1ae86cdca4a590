"""Priors mixed by the weight of a convolution: what ``pyramid_conv2d`` interpolates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import format_of, sum_dtype


def pyramid_mix(
    backend: str, priors: Tensor, weight: Tensor, bins: Sequence[int], levels_first: bool
) -> tuple[Tensor, Tensor]:
    """``mixed[n, s, ky, kx, o]``, the sum over r of ``weight[o, r of the level of s, ky, kx]``
    times ``priors[n, r, s]``; and the weight's part for the map.

    Args:
        backend: that serves the tensors; not ``"reference"``.
        priors: ``[N, R, S]``.
        weight: ``[O, C + L R, k, k]``.
        bins: b of each level.
        levels_first: whether the weight's input channels are those of the levels, then the map's.

    Returns:
        ``[N, S, k, k, O]`` in the type of sums, and ``[O, C, k, k]``.
    """
    mix = torch.ops.pspfast.pyramid_mix if backend == "cpu" else mix_by_matmul
    return mix(priors, weight, bins, levels_first)


def mix_by_matmul(
    priors: Tensor, weight: Tensor, bins: Sequence[int], levels_first: bool
) -> tuple[Tensor, Tensor]:
    """The mixed priors ``[N, S, k, k, O]``, and the weight's part for the map.

    The products are in the type of sums: rounded to the map's type before they are interpolated,
    they would lose what the op keeps in float32.
    """
    out_channels, channels, k, _ = weight.shape
    reduction = priors.shape[1]
    sizes = [reduction] * len(bins)
    x_channels = channels - sum(sizes)
    sizes = [*sizes, x_channels] if levels_first else [x_channels, *sizes]
    shares = list(weight.split(sizes, dim=1))
    weight_x = shares.pop(-1 if levels_first else 0)
    dtype = sum_dtype(priors.dtype)
    mixed = []
    # Autocast would round the factors and the products again.
    with torch.autocast(priors.device.type, enabled=False):
        for share, level in zip(shares, priors.split([b * b for b in bins], dim=2), strict=True):
            # [O k k, R], a view where the weight is channels_last.
            filters = share.permute(0, 2, 3, 1).reshape(-1, reduction)
            product = level.transpose(1, 2).to(dtype) @ filters.t().to(dtype)
            mixed.append(product.unflatten(2, (out_channels, k, k)).movedim(2, 4))
    return torch.cat(mixed, dim=1), weight_x


def _fake(
    priors: Tensor, weight: Tensor, bins: Sequence[int], levels_first: bool
) -> tuple[Tensor, Tensor]:
    out_channels, channels, k, _ = weight.shape
    batch, reduction, bin_count = priors.shape
    mixed = priors.new_empty((batch, bin_count, k, k, out_channels), dtype=sum_dtype(priors.dtype))
    return mixed, _empty_like_weight(weight, channels - len(bins) * reduction)


def _backward_fake(
    grad_mixed: Tensor, grad_weight_x: Tensor, priors: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return priors.new_empty(priors.shape), _empty_like_weight(weight, weight.shape[1])


def _empty_like_weight(weight: Tensor, channels: int) -> Tensor:
    return torch.empty(
        (weight.shape[0], channels, *weight.shape[2:]),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=format_of(weight),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    priors, weight, ctx.bins, ctx.levels_first = inputs
    ctx.save_for_backward(priors, weight)


def _backward(ctx: Any, grad_mixed: Tensor, grad_weight_x: Tensor) -> tuple[Tensor | None, ...]:
    priors, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        # The gradients will be differentiated themselves.
        outputs = mix_by_matmul(priors, weight, ctx.bins, ctx.levels_first)
        grads = torch.autograd.grad(
            outputs, (priors, weight), (grad_mixed, grad_weight_x), create_graph=True
        )
    else:
        grads = torch.ops.pspfast.pyramid_mix_backward(
            grad_mixed, grad_weight_x, priors, weight, ctx.bins, ctx.levels_first
        )
    return *grads, None, None


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::pyramid_mix", _fake)
    torch.library.register_fake("pspfast::pyramid_mix_backward", _backward_fake)
    torch.library.register_autograd("pspfast::pyramid_mix", _backward, setup_context=_setup_context)
