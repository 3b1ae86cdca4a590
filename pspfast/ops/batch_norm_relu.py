"""Training BatchNorm, a residual addition and ReLU in one, of one process or of several.

In eager mode each of the three reads and writes its map, and so does the gradient of each. Here x
is read once for its statistics and once more for the result. Neither the result nor a mask is kept
for backward, which computes both again from x.

Over several processes statistics are of the values of all, as SyncBatchNorm has them: each takes
those of its own, one all-reduce brings them together, and each merges them in the same order, so
that all get the same bits. In backward it is the sums of gradients that an all-reduce adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from pspfast import backends
from pspfast.ops.batch_norm_relu_ops import (
    Running,
    batch_norm_relu_reference,
    check_inputs,
    check_per_channel,
    update_running_statistics,
)
from pspfast.ops.common.checks import check_map

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OP = "batch_norm_relu"


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
    group: ProcessGroup | None = None,
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
        group: processes whose x, of any N, H and W each, are normalised together; all of them call
            this, forward and backward, in the same order. The gradients of weight and bias are
            those of this process's part, as SyncBatchNorm's. No gradient can be differentiated
            again. None is this process alone.

    Returns:
        ``[N, C, H, W]`` in dtype and memory format of x. Sums and all arithmetic are in float32.

    Raises:
        ValueError: a shape or device is not as above; or x has fewer than two values per channel
            and there is no group; or there is one, and no kernel for x.
        TypeError: a dtype is not as above.

    All gradients are bit-reproducible.

    Examples:
        >>> x, mean, variance = torch.randn(4, 8, 5, 7), torch.zeros(8), torch.ones(8)
        >>> result = batch_norm_relu(x, mean, variance, torch.ones(8), torch.zeros(8))
        >>> result.shape, bool((result >= 0).all())
        (torch.Size([4, 8, 5, 7]), True)
    """
    check_map(_OP, "x", x)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if group is None and count < 2:
        got = list(x.shape)
        raise ValueError(f"{_OP}: x: expected at least 2 values per channel, got shape {got}")
    # Before anything is written.
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            check_per_channel(name, running, x)
    check_inputs(x, weight, bias, residual)
    if not has_kernel(x):
        if group is not None:
            raise ValueError(f"{_OP}: group: expected None, as no kernel serves x on {x.device}")
        out, mean, var = batch_norm_relu_reference(x, weight, bias, residual, relu=relu, eps=eps)
        update_running_statistics(running_mean, running_var, mean, var, count, momentum)
        return out
    statistics = batch_norm_statistics(x, (running_mean, running_var, None), momentum, group)
    return normalize(x, statistics, weight, bias, residual, relu=relu, eps=eps, group=group)


def has_kernel(x: Tensor) -> bool:
    """Whether another backend than the reference serves x."""
    return _select(x) != "reference"


def batch_norm_statistics(
    x: Tensor,
    running: Running,
    momentum: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """``[2 C + 1]``: mean and biased variance of every channel of x, and of how many values.

    Args:
        x: ``[N, C, H, W]``, which a kernel serves.
        running: mean and unbiased variance ``[C]``, moved towards those of x in place, unless they
            are of fewer than two values; and the number of batches, int64, that goes up by one.
        momentum: share of the new ones.
        group: processes whose statistics are merged.
    """
    x = x.detach()
    backend = _select(x)
    if group is None:
        statistics = _op(backend, "batch_norm_statistics")(x, *running, momentum)
    else:
        own = _op(backend, "batch_norm_statistics")(x, None, None, None, 0.0)
        # Of all rows but its own a process has zeros, and so the sum is each as it was.
        parts = own.new_zeros(dist.get_world_size(group), len(own))
        parts[dist.get_rank(group)] = own
        dist.all_reduce(parts, group=group)
        statistics = _op(backend, "batch_norm_merge_statistics")(parts, *running, momentum)
    if not torch.compiler.is_compiling():
        increment_version([t for t in running if t is not None])
    return statistics


def normalize(
    x: Tensor,
    statistics: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    *,
    relu: bool,
    eps: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """:func:`batch_norm_relu` from what :func:`batch_norm_statistics` returned, which is a function
    of x to its gradient. The same bits whenever it is called."""
    if group is not None and torch.is_grad_enabled():
        return _Shared.apply(x, statistics, weight, bias, residual, relu, eps, group)
    return _op(_select(x), _OP)(x, statistics, weight, bias, residual, relu, eps)


class _Shared(torch.autograd.Function):
    """With statistics of the values of several processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        statistics: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        relu: bool,
        eps: float,
        group: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, statistics, weight, bias, residual)
        ctx.relu, ctx.eps, ctx.group = relu, eps, group
        return normalize(x, statistics, weight, bias, residual, relu=relu, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, weight, bias, residual = ctx.saved_tensors
        backend, relu, eps = _select(x), ctx.relu, ctx.eps
        sums, grad_residual = _op(backend, f"{_OP}_grad_sums")(
            grad, x, statistics, weight, bias, residual, relu, eps
        )
        grad_bias, grad_weight = sums.clone().unbind()
        grad_x = None
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums, group=ctx.group)
            if residual is not None:
                # It is what has passed the ReLU.
                grad, relu = grad_residual, False
            grad_x = _op(backend, f"{_OP}_grad_input")(
                grad, x, statistics, sums, weight, bias, relu, eps
            )
        if residual is None:
            grad_residual = None
        grads = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_residual
        return grad_x, None, *grads, None, None, None


def _select(x: Tensor) -> str:
    return backends.select(_OP, x, has_cuda_kernel=False)


def _op(backend: str, name: str) -> Any:
    suffix = "_triton" if backend == "triton" else ""
    return getattr(torch.ops.pspfast, f"{name}{suffix}")
