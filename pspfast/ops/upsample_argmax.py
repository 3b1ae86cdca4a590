"""Labels of logits at any resolution, without logits of that resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import backends
from pspfast.ops.common.checks import check_logits, check_size

_LABEL_DTYPES = (torch.uint8, torch.int32, torch.int64)


def upsample_argmax(
    logits: Tensor,
    size: Sequence[int],
    *,
    align_corners: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``F.interpolate(logits, size, mode="bilinear").argmax(1)``.

    Args:
        logits: ``[N, K, h, w]``, any strides; float32, float16 or bfloat16, on the CPU float64 too.
        size: (H, W) of the labels.
        align_corners: of the interpolation, as in ``F.interpolate``.
        dtype: of the labels: uint8, int32 or int64; default is uint8 up to 256 classes, else int32.

    Returns:
        Labels ``[N, H, W]``; of equal logits the first class, and a NaN wins, the first one.

    Raises:
        ValueError: a shape is not as above, or ``dtype`` does not hold K classes.
        TypeError: a dtype is not as above.

    Examples:
        >>> logits = torch.tensor([[[[0.0, 2.0]], [[1.0, 1.0]]]])  # two classes, 1×2 pixels
        >>> upsample_argmax(logits, (1, 5))
        tensor([[[1, 1, 0, 0, 0]]], dtype=torch.uint8)
    """
    match backends.select("upsample_argmax", logits):
        case "reference":
            label_dtype = _check_argmax(logits, size, dtype)
            return upsample_argmax_reference(logits, size, align_corners).to(label_dtype)
        case "triton":
            label_dtype = _check_argmax(logits, size, dtype)
            return torch.ops.pspfast.upsample_argmax_triton(
                logits, *size, align_corners, label_dtype
            )
        case _:
            try:
                height, width = size
                return torch.ops.pspfast.upsample_argmax(
                    logits, height, width, align_corners, dtype
                )
            except ValueError:
                _check_argmax(logits, size, dtype)
                raise


def upsample_argmax_reference(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """:func:`upsample_argmax` in plain PyTorch, in int64."""
    return F.interpolate(logits, list(size), mode="bilinear", align_corners=align_corners).argmax(1)


def label_dtype_of(classes: int) -> torch.dtype:
    """The smallest dtype that holds the labels of all classes."""
    return torch.uint8 if classes <= 256 else torch.int32


def _check_argmax(logits: Tensor, size: Sequence[int], dtype: torch.dtype | None) -> torch.dtype:
    check_logits("upsample_argmax", logits)
    check_size("upsample_argmax", size)
    classes = logits.shape[1]
    if dtype is None:
        return label_dtype_of(classes)
    if dtype not in _LABEL_DTYPES:
        raise TypeError(f"upsample_argmax: dtype: expected uint8, int32 or int64, got {dtype}")
    if dtype == torch.uint8 and classes > 256:
        raise ValueError(
            f"upsample_argmax: dtype: expected int32 or int64 for {classes} classes, got uint8"
        )
    return dtype


def _argmax_fake(
    logits: Tensor, height: int, width: int, align_corners: bool, dtype: torch.dtype | None
) -> Tensor:
    return logits.new_empty(
        (logits.shape[0], height, width), dtype=_check_argmax(logits, (height, width), dtype)
    )


if "cpu" not in backends.MISSING:
    torch.library.register_fake("pspfast::upsample_argmax", _argmax_fake)


@backends.registers_triton_ops
def _register_triton_ops() -> None:
    from pspfast.kernels import upsample_argmax as kernels

    @torch.library.triton_op("pspfast::upsample_argmax_triton", mutates_args=())
    def _argmax_triton(
        logits: Tensor, height: int, width: int, align_corners: bool, label_dtype: torch.dtype
    ) -> Tensor:
        return kernels.upsample_argmax(logits, height, width, align_corners, label_dtype)
