"""The ops behind batch_norm_relu: what they compute in plain PyTorch, their checks, fakes and
gradients, and those in Triton.

Statistics are ``[2 C + 1]``: the mean of every channel, its biased variance, and of how many values
they are, in the dtype of sums.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import (
    check_floating,
    check_map,
    check_residual,
    format_of,
    sum_dtype,
)

_OP = "batch_norm_relu"
# Mean, variance, and number of batches.
Running = tuple[Tensor | None, Tensor | None, Tensor | None]
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


class BatchNormOutput(NamedTuple):
    """``out [N, C, H, W]``, and the mean and biased variance ``[C]`` of x, without gradients."""

    out: Tensor
    mean: Tensor
    var: Tensor


def batch_norm_relu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool, eps: float
) -> BatchNormOutput:
    """:func:`pspfast.ops.batch_norm_relu` of one process in plain PyTorch."""
    var, mean = torch.var_mean(x.detach().to(sum_dtype(x.dtype)), (0, 2, 3), correction=0)
    out = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    if residual is not None:
        out = out + residual
    return BatchNormOutput(out.relu() if relu else out, mean, var)


def update_running_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> None:
    """Moves the running ones towards the mean and the unbiased variance of ``count`` values."""
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)


def check_per_channel(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raises an error unless the tensor is a floating ``[C]`` on the device of x."""
    if tensor.shape != x.shape[1:2]:
        raise ValueError(
            f"{_OP}: {name}: expected [C] with C = {x.shape[1]}, got shape {list(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise ValueError(f"{_OP}: {name}: expected device {x.device} as x, got {tensor.device}")
    check_floating(_OP, name, tensor)


def check_inputs(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """Raises an error that names the first that is wrong."""
    check_map(_OP, "x", x)
    check_per_channel("weight", weight, x)
    check_per_channel("bias", bias, x)
    if residual is not None:
        check_residual(_OP, residual, x.shape, x)


def _statistics_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(2 * x.shape[1] + 1, dtype=sum_dtype(x.dtype))


def _merge_fake(parts: Tensor, *_: Any) -> Tensor:
    return parts.new_empty(parts.shape[1])


def _fake(x: Tensor, statistics: Tensor, *_: Any) -> Tensor:
    return _empty_like(x)


def _sums_fake(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    grad_residual = x.new_empty(0) if residual is None else _empty_like(x)
    return statistics.new_empty((2, x.shape[1])), grad_residual


def _grad_input_fake(grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _empty_like(x)


def _backward_fake(grad: Tensor, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like(x), *_sums_fake(grad, x, *args)


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=format_of(x))


def _register_autograd(suffix: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.relu, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of which statistics are functions of x."""
        x, statistics, weight, bias, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradients will be differentiated themselves.
            out = batch_norm_relu_reference(
                x, weight, bias, residual, relu=ctx.relu, eps=ctx.eps
            ).out
            needed = [t is not None and t.requires_grad for t in (x, weight, bias, residual)]
            leaves = list(compress((x, weight, bias, residual), needed))
            found = iter(torch.autograd.grad(out, leaves, grad, create_graph=True))
            grad_x, *grads = [next(found) if is_needed else None for is_needed in needed]
        else:
            op = getattr(torch.ops.pspfast, f"{_OP}_backward{suffix}")
            grad_x, sums, grad_residual = op(
                grad, x, statistics, weight, bias, residual, ctx.relu, ctx.eps
            )
            grads = [sums[1].to(weight.dtype), sums[0].to(bias.dtype)]
            grads.append(None if residual is None else grad_residual)
        return grad_x, None, *grads, None, None

    torch.library.register_autograd(
        f"pspfast::{_OP}{suffix}", backward, setup_context=setup_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::batch_norm_statistics", _statistics_fake)
    torch.library.register_fake("pspfast::batch_norm_merge_statistics", _merge_fake)
    torch.library.register_fake(f"pspfast::{_OP}", _fake)
    torch.library.register_fake(f"pspfast::{_OP}_grad_sums", _sums_fake)
    torch.library.register_fake(f"pspfast::{_OP}_grad_input", _grad_input_fake)
    torch.library.register_fake(f"pspfast::{_OP}_backward", _backward_fake)
    _register_autograd("")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import batch_norm_relu as kernels
    from pspfast.kernels import batch_norm_statistics as statistics_kernels

    def dense(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def dense_or_none(x: Tensor | None) -> Tensor | None:
        return None if x is None else dense(x)

    def moved(
        launch: Callable[..., Tensor], first: Tensor, running: Running, momentum: float
    ) -> Tensor:
        contiguous = [None if t is None else t.contiguous() for t in running]
        statistics = launch(first, *contiguous, momentum)
        for given, written in zip(running, contiguous, strict=True):
            if given is not None and written is not None and not given.is_contiguous():
                given.copy_(written)
        return statistics

    def as_given(out: Tensor, x: Tensor) -> Tensor:
        return out.contiguous(memory_format=format_of(x))

    @torch.library.triton_op("pspfast::batch_norm_statistics_triton", mutates_args=_RUNNING)
    def _statistics_triton(
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        momentum: float,
    ) -> Tensor:
        running = running_mean, running_var, num_batches_tracked
        return moved(statistics_kernels.batch_norm_statistics, dense(x), running, momentum)

    @torch.library.triton_op("pspfast::batch_norm_merge_statistics_triton", mutates_args=_RUNNING)
    def _merge_triton(
        parts: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        num_batches_tracked: Tensor | None,
        momentum: float,
    ) -> Tensor:
        running = running_mean, running_var, num_batches_tracked
        launch = statistics_kernels.batch_norm_merge_statistics
        return moved(launch, parts.contiguous(), running, momentum)

    @torch.library.triton_op(f"pspfast::{_OP}_triton", mutates_args=())
    def _forward_triton(
        x: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
    ) -> Tensor:
        residual = dense_or_none(residual)
        out = kernels.batch_norm_relu(dense(x), statistics, weight, bias, residual, relu, eps)
        return as_given(out, x)

    @torch.library.triton_op(f"pspfast::{_OP}_grad_sums_triton", mutates_args=())
    def _grad_sums_triton(
        grad: Tensor,
        x: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        sums, grad_residual = kernels.batch_norm_relu_grad_sums(
            dense(grad), dense(x), statistics, weight, bias, dense_or_none(residual), relu, eps
        )
        return sums, grad_residual if residual is None else as_given(grad_residual, x)

    @torch.library.triton_op(f"pspfast::{_OP}_grad_input_triton", mutates_args=())
    def _grad_input_triton(
        grad: Tensor,
        x: Tensor,
        statistics: Tensor,
        sums: Tensor,
        weight: Tensor,
        bias: Tensor,
        relu: bool,
        eps: float,
    ) -> Tensor:
        grad_x = kernels.batch_norm_relu_grad_input(
            dense(grad), dense(x), statistics, sums, weight, bias, relu, eps
        )
        return as_given(grad_x, x)

    @torch.library.triton_op(f"pspfast::{_OP}_backward_triton", mutates_args=())
    def _backward_triton(
        grad: Tensor,
        x: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, sums, grad_residual = kernels.batch_norm_relu_backward(
            dense(grad), dense(x), statistics, weight, bias, dense_or_none(residual), relu, eps
        )
        if residual is not None:
            grad_residual = as_given(grad_residual, x)
        return as_given(grad_x, x), sums, grad_residual

    _register_autograd("_triton")
