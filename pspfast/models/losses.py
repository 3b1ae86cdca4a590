"""The losses of a training step, at the labels' resolution, and the check of the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspfast.ops import upsample_cross_entropy


def is_fused(criterion: nn.Module, y: Tensor) -> TypeGuard[nn.CrossEntropyLoss]:
    """Whether ``upsample_cross_entropy`` computes what the criterion does of such labels."""
    return (
        type(criterion) is nn.CrossEntropyLoss
        and criterion.reduction == "mean"
        and not y.is_floating_point()
    )


def upsampled_loss(
    criterion: nn.CrossEntropyLoss, y: Tensor, padded: Sequence[int], align_corners: bool
) -> Callable[..., Any]:
    """The criterion as a function of logits at the resolution of the features.

    Args:
        criterion: one that ``is_fused`` takes.
        y: labels ``[N, h, w]``.
        padded: size to which the logits are interpolated, at least that of the labels.
        align_corners: of that.
    """
    bottom, right = padded[0] - y.shape[1], padded[1] - y.shape[2]
    if bottom or right:
        y = F.pad(y, (0, right, 0, bottom), value=criterion.ignore_index)
    return partial(
        upsample_cross_entropy,
        target=y,
        ignore_index=criterion.ignore_index,
        align_corners=align_corners,
        weight=criterion.weight,
        label_smoothing=criterion.label_smoothing,
    )


def check_target(
    y: Tensor | None,
    expected: tuple[int, ...],
    x: Tensor,
    zoom_factor: int,
    classes: int,
    criterion: nn.Module,
) -> None:
    """Names wrong labels before the network runs; the loss would do so after all of forward, and it
    takes labels of any size.

    Args:
        y: the labels.
        expected: their shape.
        x: the images.
        zoom_factor: of the model.
        classes: K.
        criterion: of the model; without an ``ignore_index`` it takes what it takes.

    Raises:
        ValueError: y is None, has another shape, or a value that is neither a class nor
            ``ignore_index``.
    """
    if y is None:
        raise ValueError("PSPNet: y: expected labels in training mode, got None")
    ignore = getattr(criterion, "ignore_index", None)
    if ignore is None or y.is_floating_point():
        return  # not a criterion of class labels, or one of class probabilities
    if tuple(y.shape) != expected:
        raise ValueError(
            f"PSPNet: y: expected shape {expected} for images {tuple(x.shape)} and "
            f"zoom_factor {zoom_factor}, got {tuple(y.shape)}"
        )
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = y[((y < 0) | (y >= classes)) & (y != ignore)]
    if wrong.numel():
        raise ValueError(
            f"PSPNet: y: expected labels 0 to {classes - 1} or {ignore} (ignored), "
            f"got {wrong.unique()[:8].tolist()}"
        )
