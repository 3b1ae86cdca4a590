"""Training BatchNorm, a residual addition and ReLU in one.

In eager mode each of the three reads and writes its map, and so does the gradient of each. Here x
is read once for its statistics and once more for the result. Neither the result nor a mask is kept
for backward, which computes both again from x.
"""

from __future__ import annotations

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


class BatchNormOutput(NamedTuple):
    """``out [N, C, H, W]``, and the mean and biased variance ``[C]`` of x, without gradients."""

    out: Tensor
    mean: Tensor
    var: Tensor


def batch_norm_relu(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``relu(F.batch_norm(x, running_mean, running_var, weight, bias, training=True) + residual)``
    (BatchNorm: arXiv 1502.03167 algorithm 1).

    Args:
        x: ``[N, C, H, W]``, any strides, without a copy if channels_last; float32, float16 or
            bfloat16, on the CPU float64 too.
        running_mean: ``[C]``, moved towards x's mean in place; None is left out.
        running_var: ``[C]``, likewise towards x's unbiased variance.
        weight: ``[C]``, any floating dtype.
        bias: ``[C]``.
        residual: ``[N, C, H, W]``, dtype of x.
        relu: whether negative results become zero.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        ``[N, C, H, W]`` in dtype and memory format of x. Sums and all arithmetic are in float32.

    Raises:
        ValueError: a shape or device is not as above, or x has fewer than two values per channel.
        TypeError: a dtype is not as above.

    All gradients are bit-reproducible.
    """
    check_map(_OP, "x", x)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if count < 2:
        got = list(x.shape)
        raise ValueError(f"{_OP}: x: expected at least 2 values per channel, got shape {got}")
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            _check_per_channel(name, running, x)
    out, mean, var = batch_norm_relu_with_statistics(x, weight, bias, residual, relu=relu, eps=eps)
    update_running_statistics(running_mean, running_var, mean, var, count, momentum)
    return out


def batch_norm_relu_with_statistics(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool, eps: float
) -> BatchNormOutput:
    """:func:`batch_norm_relu`, and the mean and variance of x that it normalised with."""
    if (backend := _select(x)) != "cpu":
        _check_inputs(x, weight, bias, residual)
    if backend == "reference":
        return batch_norm_relu_reference(x, weight, bias, residual, relu=relu, eps=eps)
    try:
        return BatchNormOutput(*_op(backend, "")(x, weight, bias, residual, relu, eps))
    except ValueError:
        _check_inputs(x, weight, bias, residual)
        raise


def batch_norm_relu_apply(
    x: Tensor,
    statistics: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *,
    relu: bool,
    eps: float,
) -> Tensor:
    """The same bits as :func:`batch_norm_relu_with_statistics`, from the statistics it returned."""
    return _op(_select(x), "_apply")(x, *statistics, weight, bias, residual, relu, eps)


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


def has_kernel(x: Tensor) -> bool:
    """Whether another backend than the reference serves x."""
    return _select(x) != "reference"


def batch_norm_relu_reference(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, *, relu: bool, eps: float
) -> BatchNormOutput:
    """:func:`batch_norm_relu_with_statistics` in plain PyTorch."""
    var, mean = torch.var_mean(x.detach().to(sum_dtype(x.dtype)), (0, 2, 3), correction=0)
    out = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    if residual is not None:
        out = out + residual
    return BatchNormOutput(out.relu() if relu else out, mean, var)


def _select(x: Tensor) -> str:
    return backends.select(_OP, x, has_cuda_kernel=False)


def _op(backend: str, part: str) -> Any:
    suffix = "_triton" if backend == "triton" else ""
    return getattr(torch.ops.pspfast, f"{_OP}{part}{suffix}")


def _check_per_channel(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape[1:2]:
        raise ValueError(
            f"{_OP}: {name}: expected [C] with C = {x.shape[1]}, got shape {list(tensor.shape)}"
        )
    if tensor.device != x.device:
        raise ValueError(f"{_OP}: {name}: expected device {x.device} as x, got {tensor.device}")
    check_floating(_OP, name, tensor)


def _check_inputs(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    check_map(_OP, "x", x)
    _check_per_channel("weight", weight, x)
    _check_per_channel("bias", bias, x)
    if residual is not None:
        check_residual(_OP, residual, x.shape, x)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # A meta tensor among others brings the op here.
    _check_inputs(x, weight, bias, residual)
    statistics = x.new_empty(x.shape[1], dtype=sum_dtype(x.dtype))
    return _empty_like(x), statistics, torch.empty_like(statistics)


def _apply_fake(x: Tensor, mean: Tensor, *args: Any) -> Tensor:
    return _empty_like(x)


def _backward_fake(
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
    grad_residual = x.new_empty(0) if residual is None else _empty_like(x)
    return _empty_like(x), torch.empty_like(weight), torch.empty_like(bias), grad_residual


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=format_of(x))


def _register_autograd(suffix: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, residual, ctx.relu, ctx.eps = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(x, mean, var, weight, bias, residual)

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, mean, var, weight, bias, residual = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradients will be differentiated themselves.
            out = batch_norm_relu_reference(
                x, weight, bias, residual, relu=ctx.relu, eps=ctx.eps
            ).out
            needed = [t is not None and t.requires_grad for t in (x, weight, bias, residual)]
            leaves = list(compress((x, weight, bias, residual), needed))
            found = iter(torch.autograd.grad(out, leaves, grad, create_graph=True))
            grads = [next(found) if is_needed else None for is_needed in needed]
        else:
            op = getattr(torch.ops.pspfast, f"{_OP}_backward{suffix}")
            grads = list(op(grad, x, mean, var, weight, bias, residual, ctx.relu, ctx.eps))
            if residual is None:
                grads[3] = None
        return *grads, None, None

    torch.library.register_autograd(
        f"pspfast::{_OP}{suffix}", backward, setup_context=setup_context
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake(f"pspfast::{_OP}", _fake)
    torch.library.register_fake(f"pspfast::{_OP}_apply", _apply_fake)
    torch.library.register_fake(f"pspfast::{_OP}_backward", _backward_fake)
    _register_autograd("")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import batch_norm_relu as kernels

    def dense(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def as_given(out: Tensor, x: Tensor) -> Tensor:
        return out.contiguous(memory_format=format_of(x))

    @torch.library.triton_op(f"pspfast::{_OP}_triton", mutates_args=())
    def _forward_triton(
        x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        residual = None if residual is None else dense(residual)
        out, mean, var = kernels.batch_norm_relu_forward(
            dense(x), weight, bias, residual, relu, eps
        )
        return as_given(out, x), mean, var

    @torch.library.triton_op(f"pspfast::{_OP}_apply_triton", mutates_args=())
    def _apply_triton(
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
    ) -> Tensor:
        residual = None if residual is None else dense(residual)
        out = kernels.batch_norm_relu_apply(dense(x), mean, var, weight, bias, residual, relu, eps)
        return as_given(out, x)

    @torch.library.triton_op(f"pspfast::{_OP}_backward_triton", mutates_args=())
    def _backward_triton(
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
        given = None if residual is None else dense(residual)
        grad_x, grad_weight, grad_bias, grad_residual = kernels.batch_norm_relu_backward(
            dense(grad), dense(x), mean, var, weight, bias, given, relu, eps
        )
        if residual is not None:
            grad_residual = as_given(grad_residual, x)
        return as_given(grad_x, x), grad_weight, grad_bias, grad_residual

    _register_autograd("_triton")
