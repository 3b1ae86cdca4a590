"""Cross-entropy of logits at the resolution of their labels, without logits of that resolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import check_floating, check_logits, format_of, sum_dtype
from pspfast.ops.upsample_argmax import label_dtype_of, upsample_argmax_reference

_OP = "upsample_cross_entropy"


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    align_corners: bool = True,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    return_argmax: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``F.cross_entropy(F.interpolate(logits, target.shape[-2:], mode="bilinear"), target)``.

    Each pixel's logits are interpolated when they are needed. Kept for backward are ``logits``,
    ``target`` and one number a pixel, the logarithm of its sum of exponentials; backward gathers
    for each logit the pixels around it, and is bit-reproducible.

    Args:
        logits: ``[N, K, h, w]``, any strides; float32, float16 or bfloat16, on the CPU float64 too.
        target: ``[N, H, W]``, any integer dtype and any size: classes 0 … K-1, or ``ignore_index``.
        ignore_index: of pixels that do not count.
        align_corners: of the interpolation, as in ``F.interpolate``.
        weight: ``[K]``, a factor of each class, as in ``F.cross_entropy``.
        label_smoothing: in [0, 1], as in ``F.cross_entropy``.
        return_argmax: whether the labels that the logits predict are returned too, from the same
            pass: as :func:`upsample_argmax` gives them, a NaN winning.

    Returns:
        The mean over the pixels that count, weighted by their class, in float32 (float64 for
        float64); or (loss, labels ``[N, H, W]``). Where no pixel counts the loss is 0 and so is its
        gradient, where ``F.cross_entropy`` gives NaN.

    Raises:
        ValueError: a shape or device is not as above; or a label is neither a class nor
            ``ignore_index``, which a GPU reports as a device-side assertion, without waiting.
        TypeError: a dtype is not as above.

    Examples:
        >>> logits = torch.randn(2, 21, 9, 9, requires_grad=True)
        >>> target = torch.randint(0, 21, (2, 65, 65))
        >>> loss, labels = upsample_cross_entropy(logits, target, return_argmax=True)
        >>> loss.backward()
        >>> labels.shape, logits.grad.shape
        (torch.Size([2, 65, 65]), torch.Size([2, 21, 9, 9]))
    """
    arguments = (ignore_index, align_corners, label_smoothing)
    match backends.select(_OP, logits):
        case "reference":
            _check_inputs(logits, target, weight, label_smoothing)
            _check_labels(target, logits.shape[1], ignore_index)
            loss = upsample_cross_entropy_reference(logits, target, weight, *arguments)
            if not return_argmax:
                return loss
            labels = upsample_argmax_reference(logits, target.shape[1:], align_corners)
            labels = labels.to(label_dtype_of(logits.shape[1]))
        case "triton":
            _check_inputs(logits, target, weight, label_smoothing)
            loss, _, _, labels = torch.ops.pspfast.upsample_cross_entropy_triton(
                logits, target, weight, *arguments, return_argmax
            )
        case _:
            try:
                loss, _, _, labels = torch.ops.pspfast.upsample_cross_entropy(
                    logits, target, weight, *arguments, return_argmax
                )
            except ValueError:
                _check_inputs(logits, target, weight, label_smoothing)
                _check_labels(target, logits.shape[1], ignore_index)
                raise
    return (loss, labels) if return_argmax else loss


def upsample_cross_entropy_reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
) -> Tensor:
    """:func:`upsample_cross_entropy` in plain PyTorch."""
    dtype = sum_dtype(logits.dtype)
    upsampled = F.interpolate(
        logits.to(dtype), target.shape[1:], mode="bilinear", align_corners=align_corners
    )
    if weight is not None:
        weight = weight.to(dtype)
    target = target.long()
    total = F.cross_entropy(
        upsampled,
        target,
        weight,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    counted = target != ignore_index
    if weight is None:
        count = counted.sum().to(dtype)
    else:
        count = weight[torch.where(counted, target, 0)].mul(counted).sum()
    return torch.where(count != 0, total / count, 0.0)


def _check_inputs(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float
) -> None:
    check_logits(_OP, logits)
    classes = logits.shape[1]
    if target.dim() != 3 or target.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{_OP}: target: expected [N, H, W] with N of logits {list(logits.shape)}, "
            f"got shape {list(target.shape)}"
        )
    if 0 in target.shape[1:]:
        height, width = target.shape[1:]
        raise ValueError(f"{_OP}: target: expected H and W of at least 1, got {height} and {width}")
    for name, tensor in (("target", target), ("weight", weight)):
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(
                f"{_OP}: {name}: expected device {logits.device} as logits, got {tensor.device}"
            )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"{_OP}: target: expected integers, got {target.dtype}")
    if weight is not None and weight.shape != (classes,):
        raise ValueError(
            f"{_OP}: weight: expected [K] with K = {classes}, got shape {list(weight.shape)}"
        )
    if weight is not None:
        check_floating(_OP, "weight", weight)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"{_OP}: label_smoothing: expected 0 to 1, got {label_smoothing}")


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    """On the CPU and eagerly only: elsewhere it would wait for the device."""
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"{_OP}: target: expected labels 0 to {classes - 1} or {ignore_index} (ignored), "
            f"got {wrong.unique()[:8].tolist()}"
        )


def _fake(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    align_corners: bool,
    label_smoothing: float,
    return_labels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_inputs(logits, target, weight, label_smoothing)
    dtype = sum_dtype(logits.dtype)
    labels = logits.new_empty(
        target.shape if return_labels else (0,), dtype=label_dtype_of(logits.shape[1])
    )
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty(target.shape, dtype=dtype),
        logits.new_empty((), dtype=dtype),
        labels,
    )


def _backward_fake(scale: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits, memory_format=format_of(logits))


def _register_autograd(forward_op: str, backward_op: str) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, target, weight, *ctx.arguments, _ = inputs
        _, lse, weight_sum, _ = output
        # Only the loss has a gradient; torch would write zeros for all others.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, weight, lse, weight_sum)

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        logits, target, weight, lse, weight_sum = ctx.saved_tensors
        if torch.is_grad_enabled():
            # The gradient will be differentiated itself.
            loss = upsample_cross_entropy_reference(logits, target, weight, *ctx.arguments)
            (grad_logits,) = torch.autograd.grad(loss, logits, grad, create_graph=True)
        else:
            scale = torch.where(weight_sum != 0, grad / weight_sum, 0.0)
            op = getattr(torch.ops.pspfast, backward_op)
            grad_logits = op(scale, logits, target, weight, lse, *ctx.arguments)
        return grad_logits, *[None] * 6

    torch.library.register_autograd(f"pspfast::{forward_op}", backward, setup_context=setup_context)


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::upsample_cross_entropy", _fake)
    torch.library.register_fake("pspfast::upsample_cross_entropy_backward", _backward_fake)
    _register_autograd("upsample_cross_entropy", "upsample_cross_entropy_backward")


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import upsample_cross_entropy as kernels

    @torch.library.triton_op("pspfast::upsample_cross_entropy_triton", mutates_args=())
    def _triton(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
        label_smoothing: float,
        return_labels: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        label_dtype = label_dtype_of(logits.shape[1])
        return kernels.upsample_cross_entropy_forward(
            logits,
            target,
            weight,
            ignore_index,
            align_corners,
            label_smoothing,
            label_dtype,
            return_labels,
        )

    @torch.library.triton_op("pspfast::upsample_cross_entropy_backward_triton", mutates_args=())
    def _backward_triton(
        scale: Tensor,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        lse: Tensor,
        ignore_index: int,
        align_corners: bool,
        label_smoothing: float,
    ) -> Tensor:
        return kernels.upsample_cross_entropy_backward(
            scale, logits, target, weight, lse, ignore_index, align_corners, label_smoothing
        )

    _register_autograd("upsample_cross_entropy_triton", "upsample_cross_entropy_backward_triton")
