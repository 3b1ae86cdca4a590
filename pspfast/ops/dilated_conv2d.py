"""3×3 convolution with dilation, and its bias, residual and ReLU.

On the CPU by Winograd's algorithm F(4×4, 3×3) (arXiv 1509.09308) where that is faster: a
convolution with dilation d is d² ordinary ones, on the phases of the map. On a GPU by a Triton
kernel or by cuDNN, whichever is faster: the operator chooses when it runs, compiled or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import (
    MAX_AXIS_SIZE,
    autocast,
    check_bias,
    check_map,
    check_residual,
    check_same,
    format_of,
    is_autocast,
    is_channels_last,
)

_OP = "dilated_conv2d"


class _Arguments(NamedTuple):
    """Of the operators, in the order of their schemas."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dilation: int
    residual: Tensor | None
    relu: bool


def dilated_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)`` for kernels of 3×3.

    Args:
        x: ``[N, C, H, W]``, any strides, without a copy if channels_last; float32, float16 or
            bfloat16, on the CPU float64 too.
        weight: ``[O, C, 3, 3]``.
        bias: ``[O]``.
        dilation: d, the distance of the taps; padding is the same.
        residual: ``[N, O, H, W]``, added to the result.
        relu: whether negative results become zero.

    Returns:
        ``[N, O, H, W]``, channels_last if x or weight is, else contiguous. Sums are kept in
        float32. Under autocast the arguments are cast as those of ``F.conv2d`` are.

    Raises:
        ValueError: a shape, device or ``dilation`` is not as above.
        TypeError: a dtype is not as above.

    In float32 Winograd's algorithm errs by some 1e-6 of the result's norm, direct convolution by
    2e-7 to 2e-6. An infinite or NaN value of x makes NaN of all results of its tile of 4×4, with an
    edge of 6×6 inputs, instead of those it reaches.

    Examples:
        >>> x, weight = torch.randn(1, 8, 17, 23), torch.randn(4, 8, 3, 3)
        >>> got = dilated_conv2d(x, weight, dilation=2, relu=True)
        >>> expected = F.conv2d(x, weight, padding=2, dilation=2).relu()
        >>> torch.allclose(got, expected, atol=1e-3)
        True
    """
    if is_autocast(x):
        x, weight, bias, residual = autocast(x, weight, bias, residual)
    arguments = _Arguments(x, weight, bias, dilation, residual, relu)
    match backends.select(_OP, x, has_cuda_kernel=False):
        case "reference":
            _check(arguments)
            return dilated_conv2d_reference(*arguments)
        case "cpu":
            try:
                return torch.ops.pspfast.dilated_conv2d(*arguments)
            except ValueError:
                _check(arguments)
                raise
        case _:
            _check(arguments)
            # A program that is exported has the kernel itself, and needs no Python to choose one.
            # The flag, not is_exporting(): that is true in torch 2.11 wherever Dynamo compiles.
            if backends.is_automatic() and not torch.compiler._is_exporting_flag:
                return torch.ops.pspfast.dilated_conv2d_fastest(*arguments)
            return torch.ops.pspfast.dilated_conv2d_triton(*arguments)


def dilated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    residual: Tensor | None,
    relu: bool,
) -> Tensor:
    """:func:`dilated_conv2d` in plain PyTorch."""
    out = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
    if residual is not None:
        out = out + residual
    return out.relu() if relu else out


def _check(arguments: _Arguments) -> None:
    x, weight, bias, dilation, residual, _ = arguments
    if weight.dim() != 4 or weight.shape[2:] != (3, 3) or 0 in weight.shape:
        raise ValueError(f"{_OP}: weight: expected [O, C, 3, 3], got shape {list(weight.shape)}")
    check_map(_OP, "x", x)
    out_channels, channels = weight.shape[:2]
    if x.shape[1] != channels:
        raise ValueError(
            f"{_OP}: x: expected [N, C, H, W] with C = {channels}, got shape {list(x.shape)}"
        )
    check_same(_OP, "weight", weight, "x", x)
    if not 1 <= dilation <= MAX_AXIS_SIZE:
        raise ValueError(f"{_OP}: dilation: expected 1 to {MAX_AXIS_SIZE}, got {dilation}")
    if bias is not None:
        check_bias(_OP, bias, weight, x)
    if residual is not None:
        check_residual(_OP, residual, [x.shape[0], out_channels, *x.shape[2:]], x)


def _fake(*arguments: Any) -> Tensor:
    # A meta tensor among others brings the op here.
    _check(_Arguments(*arguments))
    x, weight, *_ = arguments
    return _empty(x, weight.shape[0], format_of(x, weight))


def _grad_input_fake(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return _empty(grad, weight.shape[1], format_of(grad, weight))


def _grad_weight_fake(grad: Tensor, x: Tensor, dilation: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (grad.shape[1], x.shape[1], 3, 3),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _winograd_fake(x: Tensor, transformed: Tensor, out_channels: int, *_: Any) -> Tensor:
    return _empty(x, out_channels, format_of(x))


def _winograd_weight_fake(weight: Tensor) -> Tensor:
    shape = torch.ops.pspfast.winograd_weight_shape(*weight.shape[:2])
    return weight.new_empty(shape, dtype=torch.float32)


def _depthwise_fake(x: Tensor, *_: Any) -> Tensor:
    return _empty(x, x.shape[1], format_of(x))


def _empty(x: Tensor, channels: int, memory_format: torch.memory_format) -> Tensor:
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _op(name: str, suffix: str) -> Callable[..., Tensor]:
    return getattr(torch.ops.pspfast, f"dilated_conv2d{name}{suffix}")


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    dilation: int,
    needed: Sequence[bool],
    suffix: str = "",
) -> list[Tensor | None]:
    """Of x, weight and bias for ``grad`` of the convolution, those that are ``needed``, by the
    operators with this suffix."""
    grad_x = grad_weight = grad_bias = None
    needs_x, needs_weight, needs_bias = needed
    if needs_x:
        grad_x = _op("_grad_input", suffix)(grad, weight, dilation)
    if needs_weight:
        grad_weight = _op("_grad_weight", suffix)(grad, x, dilation, is_channels_last(weight))
    if needs_bias:
        grad_bias = grad.sum((0, 2, 3))
    return [grad_x, grad_weight, grad_bias]


def _register_autograd(suffix: str) -> None:
    def op(name: str) -> Callable[..., Tensor]:
        return _op(name, suffix)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.dilation, _, ctx.relu = inputs
        ctx.save_for_backward(x, weight, output if ctx.relu else None)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, output = ctx.saved_tensors
        if ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, output, 0)
        *needed, _, needs_residual, _ = ctx.needs_input_grad
        of_arguments = gradients(grad, x, weight, ctx.dilation, needed, suffix)
        return *of_arguments, None, grad if needs_residual else None, None

    # The gradients are bilinear; each one's gradients are the op and the other gradient.
    def setup_gradient_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, ctx.dilation, *_ = inputs
        ctx.save_for_backward(first, second)

    def grad_input_backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, weight = ctx.saved_tensors
        return (
            op("")(grad_x, weight, None, ctx.dilation, None, False),
            op("_grad_weight")(grad, grad_x, ctx.dilation, is_channels_last(weight)),
            None,
        )

    def grad_weight_backward(ctx: Any, grad_weight: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, x = ctx.saved_tensors
        return (
            op("")(x, grad_weight, None, ctx.dilation, None, False),
            op("_grad_input")(grad, grad_weight, ctx.dilation),
            None,
            None,
        )

    for name, function, setup in (
        ("dilated_conv2d", backward, setup_context),
        ("dilated_conv2d_grad_input", grad_input_backward, setup_gradient_context),
        ("dilated_conv2d_grad_weight", grad_weight_backward, setup_gradient_context),
    ):
        torch.library.register_autograd(f"pspfast::{name}{suffix}", function, setup_context=setup)


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::dilated_conv2d", _fake)
    torch.library.register_fake("pspfast::dilated_conv2d_grad_input", _grad_input_fake)
    torch.library.register_fake("pspfast::dilated_conv2d_grad_weight", _grad_weight_fake)
    torch.library.register_fake("pspfast::winograd_conv2d", _winograd_fake)
    torch.library.register_fake("pspfast::winograd_weight", _winograd_weight_fake)
    torch.library.register_fake("pspfast::depthwise_conv2d", _depthwise_fake)
    _register_autograd("")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import dilated_conv2d as kernels
    from pspfast.ops.common.fastest_conv2d import define_fastest_ops

    @torch.library.triton_op("pspfast::dilated_conv2d_triton", mutates_args=())
    def _triton(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dilation: int,
        residual: Tensor | None,
        relu: bool,
    ) -> Tensor:
        out = kernels.dilated_conv2d(x, weight, bias, dilation, residual, relu)
        return out.contiguous(memory_format=format_of(x, weight))

    @torch.library.triton_op("pspfast::dilated_conv2d_grad_input_triton", mutates_args=())
    def _grad_input_triton(grad: Tensor, weight: Tensor, dilation: int) -> Tensor:
        grad_x = kernels.dilated_conv2d_grad_input(grad, weight, dilation)
        return grad_x.contiguous(memory_format=format_of(grad, weight))

    @torch.library.triton_op("pspfast::dilated_conv2d_grad_weight_triton", mutates_args=())
    def _grad_weight_triton(grad: Tensor, x: Tensor, dilation: int, channels_last: bool) -> Tensor:
        grad_weight = kernels.dilated_conv2d_grad_weight(grad, x, dilation)
        return grad_weight if channels_last else grad_weight.contiguous()

    _register_autograd("_triton")
    define_fastest_ops(dilated_conv2d_reference)
    for part, fake in (
        ("", _fake),
        ("_grad_input", _grad_input_fake),
        ("_grad_weight", _grad_weight_fake),
    ):
        torch.library.register_fake(f"pspfast::dilated_conv2d{part}_fastest", fake)
    _register_autograd("_fastest")
