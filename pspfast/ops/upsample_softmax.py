"""Probabilities of logits at any resolution, without logits of that resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import check_logits, check_size, sum_dtype

_OP = "upsample_softmax"


def upsample_softmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = True,
    flip: bool = False,
    out: Tensor | None = None,
    weight: float = 1.0,
) -> Tensor:
    """``weight * F.interpolate(logits, size, mode="bilinear").softmax(1)``.

    Args:
        logits: ``[N, K, h, w]``, any strides; float32, float16 or bfloat16, on the CPU float64 too.
        size: (H, W) of the probabilities.
        align_corners: of the interpolation, as in ``F.interpolate``.
        flip: whether columns are returned in reverse, as for logits of an image that was flipped.
        out: ``[N, K, H, W]``, any strides, to which the probabilities are added, such as a window
            of a larger image's; float32 (float64 for float64 logits).
        weight: a factor of all probabilities.

    Returns:
        ``out``, or a new tensor, in float32 (float64 for float64 logits). A gradient reaches the
        logits in plain PyTorch only: where they require one, that is what computes.

    Raises:
        ValueError: a shape or device is not as above.
        TypeError: a dtype is not as above.
        RuntimeError: ``out`` is given and gradients are asked for, of the logits or of ``out``.

    Examples:
        >>> total = torch.zeros(1, 3, 17, 17)
        >>> for logits in torch.randn(2, 1, 3, 3, 3):  # two views of an image, averaged
        ...     _ = upsample_softmax(logits, (17, 17), out=total, weight=0.5)
        >>> torch.allclose(total.sum(1), torch.ones(1, 17, 17))
        True
    """
    differentiable = torch.is_grad_enabled() and logits.requires_grad
    if differentiable and out is not None:
        raise RuntimeError(f"{_OP}: out: expected None for logits that require gradients")
    backend = backends.select(_OP, logits)
    if backend in ("reference", "triton") or differentiable:
        _check_inputs(logits, size, out)
    if backend == "reference" or differentiable:
        values = weight * upsample_softmax_reference(logits, size, align_corners, flip)
        return values if out is None else out.add_(values)
    try:
        return _run(backend, logits, size, align_corners, flip, out, weight)
    except ValueError:
        _check_inputs(logits, size, out)
        raise


def _run(
    backend: str,
    logits: Tensor,
    size: Sequence[int],
    align_corners: bool,
    flip: bool,
    out: Tensor | None,
    weight: float,
) -> Tensor:
    suffix = "_triton" if backend == "triton" else ""
    height, width = size
    if out is None:
        op = getattr(torch.ops.pspfast, f"{_OP}{suffix}")
        return op(logits, height, width, align_corners, flip, weight)
    _check_out(out, logits, [height, width])
    op = getattr(torch.ops.pspfast, f"{_OP}_add{suffix}")
    op(out, logits, align_corners, flip, weight)
    # Autograd then knows that what it may have kept has changed.
    torch.autograd.graph.increment_version(out)
    return out


def upsample_softmax_reference(
    logits: Tensor, size: Sequence[int], align_corners: bool, flip: bool
) -> Tensor:
    """:func:`upsample_softmax` in plain PyTorch, without its weight."""
    logits = logits.to(sum_dtype(logits.dtype))
    logits = F.interpolate(logits, list(size), mode="bilinear", align_corners=align_corners)
    probabilities = logits.softmax(1)
    return probabilities.flip(3) if flip else probabilities


def _check_inputs(logits: Tensor, size: Sequence[int], out: Tensor | None) -> None:
    check_logits(_OP, logits)
    check_size(_OP, size)
    if out is not None:
        _check_out(out, logits, list(size))


def _check_out(out: Tensor, logits: Tensor, size: list[int]) -> None:
    shape = [*logits.shape[:2], *size]
    if list(out.shape) != shape:
        raise ValueError(f"{_OP}: out: expected shape {shape}, got {list(out.shape)}")
    if out.device != logits.device:
        raise ValueError(f"{_OP}: out: expected device {logits.device} as logits, got {out.device}")
    if out.dtype != sum_dtype(logits.dtype):
        expected = sum_dtype(logits.dtype)
        raise TypeError(f"{_OP}: out: expected {expected}, got {out.dtype}")
    if torch.is_grad_enabled() and out.requires_grad:
        raise RuntimeError(
            f"{_OP}: out: expected a tensor that requires no gradient, got one that does"
        )
    reach = 0  # of the axes of smaller strides
    for stride, length in sorted(zip(out.stride(), out.shape, strict=True)):
        if length > 1 and stride <= reach:
            raise ValueError(
                f"{_OP}: out: expected memory of its own for each element, got strides "
                f"{list(out.stride())} for shape {list(out.shape)}"
            )
        reach += stride * (length - 1)


def _fake(
    logits: Tensor, height: int, width: int, align_corners: bool, flip: bool, weight: float
) -> Tensor:
    check_logits(_OP, logits)
    check_size(_OP, (height, width))
    return logits.new_empty((*logits.shape[:2], height, width), dtype=sum_dtype(logits.dtype))


def _add_fake(out: Tensor, logits: Tensor, align_corners: bool, flip: bool, weight: float) -> None:
    check_logits(_OP, logits)


if "cpu" not in backends.MISSING:
    torch.library.register_fake(f"pspfast::{_OP}", _fake)
    torch.library.register_fake(f"pspfast::{_OP}_add", _add_fake)


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import upsample_softmax as kernels

    @torch.library.triton_op("pspfast::upsample_softmax_triton", mutates_args=())
    def _triton(
        logits: Tensor, height: int, width: int, align_corners: bool, flip: bool, weight: float
    ) -> Tensor:
        return kernels.upsample_softmax(logits, height, width, align_corners, flip, weight)

    @torch.library.triton_op("pspfast::upsample_softmax_add_triton", mutates_args={"out"})
    def _add_triton(
        out: Tensor, logits: Tensor, align_corners: bool, flip: bool, weight: float
    ) -> None:
        kernels.upsample_softmax_add(out, logits, align_corners, flip, weight)
